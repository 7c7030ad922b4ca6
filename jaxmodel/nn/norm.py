"""Normalisation: layer norm, RMS norm and batch norm, all with float32 statistics."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel.errors import InputError
from jaxmodel.models import parts
from jaxmodel.nn.layer import STABLE, Layer, Shape, compact, constant, ones, zeros


def rms_normalize(x: jax.Array, epsilon: float, axis: int = -1, *, centred: bool = False) -> jax.Array:
    """x, less its mean if `centred`, divided by the root mean square of an axis, float32 (arXiv:1910.07467)."""
    x = x.astype(STABLE)
    if centred:
        x = x - jnp.mean(x, axis=axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=axis, keepdims=True) + epsilon)


def norm_scale(layer: Layer, name: str, layout: str, shape: Shape, offset: float) -> jax.Array:
    """The scale of a norm, float32 of a shape, which starts at 1 and is stored without `offset`."""
    scale = layer.vector(name, layout, shape, constant(1.0 - offset))
    return scale + offset if offset else scale


class Norm(Layer):
    """Layer norm (arXiv:1607.06450) or RMS norm over an axis, x [..., D] to the same shape and dtype.

    Over the axis of time it is group norm with a group a channel (arXiv:1803.08494).
    """

    config: parts.Norm
    axis: int = -1

    @compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, shape = self.config, x.shape[-1:]
        y = rms_normalize(x, config.epsilon, self.axis, centred=config.kind == "layer")
        y = y * norm_scale(self, "scale", "embed_norm", shape, config.offset)
        if config.bias:
            y = y + self.vector("bias", "embed_norm", shape, zeros)
        return y.astype(x.dtype)


class BatchNorm(Layer):
    """Batch norm over all axes but the last (arXiv:1502.03167), x [B, ..., C] to the same shape and dtype.

    In training it normalises with the batch's own statistics and moves the running ones (collection `state`:
    `mean`, `variance`, the latter unbiased as in the paper; perhaps `count` of batches); in evaluation it uses those.
    """

    epsilon: float
    momentum: float
    counts: bool = False

    @compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        shape = x.shape[-1:]
        scale = self.vector("scale", "filters_norm", shape, ones)
        bias = self.vector("bias", "filters_norm", shape, zeros)
        if not (self.has_variable("state", "mean") or self.is_initializing()):
            raise InputError("batch norm needs its running statistics: pass state=model.start(), or a checkpoint's")
        mean = self.variable("state", "mean", jnp.zeros, shape, STABLE)
        variance = self.variable("state", "variance", jnp.ones, shape, STABLE)
        count = self.variable("state", "count", jnp.zeros, (), jnp.int32) if self.counts else None
        y = x.astype(STABLE)
        if train:
            axes = tuple(range(x.ndim - 1))
            now_mean = jnp.mean(y, axes)
            now_variance = jnp.mean((y - now_mean) ** 2, axes)
            if not self.is_initializing():
                size = x.size // x.shape[-1]
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

    def fresh(path: Any, a: Any) -> jax.Array:
        return jnp.full(a.shape, path[-1].key == "variance", a.dtype)

    return jax.tree_util.tree_map_with_path(fresh, shapes)
