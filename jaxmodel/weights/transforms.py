"""Tree to tree: `(params, layout) -> params`. They nest: `lora(quantize(params, …), …)` is QLoRA."""

from __future__ import annotations

import fnmatch
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel.errors import InputError
from jaxmodel.weights import packing
from jaxmodel.weights.layout import Layout, map_weights, map_weights_with_path
from jaxmodel.weights.leaves import LowRank, Observed, Quantized, dense, is_leaf
from jaxmodel.weights.streamed import Streamed

KINDS = {"int8": 8, "int4": 4}
INT4_GROUP = 32

# Few bits pay for a search: the range is shrunk step by step (clipping the largest values, rounding all others more
# finely), each time with the least-squares scale for the rounded values, and the best of it is kept.
SHRINK_STEP, SHRINK_STEPS = 0.03, 15


def quantize(
    params: Any, layout: Any, kind: str = "int8", *, group: int | None = None, symmetric: bool = True, select: str = "*"
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


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _quantize(weight: jax.Array, bits: int, axis: int, group: int | None, symmetric: bool) -> Quantized:
    inputs = weight.shape[axis]
    bits = bits if inputs % 2 == 0 else 8
    groups = inputs // group if group and inputs % group == 0 else 1
    position = weight.ndim + axis
    split = weight.astype(jnp.float32).reshape(
        *weight.shape[:position], groups, inputs // groups, *weight.shape[position + 1 :]
    )
    rounding = _symmetric if symmetric else _asymmetric
    values, scale, zero_point = rounding(split, bits, position + 1)
    values = values.astype(jnp.int8).reshape(weight.shape)
    return Quantized(
        packing.pack(values, axis) if bits == 4 else values,
        jnp.squeeze(scale, position + 1),
        None if zero_point is None else jnp.squeeze(zero_point, position + 1).astype(jnp.int8),
        bits=bits,
        axis=axis,
    )


def _symmetric(split: jax.Array, bits: int, axis: int) -> tuple[jax.Array, jax.Array, None]:
    """Values and scales (kept as an axis of size one) of groups along `axis`."""
    half = 2 ** (bits - 1)
    largest = jnp.max(jnp.abs(split), axis, keepdims=True)
    if bits == 8:
        scale = jnp.maximum(largest, 1e-12) / (half - 1)
        return jnp.round(split / scale), scale, None
    # The largest value takes the one integer more that the negative side has: its sign goes into the scale.
    low, high = jnp.min(split, axis, keepdims=True), jnp.max(split, axis, keepdims=True)
    signed = jnp.where(largest > 0, jnp.where(high > -low, -high, -low), 1e-12) / half

    def attempt(shrink: jax.Array | float) -> tuple[jax.Array, jax.Array, jax.Array]:
        values = jnp.clip(jnp.round(split / (signed * shrink)), -half, half - 1)
        squares = jnp.sum(values**2, axis, keepdims=True)
        scale = jnp.where(squares > 0, jnp.sum(values * split, axis, keepdims=True) / squares, signed)
        return values, scale, jnp.sum((values * scale - split) ** 2, axis, keepdims=True)

    def keep_better(step: jax.Array, best: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        tried = attempt(1.0 - SHRINK_STEP * step)
        better = tried[2] < best[2]
        return tuple(jnp.where(better, t, b) for t, b in zip(tried, best, strict=True))

    values, scale, _ = jax.lax.fori_loop(1, SHRINK_STEPS, keep_better, attempt(1.0))
    return values, scale, None


def _asymmetric(split: jax.Array, bits: int, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Values, scales and zero points that spread the integers from the group's least to its greatest value."""
    half = 2 ** (bits - 1)
    high = jnp.maximum(jnp.max(split, axis, keepdims=True), 0.0)
    low = jnp.minimum(jnp.min(split, axis, keepdims=True), 0.0)
    scale = jnp.maximum(high - low, 1e-12) / (2 * half - 1)
    zero_point = jnp.clip(jnp.round(-low / scale) - half, -half, half - 1)
    return jnp.clip(jnp.round(split / scale) + zero_point, -half, half - 1), scale, zero_point


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


def stream(params: Any, layout: Any, tables: bool = True) -> Any:
    """Params with every matrix, and table if asked, as `Streamed`, dense if it was quantized.

    Adapters stay beside it, experts and all else as they are.
    """

    def apply(each: Layout, weight: Any) -> Any:
        if not each.multiplies or each.stack or isinstance(weight, Streamed) or (each.table and not tables):
            return weight
        if isinstance(weight, LowRank):
            return weight.replace(base=apply(each, weight.base))
        return Streamed.of(weight.dense() if is_leaf(weight) else weight, table=each.table)

    return map_weights(apply, layout, params)


def observe(params: Any, layout: Any) -> Any:
    """Params whose gradient, with respect to the `trainable` part, is xᵀx of every weight that multiplies."""

    def apply(each: Layout, weight: Any) -> Any:
        if not each.multiplies:
            return weight
        shape = jax.eval_shape(dense, weight).shape
        inputs = shape[-1] if each.table else shape[-2]
        return Observed(weight, jnp.zeros((*shape[:-2], inputs, inputs), jnp.float32))

    return map_weights(apply, layout, params)
