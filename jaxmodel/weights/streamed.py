"""A weight as a decoding loop on CPU reads it: all of it, in the order it lies in memory, for a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodel.weights.layout import Layout
from jaxmodel.weights.leaves import Leaf, leaf, matmul, take

SUMS = 24  # at once, of the 32 vectors that registers of AVX-512 hold; with AVX2's 16 it is as quick as 16 or 8 are
PLACES = 4  # to read from at once, at most: a core waits less for memory that it asks for in several places
ROWS = 8  # that share a pass
PASSES = 2  # at most; more rows take a library's product, which reads the weight once and copies it first


@leaf
class Streamed(Leaf):
    """A dense weight whose `values` [..., out, in] are stored as those of a table.

    Products of few rows read it once and copy nothing: quick if compiled with `compiling.decoding_options`, else slow.
    """

    values: Any
    table: bool = False

    static: ClassVar[tuple[str, ...]] = ("table",)

    def matmul(self, x: jax.Array, *, table: bool = False) -> jax.Array:
        del table  # both are stored alike
        return streamed_matmul(x, self.values.astype(x.dtype), x.dtype)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        return take(self.values, ids, dtype)

    def dense(self, dtype: Any = jnp.float32) -> jax.Array:
        return (self.values if self.table else jnp.swapaxes(self.values, -1, -2)).astype(dtype)

    def axes(self, layout: Layout) -> Streamed:
        return self.replace(values=(*layout.axes[:-2], layout.produced, layout.contracted))


# (x [*batch, *rows, in], values [*batch, out, in], dtype) -> [*batch, *rows, out] of that dtype
Contraction = Callable[[jax.Array, jax.Array, Any], jax.Array]


def contract(x: jax.Array, values: jax.Array, dtype: Any) -> jax.Array:
    """x [*batch, *rows, in] times values [*batch, out, in], to [*batch, *rows, out] of `dtype`."""
    batch = tuple(range(values.ndim - 2))
    dims = (((x.ndim - 1,), (values.ndim - 1,)), (batch, batch))
    return jax.lax.dot_general(x, values, dims, preferred_element_type=dtype)


def streamed_matmul(x: jax.Array, values: jax.Array, dtype: Any) -> jax.Array:
    """`contract`, of few rows as `Streamed` does it: summed in float32 or wider."""
    batch = values.ndim - 2
    rows = x.reshape(*x.shape[:batch], -1, x.shape[-1])
    if not 0 < rows.shape[batch] <= ROWS * PASSES:
        return contract(x, values, dtype) if batch else matmul(x, values, table=True).astype(dtype)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    rows, values = rows.astype(wide), values.astype(wide)
    stream = jnp.vectorize(_stream, signature="(r,i),(o,i)->(r,o)")
    passes = [stream(rows[..., i : i + ROWS, :], values) for i in range(0, rows.shape[batch], ROWS)]
    return jnp.concatenate(passes, axis=-2).reshape(*x.shape[:-1], values.shape[-2]).astype(dtype)


def _stream(x: jax.Array, values: jax.Array) -> jax.Array:
    """x [B, in] times values [out, in], to [B, out]: one pass over the values.

    Written as one reduction of many results, for each of which XLA's loop keeps a register of sums: of each row with
    each of some parts of the values, which are read side by side. The last part begins earlier if they are uneven.
    """
    outputs = len(values)
    count = max(1, min(PLACES, SUMS // len(x), outputs))
    size = -(-outputs // count)
    begins = [min(i * size, outputs - size) for i in range(count)]
    # A division keeps what x is made of out of the loop, where it would be computed anew for each output: XLA brings
    # no division into a loop that asks more than once. The divisor is one; it must not be known to be.
    x = x / jnp.where(jnp.isnan(x), 2, 1).astype(x.dtype)
    products = [values[begin : begin + size] * row for begin in begins for row in x]

    def add(sums: list[jax.Array], more: list[jax.Array]) -> list[jax.Array]:
        return [a + b for a, b in zip(sums, more, strict=True)]

    found = jax.lax.reduce(products, [np.zeros((), x.dtype)] * len(products), add, (1,))
    fresh = [i * size - begin for i, begin in enumerate(begins)]
    parts = [found[i * len(x) + row][fresh[i] :] for row in range(len(x)) for i in range(count)]
    return jnp.concatenate(parts).reshape(len(x), outputs)
