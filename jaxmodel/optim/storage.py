"""Averages kept in fewer bits: bfloat16, or eight bits a number with a scale for each block.

What moves by less than the distance of two stored numbers would never move: an average of decay 0.999 in bfloat16
stands still. Numbers are therefore rounded up or down at random, the nearer the likelier, so that they are right
on average. The random bits are a hash of position and step: a run is the same again, on any mesh.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

BLOCK = 256  # numbers that share a scale, at most


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Int8:
    """Numbers in eight bits: their magnitudes, over the largest of their block, to a power of evenly spaced levels.

    Small numbers matter most (Adam divides by the root of one), so levels are dense near zero: squares of n / 127
    with a sign in int8; fourth powers of (n + 1) / 256 in uint8 for what is never negative, and never zero, so
    that nothing is divided by it.

    Attributes:
      values: int8 or uint8 [..., n].
      scale: float32 [..., blocks], the largest magnitude of each block.
    """

    values: jax.Array
    scale: jax.Array

    def dense(self) -> jax.Array:
        """float32 [..., n]."""
        code = self.values.astype(jnp.float32)
        share = code * jnp.abs(code) / 127**2 if self.values.dtype == jnp.int8 else _square_level(code)
        return (_blocks(share, self.scale.shape[-1]) * self.scale[..., None]).reshape(code.shape)


def read(kept: Any) -> jax.Array:
    """What was stored, as float32."""
    return kept.dense() if isinstance(kept, Int8) else kept.astype(jnp.float32)


def zeros(shape: tuple[int, ...], dtype: str, negative: bool) -> Any:
    """What `store` makes of zeros."""
    if dtype != "int8":
        return jnp.zeros(shape, dtype)
    scale = jnp.zeros((*shape[:-1], _num_blocks(shape[-1])), jnp.float32)
    return Int8(jnp.zeros(shape, jnp.int8 if negative else jnp.uint8), scale)


def store(x: jax.Array, dtype: str, negative: bool, count: jax.Array, salt: int) -> Any:
    """An average as it is kept.

    Args:
      x: float32.
      dtype: "float32", "bfloat16" or "int8".
      negative: whether x may be below zero.
      count: int32[], the step; with `salt` it decides which numbers are rounded up.
      salt: another for each array.
    """
    if dtype == "float32":
        return x
    noise = _noise(x.shape, count, salt)
    if dtype == "bfloat16":
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (noise >> 16)
        return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    assert dtype == "int8", dtype
    level, top = (_mean_level, 127) if negative else (_square_level, 255)
    blocks = _blocks(jnp.abs(x), _num_blocks(x.shape[-1]))
    scale = jnp.max(blocks, -1)
    share = (blocks / jnp.where(scale > 0, scale, 1)[..., None]).reshape(x.shape)
    root = jnp.sqrt(share) * 127 if negative else jnp.sqrt(jnp.sqrt(share)) * 256 - 1
    code = jnp.clip(jnp.floor(root), 0, top - 1)
    below, above = level(code), level(code + 1)
    code += (noise >> 8).astype(jnp.float32) * 2**-24 * (above - below) < share - below
    code = code * jnp.sign(x) if negative else code
    return Int8(code.astype(jnp.int8 if negative else jnp.uint8), scale)


def _mean_level(code: jax.Array) -> jax.Array:
    return jnp.square(code / 127)


def _square_level(code: jax.Array) -> jax.Array:
    return jnp.square(jnp.square((code + 1) / 256))


def _num_blocks(size: int) -> int:
    """How many blocks an axis is cut into: as large as they may be, all of one size, or one where none fits well."""
    return next((size // block for block in range(BLOCK, 31, -1) if size % block == 0), 1)


def _blocks(x: jax.Array, blocks: int) -> jax.Array:
    return x.reshape(*x.shape[:-1], blocks, x.shape[-1] // blocks)


def _noise(shape: tuple[int, ...], count: jax.Array, salt: int) -> jax.Array:
    """uint32 of a shape, another for each count (int32[]) and salt: a hash (murmur3's last steps) of the position."""
    position = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        position += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    return _mixed(position ^ _mixed(count.astype(jnp.uint32) + jnp.uint32(salt * 0x9E3779B9 % 2**32)))


def _mixed(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
