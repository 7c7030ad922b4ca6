"""Normalisation: layer norm, RMS norm and batch norm, all with float32 statistics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel.errors import InputError
from jaxmodel.models import parts
from jaxmodel.nn.layer import STABLE, Layer, compact, ones, zeros


def rms_normalize(x: jax.Array, epsilon: float, axis: int = -1) -> jax.Array:
    """x divided by the root mean square of an axis, float32 (arXiv:1910.07467)."""
    x = x.astype(STABLE)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=axis, keepdims=True) + epsilon)


def norm_scale(layer: Layer, name: str, layout: str, dim: int, offset: float) -> jax.Array:
    """The scale of a norm, float32[dim], which starts at 1 and is stored without `offset`."""
    scale = layer.vector(name, layout, (dim,), lambda key, shape, dtype: ones(key, shape, dtype) - offset)
    return scale + offset if offset else scale


class Norm(Layer):
    """Layer norm (arXiv:1607.06450) or RMS norm over an axis, x [..., D] to the same shape and dtype.

    Over the axis of time it is group norm with a group a channel (arXiv:1803.08494).
    """

    dim: int
    config: parts.Norm
    axis: int = -1

    @compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, y = self.config, x.astype(STABLE)
        if config.kind == "layer":
            y = y - jnp.mean(y, axis=self.axis, keepdims=True)
        y = rms_normalize(y, config.epsilon, self.axis)
        y = y * norm_scale(self, "scale", "embed_norm", self.dim, config.offset)
        if config.bias:
            y = y + self.vector("bias", "embed_norm", (self.dim,), zeros)
        return y.astype(x.dtype)


class BatchNorm(Layer):
    """Batch norm over all axes but the last (arXiv:1502.03167), x [B, ..., C] to the same shape and dtype.

    In training it normalises with the batch's own statistics and moves the running ones (collection `state`:
    `mean`, `variance`, the latter unbiased as in the paper; perhaps `count` of batches); in evaluation it uses those.
    """

    dim: int
    epsilon: float
    momentum: float
    counts: bool = False

    @compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        scale = self.vector("scale", "filters_norm", (self.dim,), ones)
        bias = self.vector("bias", "filters_norm", (self.dim,), zeros)
        if not (self.has_variable("state", "mean") or self.is_initializing()):
            raise InputError("batch norm needs its running statistics: pass state=model.start(), or a checkpoint's")
        mean = self.variable("state", "mean", jnp.zeros, (self.dim,), STABLE)
        variance = self.variable("state", "variance", jnp.ones, (self.dim,), STABLE)
        count = self.variable("state", "count", jnp.zeros, (), jnp.int32) if self.counts else None
        y = x.astype(STABLE)
        if train:
            axes = tuple(range(x.ndim - 1))
            now_mean = jnp.mean(y, axes)
            now_variance = jnp.mean((y - now_mean) ** 2, axes)
            if not self.is_initializing():
                size = x.size // self.dim
                unbiased = now_variance * (size / max(size - 1, 1))
                mean.value = self.momentum * mean.value + (1 - self.momentum) * now_mean
                variance.value = self.momentum * variance.value + (1 - self.momentum) * unbiased
                if count is not None:
                    count.value += 1
        else:
            now_mean, now_variance = mean.value, variance.value
        return ((y - now_mean) * (jax.lax.rsqrt(now_variance + self.epsilon) * scale) + bias).astype(x.dtype)


def fresh_statistics(shapes: Any) -> Any:
    """Running statistics of these shapes: means start at zero and variances at one, whatever the key."""
    return jax.tree_util.tree_map_with_path(
        lambda path, a: jnp.ones(a.shape, a.dtype) if path[-1].key == "variance" else jnp.zeros(a.shape, a.dtype),
        shapes,
    )
