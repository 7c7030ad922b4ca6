"""Two signed nibbles a byte: sub-byte dtypes take a whole byte an element on most backends."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def pack(values: jax.Array, axis: int) -> jax.Array:
    """int8 in [-8, 7] to uint8 with half the length along `axis`; element 2i is the low nibble of byte i."""
    assert values.shape[axis] % 2 == 0, "nibbles come in pairs"
    nibbles = values.astype(jnp.uint8) & 0xF
    even = jax.lax.slice_in_dim(nibbles, 0, None, 2, axis % values.ndim)
    odd = jax.lax.slice_in_dim(nibbles, 1, None, 2, axis % values.ndim)
    return even | (odd << 4)


def unpack(packed: jax.Array, axis: int) -> jax.Array:
    """uint8 to int8 in [-8, 7] with twice the length along `axis`; undoes `pack`."""
    position = axis % packed.ndim
    signed = packed.astype(jnp.int8)
    low = jax.lax.shift_right_arithmetic(jax.lax.shift_left(signed, jnp.int8(4)), jnp.int8(4))
    high = jax.lax.shift_right_arithmetic(signed, jnp.int8(4))
    both = jnp.stack([low, high], axis=position + 1)
    return both.reshape(*packed.shape[:position], 2 * packed.shape[position], *packed.shape[position + 1 :])
