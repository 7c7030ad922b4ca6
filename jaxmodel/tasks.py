"""A task is what a kind of problem minimises and measures: a loss over a model, as sums."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxmodel.losses import Sums, cross_entropy, streamed_cross_entropy
from jaxmodel.metrics import Metrics
from jaxmodel.model import Batch, Model, Outputs, Params, State


class Result(NamedTuple):
    """What a loss returns: `sum / weight` is minimised, each added up over the pieces of a batch.

    `weight` must follow from the batch alone, never from the params; `metrics` are pairs (see `metrics`).
    """

    sum: jax.Array
    weight: jax.Array
    metrics: Metrics
    state: State


class LossFn(Protocol):
    """(params, batch, state, key, train) -> Result. Write your own: it trains and evaluates like these."""

    def __call__(
        self, params: Params, batch: Batch, state: State, key: jax.Array | None, train: bool
    ) -> Result: ...


def language_model(model: Model, *, chunk: int | None = None, shards: int = 1) -> LossFn:
    """Cross entropy of `targets` int32[B,T], each counting `weights` float32[B,T] (one where none are given).

    Metrics: loss (nats a token), accuracy, perplexity, and the model's own losses by name.

    Args:
      model: gives `logits` [B,T,V]; if it gives `hidden` too, many logits are never held at once.
      chunk: tokens whose logits may be held at once; by default what is fastest.
      shards: among how many devices those tokens are shared out; `chunk` counts for each.
    """

    def loss(params: Params, batch: Batch, state: State, key: jax.Array | None, train: bool) -> Result:
        targets, weights = _labels(batch)
        out = model.apply(params, batch, state or None, key=key, train=train)
        logits = out["logits"]
        piece = (chunk or _default_chunk(logits.shape[-1])) * shards
        if "hidden" in out.values and targets.size > piece:
            # Nobody reads `logits` now, so under jit they are never computed.
            sums = streamed_cross_entropy(
                lambda hidden: model.apply(params, {"hidden": hidden}, train=train)["logits"],
                out["hidden"],
                targets,
                weights,
                piece,
            )
        else:
            sums = cross_entropy(logits, targets, weights)
        more = {"perplexity": (sums.loss, sums.weight)}
        return _result(sums, out, weights, more)

    return loss


def classification(model: Model) -> LossFn:
    """Cross entropy of `targets` int32[B], each counting `weights` float32[B] (one where none are given).

    Metrics: loss (nats an example), accuracy, and the model's own losses by name.
    """

    def loss(params: Params, batch: Batch, state: State, key: jax.Array | None, train: bool) -> Result:
        targets, weights = _labels(batch)
        out = model.apply(params, batch, state or None, key=key, train=train)
        return _result(cross_entropy(out["logits"], targets, weights), out, weights, {})

    return loss


def _labels(batch: Batch) -> tuple[jax.Array, jax.Array]:
    targets = batch["targets"]
    return targets, batch["weights"] if "weights" in batch else jnp.ones(targets.shape, jnp.float32)


def _default_chunk(vocab_size: int) -> int:
    """Tokens whose logits are held at once.

    On a CPU a piece that stays in the cache beats even the direct form, 1.8 times at 4096 tokens and 1,024 to
    32,768 logits each; elsewhere large products are what is fast, and pieces hold 128 MB.
    """
    return 512 if jax.default_backend() == "cpu" else max(1024, 2**27 // (4 * vocab_size))


def _result(sums: Sums, out: Outputs, weights: jax.Array, more: Metrics) -> Result:
    """The result of a cross entropy with the model's own losses, which are one number a row.

    A row's own losses count as much as its targets weigh. So rows of padding count nothing, and the whole is
    one sum over one weight: microbatches can be added up without knowing each other.
    """
    metrics = {"loss": (sums.loss, sums.weight), "accuracy": (sums.correct, sums.weight)} | more
    total = sums.loss
    row_weights = jnp.sum(weights.astype(jnp.float32), axis=tuple(range(1, weights.ndim)))
    for name, rows in out.losses.items():
        metrics[name] = (jnp.sum(rows * row_weights), sums.weight)
        total = total + metrics[name][0]
    return Result(total, sums.weight, metrics, out.state)
