"""Optimizers: optax transformations made from the `Optimizer` options, with a schedule to log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmodel.options import Optimizer
from jaxmodel.weights import decays

Schedule = Callable[[Any], Any]  # steps done so far, int32[] -> learning rate, float32[]


# How the learning rate falls: fraction of the way from warmup to the last step -> fraction of the way down.
SCHEDULES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "constant": jnp.zeros_like,
    "linear": lambda way: way,
    "cosine": lambda way: 0.5 * (1 - jnp.cos(jnp.pi * way)),
}


def make_schedule(options: Optimizer, steps: int) -> Schedule:
    """The learning rate of a run of `steps`: a linear warmup to the peak, then down to its final fraction.

    The first update, at step 0, already moves (peak / warmup); the peak is reached at step `warmup - 1`, and
    the final rate at `steps`.

    Raises:
      InputError: an unknown schedule (the nearest one is named), or a warmup as long as the run.
    """
    options.check(steps)
    fall = SCHEDULES[options.schedule]

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        way = jnp.clip((step - options.warmup) / (steps - options.warmup), 0, 1)
        rate = 1 - (1 - options.final_learning_rate) * fall(way)
        return options.learning_rate * jnp.minimum(rate, (step + 1) / max(options.warmup, 1))

    return schedule


def make_optimizer(options: Optimizer, steps: int, layout: Any) -> optax.GradientTransformation:
    """The optimizer of a run of `steps`; it is given the trainable part of the params, holes and all.

    Gradients are first scaled down to `clip_norm`. Weight decay is decoupled from the gradient, times the
    learning rate, and meets only weights whose layout has an arrow: no norms, no biases.

    Raises:
      InputError: an unknown optimizer or schedule (the nearest one is named), or other options out of bounds.
    """
    schedule = make_schedule(options, steps)  # checks all options, the name too
    return OPTIMIZERS[options.name](options, schedule, layout)


def global_norm(tree: Any) -> jax.Array:
    """The root of the sum of the squares of all numbers in a tree, float32[]."""
    squares = [jnp.sum(jnp.square(array.astype(jnp.float32))) for array in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))


def adamw(options: Optimizer, schedule: Schedule, layout: Any) -> optax.GradientTransformation:
    """AdamW (arXiv:1711.05101) as one expression a weight.

    Optax chains transformations, each a pass over all weights; here each array is read and written once. The
    averages are float32; the state is a dict of `count`, `mean` and `square`.
    """
    beta1, beta2, epsilon = options.beta1, options.beta2, options.epsilon

    def init(params: Any) -> dict[str, Any]:
        def zeros() -> Any:
            return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.float32), params)

        return {"count": jnp.zeros((), jnp.int32), "mean": zeros(), "square": zeros()}

    def update(grads: Any, state: dict[str, Any], params: Any = None) -> tuple[Any, dict[str, Any]]:
        count = state["count"] + 1
        rate = schedule(state["count"])
        scale = 1.0 if options.clip_norm is None else jnp.minimum(1.0, options.clip_norm / global_norm(grads))
        correct1, correct2 = (1 / (1 - beta ** count.astype(jnp.float32)) for beta in (beta1, beta2))

        def one(
            decayed: bool, p: jax.Array, g: jax.Array, mean: jax.Array, square: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            g = g.astype(jnp.float32) * scale
            mean = beta1 * mean + (1 - beta1) * g
            square = beta2 * square + (1 - beta2) * g * g
            step = mean * correct1 / (jnp.sqrt(square * correct2) + epsilon)
            decay = options.weight_decay * p if decayed else 0.0
            return (-rate * (step + decay)).astype(p.dtype), mean, square

        found = jax.tree.map(one, decays(layout, params), params, grads, state["mean"], state["square"])
        updates, mean, square = jax.tree.transpose(jax.tree.structure(params), None, found)
        return updates, {"count": count, "mean": mean, "square": square}

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


OPTIMIZERS: dict[str, Callable[[Optimizer, Schedule, Any], optax.GradientTransformation]] = {"adamw": adamw}
