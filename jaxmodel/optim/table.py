"""The optimizers as one table: how the gradient of one array becomes a direction.

What all of them share (clipping, decay, learning rates, the precision of what is kept) is in `driver.py`, around
them. Optax's transformations each pass over all weights; here one array goes through all of it at once, which
XLA fuses to a single pass, and matrices are what the layout says, whatever they are stacked into.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmodel.optim.weight import Weight

Shapes = dict[str, tuple[int, ...]]
Kept = dict[str, jax.Array]  # what an optimizer keeps for one array, by name; float32


class Rule(NamedTuple):
    """One optimizer, for one array at a time.

    Attributes:
      keeps: (weight, array) -> the shape of what is kept for it, by name: "mean" of gradients, "square" of their
        squares (never negative), or other names. Before the first step it is zero.
      step: (weight, count, gradient float32, array, kept) -> (direction float32, kept). `count` is float32[], 1 in
        the first step. The array then moves against the direction, by the learning rate.
    """

    keeps: Callable[[Weight, jax.Array], Shapes]
    step: Callable[[Weight, jax.Array, jax.Array, jax.Array, Kept], tuple[jax.Array, Kept]]


def _like_weight(*names: str) -> Callable[[Weight, jax.Array], Shapes]:
    return lambda weight, p: {name: p.shape for name in names}


def sgd(o: Any) -> Rule:
    """The gradient itself."""
    return Rule(_like_weight(), lambda weight, count, g, p, kept: (g, {}))


def momentum(o: Any) -> Rule:
    """Polyak's heavy ball: the gradient, and `momentum` times the last direction."""

    def step(weight: Weight, count: jax.Array, g: jax.Array, p: jax.Array, kept: Kept) -> Any:
        mean = o.momentum * kept["mean"] + g
        return mean, {"mean": mean}

    return Rule(_like_weight("mean"), step)


def nesterov(o: Any) -> Rule:
    """Momentum that looks one step ahead (Sutskever et al. 2013), as torch and optax write it."""

    def step(weight: Weight, count: jax.Array, g: jax.Array, p: jax.Array, kept: Kept) -> Any:
        mean = o.momentum * kept["mean"] + g
        return g + o.momentum * mean, {"mean": mean}

    return Rule(_like_weight("mean"), step)


def rmsprop(o: Any) -> Rule:
    """The gradient over the root of the average of its square (Tieleman and Hinton 2012)."""

    def step(weight: Weight, count: jax.Array, g: jax.Array, p: jax.Array, kept: Kept) -> Any:
        square = o.beta2 * kept["square"] + (1 - o.beta2) * g * g
        return g / (jnp.sqrt(square) + o.epsilon), {"square": square}

    return Rule(_like_weight("square"), step)


def adagrad(o: Any) -> Rule:
    """The gradient over the root of the sum of its squares so far (Duchi et al. 2011)."""

    def step(weight: Weight, count: jax.Array, g: jax.Array, p: jax.Array, kept: Kept) -> Any:
        square = kept["square"] + g * g
        return g / (jnp.sqrt(square) + o.epsilon), {"square": square}

    return Rule(_like_weight("square"), step)


def adam(o: Any) -> Rule:
    """Adam (arXiv:1412.6980); with decay it is AdamW (arXiv:1711.05101)."""

    def step(weight: Weight, count: jax.Array, g: jax.Array, p: jax.Array, kept: Kept) -> Any:
        mean = o.beta1 * kept["mean"] + (1 - o.beta1) * g
        square = o.beta2 * kept["square"] + (1 - o.beta2) * g * g
        correct1, correct2 = 1 / (1 - o.beta1**count), 1 / (1 - o.beta2**count)
        direction = mean * correct1 / (jnp.sqrt(square * correct2) + o.epsilon)
        return direction, {"mean": mean, "square": square}

    return Rule(_like_weight("mean", "square"), step)


def adafactor(o: Any) -> Rule:
    """Adafactor without momentum (algorithm 4 of arXiv:1804.04235): a row and a column for each matrix.

    The size of a step is relative to the root mean square of the weight it moves.
    """

    def keeps(weight: Weight, p: jax.Array) -> Shapes:
        if not weight.matrix:
            return {"square": p.shape}
        return {"rows": p.shape[:-1], "columns": (*p.shape[:-2], p.shape[-1])}

    def step(weight: Weight, count: jax.Array, g: jax.Array, p: jax.Array, kept: Kept) -> Any:
        decay = 1 - count**-0.8
        square = g * g + o.epsilon
        if weight.matrix:
            rows = decay * kept["rows"] + (1 - decay) * jnp.mean(square, -1)
            columns = decay * kept["columns"] + (1 - decay) * jnp.mean(square, -2)
            kept = {"rows": rows, "columns": columns}
            share = rows / jnp.mean(rows, -1, keepdims=True)
            square = share[..., :, None] * columns[..., None, :]
        else:
            square = decay * kept["square"] + (1 - decay) * square
            kept = {"square": square}
        direction = g * jax.lax.rsqrt(square)
        direction = direction / jnp.maximum(1, _root_mean_square(direction, weight.axes))
        return direction * jnp.maximum(1e-3, _root_mean_square(p, weight.axes)), kept

    return Rule(keeps, step)


def _root_mean_square(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), axes, keepdims=True))


def lion(o: Any) -> Rule:
    """Lion (arXiv:2302.06675): the sign of an average between the gradient and the slower one that is kept."""

    def step(weight: Weight, count: jax.Array, g: jax.Array, p: jax.Array, kept: Kept) -> Any:
        direction = jnp.sign(o.beta1 * kept["mean"] + (1 - o.beta1) * g)
        return direction, {"mean": o.beta2 * kept["mean"] + (1 - o.beta2) * g}

    return Rule(_like_weight("mean"), step)


def muon(o: Any) -> Rule:
    """Muon (Jordan et al. 2024): the nearest orthogonal matrix to the average of the gradients.

    For each hidden matrix of a stack by itself; embeddings, heads and what is no matrix take AdamW's step. Its own
    steps are brought to the size of AdamW's (arXiv:2502.16982), so that one learning rate and decay suit both.
    """
    rest = adam(o)

    def keeps(weight: Weight, p: jax.Array) -> Shapes:
        return {"mean": p.shape} if weight.hidden else rest.keeps(weight, p)

    def step(weight: Weight, count: jax.Array, g: jax.Array, p: jax.Array, kept: Kept) -> Any:
        if not weight.hidden:
            return rest.step(weight, count, g, p, kept)
        mean = o.momentum * kept["mean"] + (1 - o.momentum) * g
        ahead = o.momentum * mean + (1 - o.momentum) * g
        return _orthogonal(ahead) * 0.2 * max(p.shape[-2:]) ** 0.5, {"mean": mean}

    return Rule(keeps, step)


def _orthogonal(x: jax.Array, steps: int = 5) -> jax.Array:
    """Matrices [..., m, n] with all singular values brought to about one (0.7 to 1.2), by Newton-Schulz steps."""
    tall = x.shape[-2] > x.shape[-1]
    x = jnp.swapaxes(x, -1, -2) if tall else x
    x = x / (jnp.sqrt(jnp.sum(x * x, (-1, -2), keepdims=True)) + 1e-7)
    for _ in range(steps):
        gram = x @ jnp.swapaxes(x, -1, -2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return jnp.swapaxes(x, -1, -2) if tall else x


OPTIMIZERS: dict[str, Callable[[Any], Rule]] = {
    "sgd": sgd,
    "momentum": momentum,
    "nesterov": nesterov,
    "rmsprop": rmsprop,
    "adagrad": adagrad,
    "adam": adam,
    "adamw": adam,  # the driver decays for all of them
    "adafactor": adafactor,
    "lion": lion,
    "muon": muon,
}
