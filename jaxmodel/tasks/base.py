"""What a task is, and what every loss of ours is made with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodel.errors import InputError
from jaxmodel.metrics import Metrics
from jaxmodel.model import Batch, Outputs, Params, State
from jaxmodel.options import Task as Options


class Result(NamedTuple):
    """What a loss returns: `sum / weight` is minimised, each added up over the pieces of a batch.

    `weight` must follow from the batch alone, never from the params; `metrics` are pairs (see `metrics`).
    `examples` are arrays [B, …] for metrics of all examples at once, `weights` among them; computed only where
    an evaluation collects them.
    """

    sum: jax.Array
    weight: jax.Array
    metrics: Metrics
    state: State
    examples: Mapping[str, jax.Array] = {}


class LossFn(Protocol):
    """(params, batch, state, key, train) -> Result. Write your own: it trains and evaluates like these."""

    def __call__(self, params: Params, batch: Batch, state: State, key: jax.Array | None, train: bool) -> Result: ...


Collect = Callable[[Mapping[str, np.ndarray]], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Task:
    """A kind of problem: what is minimised, measured and made of a model's outputs.

    Attributes:
      loss: (model, options, *, …) -> LossFn; a function of this package.
      predict: (outputs, options) -> named arrays [B, …], to be used under `jit`; {} where outputs speak for themselves.
      monitor: the metric that says which of two models is better, and whether its "min" or its "max" does.
      metrics: what an evaluation that collects finds, beside the model's own losses.
      collect: numbers from the `Result.examples` of all batches, for `evaluate`; None where pairs say it all.
      needs: what `loss` takes beside model and options, by keyword.
    """

    loss: Callable[..., LossFn]
    predict: Callable[[Outputs, Options], dict[str, jax.Array]]
    monitor: tuple[str, str]
    metrics: tuple[str, ...]
    collect: Collect | None = None
    needs: tuple[str, ...] = ()


def weights_of(batch: Batch, shape: tuple[int, ...]) -> jax.Array:
    """The batch's `weights` in float32 at this shape: one each where none are given, a row's for all it holds."""
    weights = jnp.asarray(batch.get("weights", 1.0), jnp.float32)
    if weights.shape != shape[: weights.ndim]:
        raise InputError(
            f"weights are {list(weights.shape)}, what they weigh is {list(shape)}: give one a row, or one each"
        )
    return jnp.broadcast_to(weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim)), shape)


def result(
    sum: jax.Array, weights: jax.Array, metrics: Metrics, out: Outputs, examples: Mapping[str, jax.Array] | None = None
) -> Result:
    """The result of a loss over `weights` [B, …], with the model's own losses, which are one number a row.

    A row's own losses count as much as its targets weigh. So rows of padding count nothing, and the whole is
    one sum over one weight: microbatches can be added up without knowing each other.
    """
    weight = jnp.sum(weights)
    metrics = {"loss": (sum, weight), **metrics}
    row_weights = jnp.sum(weights, axis=tuple(range(1, weights.ndim)))
    for name, rows in out.losses.items():
        metrics[name] = (jnp.sum(rows * row_weights), weight)
        sum = sum + metrics[name][0]
    return Result(sum, weight, metrics, out.state, {"weights": weights, **(examples or {})})


def class_counts(chosen: jax.Array, there: jax.Array, weights: jax.Array) -> Metrics:
    """Precision, recall and F1 as pairs, from bool[..., C]: which classes were predicted, and which are there."""

    def count(which: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(which, weights, 0), axis=tuple(range(which.ndim - 1)))

    counts = jnp.stack([count(chosen), count(there)])
    return dict.fromkeys(("precision", "recall", "f1"), (count(chosen & there), counts))


def nothing(outputs: Outputs, options: Options) -> dict[str, Any]:
    """The `predict` of a task whose outputs are read by something else: text is generated."""
    del outputs, options
    return {}
