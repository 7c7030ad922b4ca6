"""The learning rate range test (arXiv:1506.01186): the rate rises, and the loss falls fastest somewhere."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmodel import metrics as pairs
from jaxmodel.errors import InputError
from jaxmodel.model import Batch, Model, Params, State
from jaxmodel.optim import make_optimizer
from jaxmodel.optim_options import SCHEDULE_TAKES, Optimizer
from jaxmodel.sharding import Partitioning
from jaxmodel.tasks import LossFn
from jaxmodel.train import make_state, make_step, put

LOW, HIGH = 1e-7, 10.0
SMOOTHING = 0.9  # of the losses, whose noise would hide their slope
LEAST = 1e-3  # part of the first loss that it must fall by
WORSE = 4.0  # times the best loss: by then it is lost


class RangeTest(NamedTuple):
    """float64[N] each, up to where the loss was lost; `suggestion` is the rate at which it fell fastest."""

    rates: np.ndarray
    losses: np.ndarray  # smoothed
    suggestion: float


def find_learning_rate(
    model: Model,
    loss: LossFn,
    options: Optimizer,
    batches: Iterable[Mapping[str, np.ndarray]],
    key: jax.Array,
    *,
    steps: int = 100,
    accumulate: int = 1,
    params: Params = None,
    model_state: State = None,
    partitioning: Partitioning | None = None,
    put: Callable[[Mapping[str, np.ndarray]], Batch] = put,
) -> RangeTest:
    """Train on a copy for `steps`, the learning rate rising from 1e-7 to 10 by equal factors.

    Args:
      model: what trains.
      loss: from `tasks`, or your own.
      options: the optimizer; its schedule and rate are set aside.
      batches: on the host; at least as many as steps.
      key: for fresh weights and dropout.
      steps: updates of the test.
      accumulate: as in `make_step`.
      params: weights to start from; they stay as they are.
      model_state: as in `make_state`.
      partitioning: of a sharded model.
      put: batch on the host -> batch on the devices.

    Raises:
      InputError: the loss was not finite from the start, or never fell.
    """
    of_schedules = dict.fromkeys(name for takes in SCHEDULE_TAKES.values() for name in takes)
    flat = dataclasses.replace(options, **of_schedules, schedule="constant", warmup=0, learning_rate=1.0)
    rates = np.geomspace(LOW, HIGH, steps)
    rising = optax.scale_by_schedule(lambda count: jnp.asarray(rates, jnp.float32)[count])
    optimizer = optax.chain(make_optimizer(flat, steps, model.layout), rising)
    fresh = key if params is None else None
    state = make_state(model, optimizer, fresh, params=params, model_state=model_state, partitioning=partitioning)
    step = make_step(model, loss, optimizer, accumulate, partitioning=partitioning)

    losses: list[float] = []
    average = 0.0
    for i, batch in enumerate(itertools.islice(batches, steps)):
        state, sums = step(state, put(batch), key)
        average = SMOOTHING * average + (1 - SMOOTHING) * pairs.finish(sums)["loss"]
        smooth = average / (1 - SMOOTHING ** (i + 1))
        if not np.isfinite(smooth) or (losses and smooth > WORSE * min(losses)):
            break
        losses.append(smooth)
    return RangeTest(rates[: len(losses)], np.array(losses), _steepest(rates[: len(losses)], np.array(losses)))


def _steepest(rates: np.ndarray, losses: np.ndarray) -> float:
    """The rate at which the loss fell fastest, per factor of the rate, before it was least."""
    best = int(np.argmin(losses)) if len(losses) else 0
    if best < 2 or losses[0] - losses[best] < LEAST * abs(losses[0]):
        raise InputError(
            "optimizer.find_lr: the loss never fell; look at the data and the model with train.overfit_one_batch first"
        )
    slopes = np.gradient(losses[: best + 1], np.log(rates[: best + 1]))
    return float(rates[int(np.argmin(slopes))])
