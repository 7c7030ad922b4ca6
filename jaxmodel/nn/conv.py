"""Convolution as shifted slices and one product: a weight like any other, and the fast way on CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmodel.nn.layer import Initializer, Layer, compact, einsum


def patches(x: jax.Array, size: int, stride: int) -> jax.Array:
    """The size x size windows of x [B,H,W,C], [B,ceil(H/stride),ceil(W/stride),size*size*C].

    Zeros stand beyond the border, (size - 1) / 2 of them on each side.
    """
    if size == 1:
        return x[:, ::stride, ::stride]
    height, width = x.shape[1:3]
    pad = (size - 1) // 2
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    shifted = [
        x[:, i : i + height : stride, j : j + width : stride] for i in range(size) for j in range(size)
    ]
    return jnp.concatenate(shifted, axis=-1)


class Conv(Layer):
    """A bias-free convolution with an odd kernel, x [B,H,W,C] to [B,H/stride,W/stride,F]."""

    channels: int
    filters: int
    size: int
    stride: int
    init: Initializer

    @compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = (self.size, self.size, self.channels)
        weight = self.weight("kernel", "height width channels -> filters", inputs, (self.filters,), self.init)
        windows = patches(x, self.size, self.stride)
        return einsum(windows.reshape(*windows.shape[:3], *inputs), weight)
