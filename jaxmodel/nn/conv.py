"""Convolution as shifted slices and one product: a weight like any other, and the fast way on CPU."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxmodel.errors import InputError
from jaxmodel.nn.layer import Layer, compact, he, normal, zeros


def patches(x: jax.Array, size: int, stride: int) -> jax.Array:
    """The size x size windows of x [B,H,W,C], [B,ceil(H/stride),ceil(W/stride),size*size*C].

    Zeros stand beyond the border, (size - 1) / 2 of them on each side. Windows as wide as their stride lie side by
    side instead, [B,floor(H/stride),floor(W/stride),size*size*C], and what is left over is not seen; InputError where
    there is no window at all.
    """
    if size == 1:
        return x[:, ::stride, ::stride]
    height, width = x.shape[1:3]
    if size == stride:
        height, width = height - height % size, width - width % size
        if not height or not width:
            raise InputError(f"images are too small: {x.shape[1:3]} is left of them for windows of {size} x {size}")
        x = x[:, :height, :width]
    else:
        pad = (size - 1) // 2
        x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    shifted = [x[:, i : i + height : stride, j : j + width : stride] for i in range(size) for j in range(size)]
    return jnp.concatenate(shifted, axis=-1)


def max_pool(x: jax.Array) -> jax.Array:
    """The maximum of every second 3 x 3 window, x [B,H,W,C] to [B,ceil(H/2),ceil(W/2),C]."""
    around = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), around)


def windows(x: jax.Array, size: int, stride: int) -> jax.Array:
    """The windows over time of x [B,T,C], [B,1+floor((T-size)/stride),size*C], none of which goes beyond its ends."""
    ends = (x.shape[1] - size) // stride * stride + 1  # behind where the last window begins
    return jnp.concatenate([x[:, i : i + ends : stride] for i in range(size)], axis=-1)


def grouped(x: jax.Array, kernel: jax.Array, padding: str | Sequence[tuple[int, int]]) -> jax.Array:
    """A convolution of x [B,T,C] or [B,H,W,C] by kernel [T or H W,C/groups,F], which keeps groups of channels apart."""
    dims = ("NWC", "WIO", "NWC") if x.ndim == 3 else ("NHWC", "HWIO", "NHWC")
    groups, kernel = x.shape[-1] // kernel.shape[-2], kernel.astype(x.dtype)
    how = {"dimension_numbers": dims, "feature_group_count": groups}
    return jax.lax.conv_general_dilated(x, kernel, (1,) * (x.ndim - 2), padding, **how)


class Conv(Layer):
    """A convolution with an odd kernel, or windows side by side, x [B,H,W,C] to [B,H/stride,W/stride,F]."""

    filters: int
    size: int
    stride: int
    bias: bool = False

    @compact
    def __call__(self, x: jax.Array) -> jax.Array:
        windows = patches(x, self.size, self.stride)
        windows = windows.reshape(*windows.shape[:3], self.size, self.size, x.shape[-1])
        return biased(self, self.linear(windows, "kernel", "height width channels -> filters", (self.filters,), he))


class DepthwiseConv(Layer):
    """A convolution of each channel by itself with an odd kernel, x [B,H,W,C] to the same shape."""

    size: int
    bias: bool = False

    @compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1])
        kernel = self.vector("kernel", "height width filters", shape, normal(1 / self.size))
        return biased(self, grouped(x, kernel[:, :, None], "SAME"))


def biased(layer: Conv | DepthwiseConv, y: jax.Array) -> jax.Array:
    """y [..., F] and the bias of a layer, where it has one."""
    return y + layer.vector("bias", "filters", y.shape[-1:], zeros).astype(y.dtype) if layer.bias else y
