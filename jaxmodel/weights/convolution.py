"""How a weight convolves images: as shifted slices and one product; or, to train it on CPU, with fewer multiplications.

The latter is Winograd's F(2x2, 3x3) (arXiv:1509.09308): 16 sums are made of every window of 4 x 4 pixels, which gives
2 x 2 of the result, and each is multiplied by its own sum of a kernel's 3 x 3: 16 products where there were 36. Little
but sums and differences leads there and back: in float32 its errors are 0.7 to 1.8 times those of the definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel.errors import InputError
from jaxmodel.weights.leaves import is_leaf, matmul

FEWEST = 8  # channels; an image of three is quicker as one product


def convolve(x: jax.Array, weight: Any, size: int, stride: int, *, training: bool = False) -> jax.Array:
    """x [B,H,W,C] by a weight of any type [size*size*C, F], padded as `patches` says, to [B,H',W',F] in x's dtype."""
    if training and (size, stride) == (3, 1) and _pays(x, weight):
        return winograd(x, weight.reshape(3, 3, x.shape[-1], -1).astype(x.dtype))
    return matmul(patches(x, size, stride), weight)


def _pays(x: jax.Array, weight: Any) -> bool:
    """Whether fewer products are quicker; not in narrower types, whose sums lose what the definition keeps."""
    if jax.default_backend() != "cpu" or is_leaf(weight) or x.dtype not in (jnp.float32, jnp.float64):
        return False
    channels, windows = x.shape[-1], math.prod(x.shape[:3]) // 4
    return channels >= FEWEST and windows >= max(channels, weight.shape[-1])  # else sums of kernels take the time


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


@jax.custom_vjp
def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [B,H,W,C] convolved by kernel [3,3,C,F], with a zero around each image, to [B,H,W,F].

    Its derivatives are made of as few products, and nothing but x and the kernel is kept for them.
    """
    B, H, W, _ = x.shape
    sums = _both_ways(_kernel_sums, [list(row) for row in kernel])
    products = [[matmul(*each) for each in zip(*rows, strict=True)] for rows in zip(_windows(x), sums, strict=True)]
    results = [jnp.stack(row, axis=3) for row in _both_ways(_results, products)]
    y = jnp.stack(results, axis=2)  # [B,H/2,2,W/2,2,F], rounded up
    return y.reshape(B, H + H % 2, W + W % 2, -1)[:, :H, :W]


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return winograd(x, kernel), (x, kernel)


def _backward(kept: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    dx = winograd(dy, kernel[::-1, ::-1].swapaxes(2, 3))
    even = jnp.pad(dy, ((0, 0), (0, dy.shape[1] % 2), (0, dy.shape[2] % 2), (0, 0)))
    spread = _both_ways(_results_transposed, [[even[:, i::2, j::2] for j in range(2)] for i in range(2)])
    both = zip(_windows(x), spread, strict=True)
    sums = [[_rows(a).T @ _rows(b) for a, b in zip(*rows, strict=True)] for rows in both]
    return dx, jnp.stack([jnp.stack(row) for row in _both_ways(_kernel_sums_transposed, sums)])


winograd.defvjp(_forward, _backward)

Grid = Sequence[Sequence[jax.Array]]


def _windows(x: jax.Array) -> Grid:
    """The 4 x 4 sums of every second window of 4 x 4 pixels, each [B,H/2,W/2,C], rounded up."""
    h, w = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    x = jnp.pad(x, ((0, 0), (1, 1 + x.shape[1] % 2), (1, 1 + x.shape[2] % 2), (0, 0)))
    pixels = [[x[:, i : i + 2 * h - 1 : 2, j : j + 2 * w - 1 : 2] for j in range(4)] for i in range(4)]
    return _both_ways(_window_sums, pixels)


def _both_ways(sums: Callable[..., tuple[jax.Array, ...]], grid: Grid) -> Grid:
    """Sums of the columns of a grid, and then of the rows of those."""
    columns = [sums(*column) for column in zip(*grid, strict=True)]
    return [sums(*row) for row in zip(*columns, strict=True)]


# The matrices of the paper, F(2, 3): B^T, A^T and its transpose, G and its transpose.


def _window_sums(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, ...]:
    return a - c, b + c, c - b, b - d


def _results(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, ...]:
    return a + b + c, b - c - d


def _results_transposed(a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
    return a, a + b, a - b, -b


def _kernel_sums(a: jax.Array, b: jax.Array, c: jax.Array) -> tuple[jax.Array, ...]:
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _kernel_sums_transposed(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, ...]:
    return a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])
