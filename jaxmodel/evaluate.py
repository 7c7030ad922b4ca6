"""Evaluation: every example once, in order, with exact sums."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

from jaxmodel import metrics as pairs
from jaxmodel.errors import InputError
from jaxmodel.metrics import Metrics
from jaxmodel.model import Batch, Params, State
from jaxmodel.tasks import LossFn
from jaxmodel.train import put


def evaluate(
    loss: LossFn,
    params: Params,
    batches: Iterable[Mapping[str, np.ndarray]],
    state: State = None,
    *,
    put: Callable[[Mapping[str, np.ndarray]], Batch] = put,
) -> dict[str, float]:
    """The metrics of a loss over all batches: summed in float32 in a batch, in float64 across them.

    What weighs nothing (rows that only fill the last batch) counts nothing: the batch size changes no number.

    Args:
      loss: from `tasks`, or your own; compiled once, however often it is evaluated.
      params: what `model.init` gives, or any transformation of it.
      batches: all of one shape; see `data.loader.sequential`.
      state: batch statistics, for models that have them.
      put: batch on the host -> batch on the devices.

    Raises:
      InputError: there is no batch.
    """
    measure = _measure(loss)
    found = [measure(params, put(batch), {} if state is None else state) for batch in batches]
    if not found:
        raise InputError("there is nothing to evaluate: the evaluation data holds no batch")
    return pairs.finish(functools.reduce(pairs.add, map(pairs.to_host, found)))


@functools.lru_cache(maxsize=8)
def _measure(loss: LossFn) -> Callable[[Params, Batch, State], Metrics]:
    """The metrics of one batch, jitted once for a loss."""

    def measure(params: Params, batch: Batch, state: State) -> Metrics:
        result = loss(params, batch, state, None, False)
        return {"loss": (result.sum, result.weight)} | result.metrics

    return jax.jit(measure)
