"""Tree to tree: `(params, layout) -> params`. They nest: `lora(quantize(params, …), …)` is QLoRA."""

from __future__ import annotations

import fnmatch
from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel.errors import InputError
from jaxmodel.weights import packing
from jaxmodel.weights.layout import Layout, map_weights, map_weights_with_path
from jaxmodel.weights.leaves import LowRank, Observed, Quantized, dense, is_leaf

KINDS = {"int8": 8, "int4": 4}
INT4_GROUP = 32

# Shrinking the range clips the largest values and rounds all others more finely; for few bits that pays
# (the search is over the clipped fraction of the group's largest magnitude).
SHRINK = tuple(1.0 - 0.025 * step for step in range(17))


def quantize(
    params: Any,
    layout: Any,
    kind: str = "int8",
    *,
    group: int | None = None,
    symmetric: bool = True,
    select: str = "*",
) -> Any:
    """Params with every multiplying weight as `Quantized`; norms, biases and routers stay as they are.

    Args:
      params: dense weights, or leaves around dense weights (the base is quantized).
      layout: the model's layout.
      kind: "int8" (one scale an output channel unless `group` is given) or "int4" (a scale for each `group`
        of inputs, 32 by default, searched for the least squared error).
      group: inputs that share a scale; where it does not divide a weight's inputs, that weight gets one scale a
        channel. A weight with an odd number of inputs cannot be packed and takes int8.
      symmetric: no zero point.
      select: a glob over paths ("stack/*"); the rest stays dense.

    Raises:
      InputError: unknown kind, or a weight that is quantized already.
    """
    if kind not in KINDS:
        raise InputError(f"cannot quantize to {kind!r}: choose one of {', '.join(KINDS)}")
    if group is not None and (group < 2 or group % 2):
        raise InputError(f"group={group}: a quantization group needs an even number of inputs, at least 2")
    size = group or (INT4_GROUP if kind == "int4" else None)

    def apply(path: str, each: Layout, weight: Any) -> Any:
        if not each.multiplies or not fnmatch.fnmatchcase(path, select):
            return weight
        if isinstance(weight, Quantized):
            raise InputError(f"{path} is quantized already: start from the dense checkpoint")
        if is_leaf(weight):
            return weight.replace(base=apply(path, each, weight.base))
        return _quantize(weight, KINDS[kind], -1 if each.table else -2, size, symmetric)

    return map_weights_with_path(apply, layout, params)


def _quantize(weight: jax.Array, bits: int, axis: int, group: int | None, symmetric: bool) -> Quantized:
    inputs = weight.shape[axis]
    bits = bits if inputs % 2 == 0 else 8
    groups = inputs // group if group and inputs % group == 0 else 1
    position = weight.ndim + axis
    shape = (*weight.shape[:position], groups, inputs // groups, *weight.shape[position + 1 :])
    split = weight.astype(jnp.float32).reshape(shape)
    # `group_axis` is the axis inside one group: scales keep it with size one while we compute.
    group_axis = position + 1
    top = 2 ** (bits - 1) - 1
    high = jnp.max(split, group_axis, keepdims=True)
    low = jnp.min(split, group_axis, keepdims=True)
    if symmetric:
        full, zero = jnp.maximum(jnp.maximum(high, -low), 1e-12) / top, None
    else:
        high, low = jnp.maximum(high, 0.0), jnp.minimum(low, 0.0)
        full = jnp.maximum(high - low, 1e-12) / (2 * top + 1)
        zero = jnp.clip(jnp.round(-low / full) - (top + 1), -(top + 1), top)

    def rounded(scale: jax.Array) -> jax.Array:
        return jnp.clip(jnp.round(split / scale) + (0 if zero is None else zero), -(top + 1), top)

    def error(scale: jax.Array) -> jax.Array:
        back = (rounded(scale) - (0 if zero is None else zero)) * scale
        return jnp.sum((back - split) ** 2, group_axis, keepdims=True)

    scale = full
    if bits < 8 and symmetric:
        best = error(full)
        for shrink in SHRINK[1:]:
            tried = error(full * shrink)
            scale = jnp.where(tried < best, full * shrink, scale)
            best = jnp.minimum(tried, best)
    values = rounded(scale).astype(jnp.int8).reshape(weight.shape)
    zero_point = None if zero is None else jnp.squeeze(zero, group_axis).astype(jnp.int8)
    return Quantized(
        packing.pack(values, axis) if bits == 4 else values,
        jnp.squeeze(scale, group_axis),
        zero_point,
        bits=bits,
        axis=axis,
    )


def lora(
    params: Any,
    layout: Any,
    *,
    rank: int,
    key: jax.Array,
    alpha: float | None = None,
    select: str = "stack/*",
    dtype: Any = jnp.float32,
) -> Any:
    """Params with a trainable low-rank update beside each selected weight (LoRA, arXiv:2106.09685).

    The update starts at zero (`b` is zeros, `a` uniform as in the reference), so the model starts at its base.

    Args:
      params: weights of any type.
      layout: the model's layout.
      rank: width of the update.
      key: makes `a`; each weight folds in its own path.
      alpha: the update is scaled by alpha / rank; `rank` by default, that is, by one.
      select: a glob over paths; what matches and has an arrow is adapted.
      dtype: of the factors.

    Raises:
      InputError: rank below one, nothing selected, or a weight that is adapted already.
    """
    if rank < 1:
        raise InputError(f"rank={rank}: a low-rank update needs a rank of at least 1")
    scale = (rank if alpha is None else alpha) / rank
    adapted: list[str] = []

    def apply(path: str, each: Layout, weight: Any) -> Any:
        if not each.multiplies or not fnmatch.fnmatchcase(path, select):
            return weight
        if isinstance(weight, LowRank):
            raise InputError(f"{path} has an adapter already: merge it first")
        adapted.append(path)
        shape = jax.eval_shape(dense, weight).shape
        stack = shape[:-2]
        inputs, outputs = (shape[-1], shape[-2]) if each.table else (shape[-2], shape[-1])
        # A hash of the path that does not change from run to run (Python's own does).
        mine = jax.random.fold_in(key, sum(ord(c) * 31**i for i, c in enumerate(path)) % 2**31)
        limit = inputs**-0.5
        a = jax.random.uniform(mine, (*stack, inputs, rank), dtype, -limit, limit)
        return LowRank(weight, a, jnp.zeros((*stack, rank, outputs), dtype), scale=scale, table=each.table)

    made = map_weights_with_path(apply, layout, params)
    if not adapted:
        raise InputError(f"select={select!r} matches no weight that multiplies: try select='*'")
    return made


def merge(params: Any, layout: Any) -> Any:
    """Params with every adapter merged into a dense weight of the same values; other leaves stay."""
    return map_weights(lambda _, weight: weight.dense() if isinstance(weight, LowRank) else weight, layout, params)


def densify(params: Any, layout: Any, dtype: Any = jnp.float32) -> Any:
    """Params with every leaf as the plain array it stands for."""
    return map_weights(lambda _, weight: weight.dense(dtype) if is_leaf(weight) else weight, layout, params)


def observe(params: Any, layout: Any) -> Any:
    """Params whose gradient, with respect to the `trainable` part, is xᵀx of every weight that multiplies."""

    def apply(each: Layout, weight: Any) -> Any:
        if not each.multiplies:
            return weight
        shape = jax.eval_shape(dense, weight).shape
        inputs = shape[-1] if each.table else shape[-2]
        return Observed(weight, jnp.zeros((*shape[:-2], inputs, inputs), jnp.float32))

    return map_weights(apply, layout, params)
