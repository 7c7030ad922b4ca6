"""Schedules: how the learning rate changes over a run, as one table."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxmodel.options import Optimizer

Schedule = Callable[[Any], Any]  # steps done so far, int32[] -> learning rate, float32[]
Shape = Callable[[jax.Array], jax.Array]  # steps after the warmup, int32[] -> fraction of the peak, float32[]


def make_schedule(options: Optimizer, steps: int) -> Schedule:
    """The learning rate of a run of `steps`: a linear warmup to where the schedule begins, then the schedule.

    The first update, at step 0, already moves (peak / warmup); the warmup ends at step `warmup - 1`, and what
    falls to its final rate is there at `steps`. What "plateau" takes off on top is in the optimizer's state:
    see `effective`.

    Raises:
      InputError: an unknown schedule (the nearest one is named), an option that it does not take, or a warmup,
        decay or cycle that does not fit into the run.
    """
    options.check(steps)
    options = options.resolved(steps)
    peak = options.learning_rate
    assert peak is not None  # it is resolved
    shape = SCHEDULES[options.schedule](options, steps - options.warmup)

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.int32)
        warm = jnp.minimum(1, (step + 1) / max(options.warmup, 1))
        return peak * warm * shape(jnp.maximum(step - options.warmup, 0))

    return schedule


def effective(rate: Any, opt_state: Any) -> Any:
    """A schedule's rate as a plateau has lowered it: what the update that gave `opt_state` was made with."""
    plateau = opt_state.get("plateau") if isinstance(opt_state, dict) else None
    return rate if plateau is None else rate * plateau.scale


def make_plateau(options: Optimizer) -> optax.GradientTransformationExtraArgs | None:
    """What lowers the rate when the loss stops falling, for the schedule "plateau"; None for all others."""
    if options.schedule != "plateau":
        return None
    assert options.decay_rate and options.patience and options.window  # they are resolved
    return optax.contrib.reduce_on_plateau(
        factor=options.decay_rate,
        patience=options.patience,
        cooldown=options.cooldown or 0,
        accumulation_size=options.window,
        min_scale=options.final_learning_rate or 0.0,
    )


def _falling(fall: Callable[[jax.Array], jax.Array]) -> Callable[[Any, int], Shape]:
    """From 1 to the final fraction over `decay_steps`; `fall` maps the part of the way to the part of the drop."""

    def make(o: Any, left: int) -> Shape:
        return lambda step: 1 - (1 - o.final_learning_rate) * fall(jnp.minimum(step / o.decay_steps, 1))

    return make


def _cosine(way: jax.Array) -> jax.Array:
    """0 to 1, slow at both ends."""
    return 0.5 * (1 - jnp.cos(jnp.pi * way))


def constant(o: Any, left: int) -> Shape:
    """The peak, all along."""
    return lambda step: jnp.ones_like(step, jnp.float32)


def cosine_restarts(o: Any, left: int) -> Shape:
    """SGDR (arXiv:1608.03983): a cosine, begun again at the peak after each cycle."""
    lengths = [o.cycle_steps]
    while sum(lengths) < left:
        lengths.append(lengths[-1] * o.cycle_growth)
    starts = jnp.asarray([0, *itertools.accumulate(lengths[:-1])], jnp.float32)

    def shape(step: jax.Array) -> jax.Array:
        cycle = jnp.sum(step >= starts) - 1
        way = jnp.minimum((step - starts[cycle]) / jnp.asarray(lengths, jnp.float32)[cycle], 1)
        return 1 - (1 - o.final_learning_rate) * _cosine(way)

    return shape


def wsd(o: Any, left: int) -> Shape:
    """Warmup, stable, decay (arXiv:2404.06395): the peak, and a straight fall over the last `decay_steps`."""

    def shape(step: jax.Array) -> jax.Array:
        way = jnp.clip((step - (left - o.decay_steps)) / o.decay_steps, 0, 1)
        return 1 - (1 - o.final_learning_rate) * way

    return shape


def inverse_sqrt(o: Any, left: int) -> Shape:
    """sqrt(d / (d + step)); with d the warmup, this is the schedule of the first transformer (arXiv:1706.03762)."""
    return lambda step: jnp.sqrt(o.decay_steps / (o.decay_steps + step))


def exponential(o: Any, left: int) -> Shape:
    """By `decay_rate` every `decay_steps`, in equal factors."""
    return lambda step: jnp.power(o.decay_rate, step / o.decay_steps)


def staircase(o: Any, left: int) -> Shape:
    """By `decay_rate` every `decay_steps`, at once."""
    return lambda step: jnp.power(o.decay_rate, (step // o.decay_steps).astype(jnp.float32))


def one_cycle(o: Any, left: int) -> Shape:
    """One-cycle (arXiv:1708.07120): a cosine from 1/25 to the peak, and one down to next to nothing."""

    def shape(step: jax.Array) -> jax.Array:
        up = 1 / 25 + (1 - 1 / 25) * _cosine(step / max(o.rise_steps, 1))
        down = 1 - (1 - o.final_learning_rate) * _cosine(jnp.clip((step - o.rise_steps) / (left - o.rise_steps), 0, 1))
        return jnp.where(step < o.rise_steps, up, down)

    return shape


def cyclic(o: Any, left: int) -> Shape:
    """Cyclical (arXiv:1506.01186): straight up and down again; each peak `decay_rate` times as high as the last."""

    def shape(step: jax.Array) -> jax.Array:
        height = 1 - jnp.abs(2 * (step % o.cycle_steps) / o.cycle_steps - 1)
        height = height * jnp.power(o.decay_rate, (step // o.cycle_steps).astype(jnp.float32))
        return o.final_learning_rate + (1 - o.final_learning_rate) * height

    return shape


# (resolved options, steps after the warmup) -> the shape; each begins at 1 unless it says otherwise.
SCHEDULES: dict[str, Callable[[Any, int], Shape]] = {
    "constant": constant,
    "linear": _falling(lambda way: way),
    "cosine": _falling(_cosine),
    "cosine_restarts": cosine_restarts,
    "wsd": wsd,
    "inverse_sqrt": inverse_sqrt,
    "exponential": exponential,
    "step": staircase,
    "one_cycle": one_cycle,
    "cyclic": cyclic,
    "plateau": constant,  # times what `make_plateau` says
}
