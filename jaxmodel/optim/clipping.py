"""Clipping: by value, by the norm of each unit against that of its weights, by the norm of all gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel.optim.weight import Weight


def global_norm(tree: Any) -> jax.Array:
    """The root of the sum of the squares of all numbers in a tree, float32[]."""
    squares = [jnp.sum(jnp.square(array.astype(jnp.float32))) for array in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))


def clipped(
    options: Any, weights: Sequence[Weight], arrays: Sequence[jax.Array], grads: Sequence[jax.Array]
) -> list[jax.Array]:
    """The gradients as float32, clipped in each way that is asked for, the global norm last.

    Args:
      options: resolved.
      weights: what is known of each array.
      arrays: those that train.
      grads: a gradient for each.
    """
    grads = [g.astype(jnp.float32) for g in grads]
    if options.clip_value is not None:
        grads = [jnp.clip(g, -options.clip_value, options.clip_value) for g in grads]
    if options.clip_adaptive is not None:
        grads = [_adaptive(options.clip_adaptive, *each) for each in zip(weights, arrays, grads, strict=True)]
    if options.clip_norm is not None:
        scale = jnp.minimum(1.0, options.clip_norm / global_norm(grads))
        grads = [g * scale for g in grads]
    return grads


def _adaptive(most: float, weight: Weight, p: jax.Array, g: jax.Array) -> jax.Array:
    """AGC (arXiv:2102.06171): each unit's gradient is at most `most` times as long as its weights (or 1e-3).

    The unit of a matrix is what one output sums over; of other arrays, the whole array of a layer.
    """

    def norm(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), weight.inputs, keepdims=True))

    return g * jnp.minimum(1, most * jnp.maximum(norm(p), 1e-3) / jnp.maximum(norm(g), 1e-6))
