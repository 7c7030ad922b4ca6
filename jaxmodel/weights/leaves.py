"""The leaf types: values that know how to multiply.

A leaf holds arrays `[stack…, in, out]` (a table: `[stack…, out, in]`) and says how to multiply, embed and become
dense. Static fields use negative axes and no shapes, since a scan strips the leading dims of the arrays and
leaves the static fields alone; for the same reason nothing is validated on construction.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from jaxmodel.weights import packing
from jaxmodel.weights.layout import Layout

LEAVES: dict[str, type[Leaf]] = {}


class Leaf:
    """What every leaf type offers. Abstract; a leaf type is one frozen dataclass registered by `leaf`."""

    trainable: ClassVar[tuple[str, ...]] = ()
    arrays: ClassVar[tuple[str, ...]] = ()
    static: ClassVar[tuple[str, ...]] = ()

    def matmul(self, x: jax.Array, *, table: bool = False) -> jax.Array:
        """x [..., in] to [..., out], in x's dtype."""
        raise NotImplementedError(type(self).__name__)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        """Rows of a table: ids [...] to [..., in]."""
        raise NotImplementedError(type(self).__name__)

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        """x [N, in], rows sorted by group, sizes [G] rows a group, to [N, out]; one matrix a group."""
        raise NotImplementedError(type(self).__name__)

    def dense(self, dtype: Any = jnp.float32) -> jax.Array:
        """The plain array this leaf stands for."""
        raise NotImplementedError(type(self).__name__)

    def axes(self, layout: Layout) -> Self:
        """This leaf with, in place of each array, the tuple of logical dims behind each of its axes."""
        raise NotImplementedError(type(self).__name__)

    def replace(self, **fields: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **fields)  # type: ignore[type-var]


def leaf(cls: type[Leaf]) -> Any:
    """Make a class a leaf type: a frozen dataclass, a pytree node, and known by name to checkpoints."""
    made: Any = dataclasses.dataclass(frozen=True)(cls)
    fields = [f.name for f in dataclasses.fields(made)]
    made.arrays = tuple(f for f in fields if f not in made.static)
    jax.tree_util.register_dataclass(made, data_fields=list(made.arrays), meta_fields=list(made.static))
    LEAVES[cls.__name__] = made
    return made


def is_leaf(node: Any) -> bool:
    """Whether a tree node is a weight that is more than an array."""
    return isinstance(node, Leaf)


def dense(weight: Any, dtype: Any = jnp.float32) -> jax.Array:
    """The plain array of any weight."""
    return weight.dense(dtype) if is_leaf(weight) else weight.astype(dtype)


def matmul(x: jax.Array, weight: Any, *, table: bool = False) -> jax.Array:
    """x [..., in] times a weight of any type, to [..., out] in x's dtype; a table is stored [out, in]."""
    if is_leaf(weight):
        return weight.matmul(x, table=table)
    weight = weight.astype(x.dtype)
    # As one matrix: to sum a weight's gradient over two axes of x, XLA's CPU compiler turns a copy of all x first.
    rows = x.reshape(-1, x.shape[-1])
    # The table first: it is by far the larger, and a CPU streams the first operand.
    y = jax.lax.dot_general(weight, rows, (((1,), (1,)), ((), ()))).T if table else rows @ weight
    return y.reshape(*x.shape[:-1], y.shape[-1])


def take(weight: Any, ids: jax.Array, dtype: Any) -> jax.Array:
    """Rows `ids` [...] of a table of any type, to [..., in] in `dtype`."""
    if is_leaf(weight):
        return weight.take(ids, dtype)
    return jnp.take(weight, ids, axis=0).astype(dtype)


def grouped(x: jax.Array, weight: Any, sizes: jax.Array) -> jax.Array:
    """x [N, in] with rows sorted by group times weight [G, in, out], sizes int32[G], to [N, out]."""
    if is_leaf(weight):
        return weight.grouped(x, sizes)
    return jax.lax.ragged_dot(x, weight.astype(x.dtype), sizes)


@leaf
class Quantized(Leaf):
    """Integer values with a scale per channel or per group of `in`: dense = (values - zero_point) * scale.

    `values` is int8 [..., in, out], or, when `bits` is 4, uint8 with two nibbles a byte along `in`; `scale` and
    `zero_point` (None when symmetric) are [..., groups, out], of a table [..., out, groups]. `axis` is the array
    axis of `in`: -2, or -1 for a table. The dense weight lives only inside the product: its backward pass makes it
    again.
    """

    values: Any
    scale: Any
    zero_point: Any = None
    bits: int = 8
    axis: int = -2

    static: ClassVar[tuple[str, ...]] = ("bits", "axis")

    def matmul(self, x: jax.Array, *, table: bool = False) -> jax.Array:
        assert table == (self.axis == -1), "a table is quantized along its last axis"
        return _quantized_matmul(x, self)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        rows = jax.tree.map(lambda array: jnp.take(array, ids, axis=0), self)
        return rows.dense(dtype)

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        return _quantized_grouped(x, self, sizes)

    def dense(self, dtype: Any = jnp.float32) -> jax.Array:
        values = packing.unpack(self.values, self.axis) if self.bits == 4 else self.values
        groups = self.scale.shape[self.axis]
        split = _split(values, self.axis, groups).astype(self.scale.dtype)
        if self.zero_point is not None:
            split = split - jnp.expand_dims(self.zero_point, self.axis).astype(self.scale.dtype)
        return (split * jnp.expand_dims(self.scale, self.axis)).reshape(values.shape).astype(dtype)

    def axes(self, layout: Layout) -> Quantized:
        zero_point = None if self.zero_point is None else layout.axes
        return self.replace(values=layout.axes, scale=layout.axes, zero_point=zero_point)


def _split(values: jax.Array, axis: int, groups: int) -> jax.Array:
    """[..., in, ...] to [..., groups, in / groups, ...]."""
    position = values.ndim + axis
    shape = values.shape
    return values.reshape(*shape[:position], groups, shape[position] // groups, *shape[position + 1 :])


@jax.custom_vjp
def _quantized_matmul(x: jax.Array, weight: Quantized) -> jax.Array:
    return matmul(x, weight.dense(x.dtype), table=weight.axis == -1)


def _quantized_matmul_forward(x: jax.Array, weight: Quantized) -> tuple[jax.Array, Quantized]:
    return _quantized_matmul(x, weight), weight


def _quantized_matmul_backward(weight: Quantized, g: jax.Array) -> tuple[jax.Array, None]:
    return matmul(g, weight.dense(g.dtype), table=weight.axis != -1), None


_quantized_matmul.defvjp(_quantized_matmul_forward, _quantized_matmul_backward)


@jax.custom_vjp
def _quantized_grouped(x: jax.Array, weight: Quantized, sizes: jax.Array) -> jax.Array:
    return grouped(x, weight.dense(x.dtype), sizes)


def _quantized_grouped_forward(x: jax.Array, weight: Quantized, sizes: jax.Array):
    return _quantized_grouped(x, weight, sizes), (weight, sizes)


def _quantized_grouped_backward(saved: tuple[Quantized, jax.Array], g: jax.Array):
    weight, sizes = saved
    return grouped(g, jnp.swapaxes(weight.dense(g.dtype), -1, -2), sizes), None, None


_quantized_grouped.defvjp(_quantized_grouped_forward, _quantized_grouped_backward)


@leaf
class LowRank(Leaf):
    """A low-rank update beside any base weight, base + a·b·scale (LoRA, arXiv:2106.09685).

    `a` is [..., in, rank] and `b` [..., rank, out], also around a table; only they are trained.
    """

    base: Any
    a: Any
    b: Any
    scale: float = 1.0
    table: bool = False

    static: ClassVar[tuple[str, ...]] = ("scale", "table")
    trainable: ClassVar[tuple[str, ...]] = ("a", "b")

    def matmul(self, x: jax.Array, *, table: bool = False) -> jax.Array:
        return matmul(x, self.base, table=table) + matmul(matmul(x, self.a), self.b) * self.scale

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        rows = jnp.take(jnp.swapaxes(self.b, -1, -2), ids, axis=0).astype(dtype)
        return take(self.base, ids, dtype) + matmul(rows, self.a, table=True) * self.scale

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        return grouped(x, self.base, sizes) + grouped(grouped(x, self.a, sizes), self.b, sizes) * self.scale

    def dense(self, dtype: Any = jnp.float32) -> jax.Array:
        update = jnp.matmul(self.a.astype(jnp.float32), self.b.astype(jnp.float32)) * self.scale
        return (dense(self.base) + (jnp.swapaxes(update, -1, -2) if self.table else update)).astype(dtype)

    def axes(self, layout: Layout) -> LowRank:
        stack = tuple((name,) for name in layout.stack)
        base = self.base.axes(layout) if is_leaf(self.base) else layout.axes
        return self.replace(base=base, a=(*stack, layout.contracted, ()), b=(*stack, (), layout.produced))


@leaf
class Observed(Leaf):
    """Calibration: the base, and as the "gradient" of `hessian` [..., in, in] float32 the sum of xᵀx it met.

    The sum runs over every row, padding too; a weight used twice adds up. Looking up rows (`take`) meets no x.
    """

    base: Any
    hessian: Any

    trainable: ClassVar[tuple[str, ...]] = ("hessian",)

    def matmul(self, x: jax.Array, *, table: bool = False) -> jax.Array:
        return matmul(_observe(x, self.hessian), self.base, table=table)

    def take(self, ids: jax.Array, dtype: Any) -> jax.Array:
        return take(self.base, ids, dtype)

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        return grouped(_observe_grouped(x, self.hessian, sizes), self.base, sizes)

    def dense(self, dtype: Any = jnp.float32) -> jax.Array:
        return dense(self.base, dtype)

    def axes(self, layout: Layout) -> Observed:
        stack = tuple((name,) for name in layout.stack)
        base = self.base.axes(layout) if is_leaf(self.base) else layout.axes
        return self.replace(base=base, hessian=(*stack, (), ()))


@jax.custom_vjp
def _observe(x: jax.Array, hessian: jax.Array) -> jax.Array:
    del hessian
    return x


def _observe_forward(x: jax.Array, hessian: jax.Array) -> tuple[jax.Array, jax.Array]:
    del hessian
    return x, x


def _observe_backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    return g, rows.T @ rows


_observe.defvjp(_observe_forward, _observe_backward)


@jax.custom_vjp
def _observe_grouped(x: jax.Array, hessian: jax.Array, sizes: jax.Array) -> jax.Array:
    del hessian, sizes
    return x


def _observe_grouped_forward(x: jax.Array, hessian: jax.Array, sizes: jax.Array):
    del hessian
    return x, (x, sizes)


def _observe_grouped_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array):
    x, sizes = saved
    last = jnp.cumsum(sizes)
    row = jnp.arange(x.shape[0])[:, None]
    member = ((row >= last - sizes) & (row < last)).astype(jnp.float32)
    rows = x.astype(jnp.float32)
    return g, jnp.einsum("ng,ni,nj->gij", member, rows, rows), None


_observe_grouped.defvjp(_observe_grouped_forward, _observe_grouped_backward)
