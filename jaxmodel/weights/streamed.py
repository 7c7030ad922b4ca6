"""A weight as a decoding loop on CPU reads it: all of it, in the order it lies in memory, for a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodel.weights.layout import Layout
from jaxmodel.weights.leaves import Leaf, leaf, matmul

WIDTHS = range(64, 129, 16)  # inputs of a block: so few that XLA unrolls its loop over them, and rows stay in a cache
SUMS = 24  # at once over more inputs: of the 32 vectors that registers of AVX-512 hold
PLACES = 4  # to read from at once, at most: a core waits less for memory that it asks for in several places
ROWS = 8  # that share a pass
FEW = 16  # rows; more, unless they are a token each, take a library's product, which is quicker to compile
MANY = 64  # rows of a token each; more take that, too: it reads the weight once, and copies it first


@leaf
class Streamed(Leaf):
    """A dense weight in blocks of its inputs: `values` are [blocks, out, in / blocks], each block stored as a table is.

    Products of few rows read it once and copy nothing: quick if compiled with `compiling.decoding_options`, else slow.
    """

    values: Any
    table: bool = False

    static: ClassVar[tuple[str, ...]] = ("table",)

    @staticmethod
    def of(weight: jax.Array, *, table: bool = False) -> Streamed:
        """A plain weight [in, out], or table [out, in]."""
        values = weight if table else weight.T
        outputs, inputs = values.shape
        width = max((width for width in WIDTHS if inputs % width == 0), default=inputs)
        return Streamed(values.reshape(outputs, -1, width).swapaxes(0, 1), table)

    def matmul(self, x: jax.Array, *, table: bool = False) -> jax.Array:
        del table  # both are stored alike
        rows = x.reshape(-1, x.shape[-1])
        if not 0 < len(rows) <= (MANY if x.ndim > 2 and x.shape[-2] == 1 else FEW):
            return matmul(x, self._whole(), table=True)
        return _passes(rows, self.values.astype(x.dtype), x.dtype).reshape(*x.shape[:-1], self.values.shape[1])

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        blocks, _, width = self.values.shape
        found = jnp.take(self.values, ids, axis=1).astype(dtype)
        return jnp.moveaxis(found, 0, -2).reshape(*ids.shape, blocks * width)

    def dense(self, dtype: Any = jnp.float32) -> jax.Array:
        whole = self._whole()
        return (whole if self.table else whole.T).astype(dtype)

    def axes(self, layout: Layout) -> Streamed:
        return self.replace(values=(layout.contracted, layout.produced, ()))

    def _whole(self) -> jax.Array:
        """The values [out, in]."""
        return self.values.swapaxes(0, 1).reshape(self.values.shape[1], -1)


# (x [*batch, *rows, in], values [*batch, out, in], dtype) -> [*batch, *rows, out] of that dtype
Contraction = Callable[[jax.Array, jax.Array, Any], jax.Array]


def contract(x: jax.Array, values: jax.Array, dtype: Any) -> jax.Array:
    """x [*batch, *rows, in] times values [*batch, out, in], to [*batch, *rows, out] of `dtype`."""
    batch = tuple(range(values.ndim - 2))
    dims = (((x.ndim - 1,), (values.ndim - 1,)), (batch, batch))
    return jax.lax.dot_general(x, values, dims, preferred_element_type=dtype)


def streamed_matmul(x: jax.Array, values: jax.Array, dtype: Any) -> jax.Array:
    """`contract`, of few rows as `Streamed` does it, in one block: summed in float32 or wider."""
    batch = values.ndim - 2
    rows = x.reshape(*x.shape[:batch], -1, x.shape[-1])
    if not 0 < rows.shape[batch] <= FEW:
        return contract(x, values, dtype)
    return _passes(rows, values[..., None, :, :], dtype).reshape(*x.shape[:-1], values.shape[-2])


def _passes(x: jax.Array, values: jax.Array, dtype: Any) -> jax.Array:
    """x [*batch, rows, in] times values [*batch, blocks, out, in / blocks], to [*batch, rows, out] of `dtype`."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x, values = x.astype(wide), values.astype(wide)
    rows = x.shape[-2]
    passes = -(-rows // ROWS)
    each = -(-rows // passes)
    stream = jnp.vectorize(_stream, signature="(r,i),(b,o,w)->(r,o)")
    if passes == 1:
        return stream(x, values).astype(dtype)
    x = jnp.pad(x, (*[(0, 0)] * (x.ndim - 2), (0, passes * each - rows), (0, 0)))
    x = jnp.moveaxis(x.reshape(*x.shape[:-2], passes, each, -1), -3, 0)
    y = jnp.moveaxis(jax.lax.map(lambda some: stream(some, values), x), 0, -3)
    return y.reshape(*y.shape[:-3], passes * each, -1)[..., :rows, :].astype(dtype)


def _stream(x: jax.Array, values: jax.Array) -> jax.Array:
    """x [B, in] times values [blocks, out, in / blocks], to [B, out]: one pass over the values.

    Written as one reduction of many results, for each of which XLA's loop keeps a register of sums: of each row with
    each of some parts of the values, which are read side by side. The last part begins earlier if they are uneven.
    XLA unrolls the loop over a block's inputs whole, and blocks follow each other in memory: 31 GB/s for 8 rows where
    undivided weights are read at 22 (AMD EPYC with AVX-512, two cores).
    """
    blocks, outputs, width = values.shape
    most = ROWS if width <= WIDTHS[-1] else SUMS
    count = max(1, min(PLACES, most // len(x), outputs))
    size = -(-outputs // count)
    begins = [min(i * size, outputs - size) for i in range(count)]
    x = x.reshape(len(x), blocks, width).swapaxes(0, 1)
    # A division keeps what x is made of out of the loop, where it would be computed anew for each output: XLA brings
    # no division into a loop that asks more than once. The divisor is one; it must not be known to be.
    x = x / jnp.where(jnp.isnan(x), 2, 1).astype(x.dtype)
    rows = range(x.shape[1])
    products = [values[:, begin : begin + size] * x[:, row, None] for begin in begins for row in rows]

    def add(sums: list[jax.Array], more: list[jax.Array]) -> list[jax.Array]:
        return [a + b for a, b in zip(sums, more, strict=True)]

    found = jax.lax.reduce(products, [np.zeros((), x.dtype)] * len(products), add, (2,))
    fresh = [i * size - begin for i, begin in enumerate(begins)]
    parts = [found[i * len(rows) + row][:, fresh[i] :] for row in rows for i in range(count)]
    return jnp.sum(jnp.concatenate(parts, axis=1), axis=0).reshape(len(rows), outputs)
