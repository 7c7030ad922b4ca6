"""Convolution by a weight like any other, and the pooling and windows around it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxmodel import weights
from jaxmodel.nn.layer import Layer, compact, he, normal, zeros


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
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        layout, shape = "height width channels -> filters", (self.size, self.size, x.shape[-1])
        kernel = self.weight("kernel", layout, shape, (self.filters,), he).leaf
        return biased(self, weights.convolve(x, kernel, self.size, self.stride, training=train))


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
