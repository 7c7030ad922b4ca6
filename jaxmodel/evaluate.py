"""Evaluation: every example once, in order, with exact sums."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmodel import metrics as pairs
from jaxmodel.errors import InputError
from jaxmodel.metrics import Metrics
from jaxmodel.model import Batch, Params, State
from jaxmodel.tasks import Collect, LossFn
from jaxmodel.train import put


def evaluate(
    loss: LossFn,
    params: Params,
    batches: Iterable[Mapping[str, np.ndarray]],
    state: State = None,
    *,
    put: Callable[[Mapping[str, np.ndarray]], Batch] = put,
    collect: Collect | None = None,
) -> dict[str, float]:
    """The metrics of a loss over all batches: summed in float32 in a batch, in float64 across them.

    What weighs nothing (rows that only fill the last batch) counts nothing: the batch size changes no number.

    Args:
      loss: from `tasks`, or your own; compiled once, however often it is evaluated.
      params: what `model.init` gives, or any transformation of it.
      batches: all of one shape; see `data.loader.sequential`.
      state: batch statistics, for models that have them.
      put: batch on the host -> batch on the devices.
      collect: numbers from the loss's `examples` of all batches (those of no weight dropped), for metrics that are
        no sums: a task's own `collect`, or yours. They stay in memory on the host.

    Raises:
      InputError: there is no batch, or nothing to collect.
    """
    measure = _measure(loss, collect is not None)
    results = (measure(params, put(batch), {} if state is None else state) for batch in batches)
    sums, examples = [], []
    # Read one batch behind: the device has work meanwhile, and little of what it computed to hold.
    for (metrics, rows), _ in itertools.pairwise(itertools.chain(results, [({}, {})])):
        sums.append(pairs.to_host(metrics))
        examples.append(rows if collect is None else _kept(rows))
    if not sums:
        raise InputError("there is nothing to evaluate: the evaluation data holds no batch")
    numbers = pairs.finish(functools.reduce(pairs.add, sums))
    if collect is None:
        return numbers
    together = {name: np.concatenate([each[name] for each in examples]) for name in examples[0]}
    return numbers | {name: float(number) for name, number in collect(together).items()}


def _kept(examples: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """The rows that weigh something, on every host."""
    if "weights" not in examples:
        raise InputError("this loss gives no examples to collect: leave collect out, or return them in its Result")
    arrays = {
        name: np.asarray(x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True))
        for name, x in examples.items()
    }
    weights = arrays["weights"].reshape(len(arrays["weights"]), -1)
    return {name: array[np.any(weights > 0, axis=1)] for name, array in arrays.items()}


@functools.lru_cache(maxsize=8)
def _measure(loss: LossFn, collect: bool) -> Callable[[Params, Batch, State], tuple[Metrics, dict[str, jax.Array]]]:
    """The metrics of one batch, and what is collected of it, jitted once for a loss."""

    def measure(params: Params, batch: Batch, state: State) -> tuple[Metrics, dict[str, jax.Array]]:
        result = loss(params, batch, state, None, False)
        return {"loss": (result.sum, result.weight)} | result.metrics, dict(result.examples) if collect else {}

    return jax.jit(measure)
