"""Caches: what a block remembers of earlier tokens.

That of attention has one method, `append(keys, values, positions) -> (cache, (keys, values, positions))`: it takes
what the new tokens bring and returns itself, grown, and everything that the new tokens' queries may look at.
Padding has position ABSENT and is never seen, so rows of different lengths share a batch, padded left or right.
"""

from __future__ import annotations

import dataclasses
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp

from jaxmodel import weights
from jaxmodel.models.configs import Transformer
from jaxmodel.nn.layer import STABLE
from jaxmodel.nn.mask import ABSENT

Read = tuple[jax.Array, jax.Array, jax.Array]


@dataclass_transform(frozen_default=True)
class Cache:
    """What a block keeps, of any kind: a frozen dataclass of arrays, by which `unstack` knows the blocks of a stack."""

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


class FullCache(Cache):
    """Every token so far, in the order it came: keys [B,H,S,K], values [B,H,K,S], positions int32[B,S], int32[] used.

    What attention sums over lies together: what is read is not copied first. `multiply` is how it shall be read:
    by `weights.streamed_matmul` in a loop that is compiled for that.
    """

    keys: jax.Array
    values: jax.Array
    positions: jax.Array
    used: jax.Array
    multiply: weights.Contraction = dataclasses.field(default=weights.contract, metadata={"static": True})

    def append(self, keys: jax.Array, values: jax.Array, positions: jax.Array) -> tuple[FullCache, Read]:
        """Write at the next free slots; the caller sees to it that S is not exceeded."""

        def write(old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), self.used, axis)

        keys, values = write(self.keys, keys.swapaxes(1, 2), 2), write(self.values, values.transpose(0, 2, 3, 1), 3)
        used, positions = self.used + positions.shape[1], write(self.positions, positions, 1)
        grown = FullCache(keys, values, positions, used, self.multiply)
        return grown, (keys.swapaxes(1, 2), values.transpose(0, 3, 1, 2), positions)


class SlidingCache(Cache):
    """The last S tokens of each row in a ring, [B,S,H,K]: a token at position p lies in slot p mod S."""

    keys: jax.Array
    values: jax.Array
    positions: jax.Array

    def append(self, keys: jax.Array, values: jax.Array, positions: jax.Array) -> tuple[SlidingCache, Read]:
        """Write the newest tokens over the oldest. Several at once also need to see what they overwrite."""
        slots = self.positions.shape[1]
        # Tokens that the same call pushes out again are not written: a slot is written once.
        newest = jnp.max(positions, axis=1, keepdims=True)
        stays = (positions >= 0) & (positions > newest - slots)
        slot = jnp.where(stays, positions % slots, slots)  # out of bounds: dropped
        row = jnp.arange(positions.shape[0])[:, None]
        new = SlidingCache(keys.astype(self.keys.dtype), values.astype(self.values.dtype), positions)
        grown = jax.tree.map(lambda old, each: old.at[row, slot].set(each, mode="drop"), self, new)
        seen = grown if positions.shape[1] == 1 else jax.tree.map(lambda *both: jnp.concatenate(both, 1), self, new)
        return grown, (seen.keys, seen.values, seen.positions)


def appended(cache: Any, keys: jax.Array, values: jax.Array, positions: jax.Array) -> tuple[Any, Read]:
    """The grown cache, and all that is visible: what there is now, where there is none."""
    return (None, (keys, values, positions)) if cache is None else cache.append(keys, values, positions)


class CrossCache(Cache):
    """A cache of a decoder's own tokens, and what its block sees of the source: none, S=0, until there is one.

    Keys and values [B,H,S,K], positions int32[B,S].
    """

    own: Cache
    keys: jax.Array
    values: jax.Array
    positions: jax.Array

    def kept(self, keys: jax.Array, values: jax.Array, positions: jax.Array) -> CrossCache:
        """With another source."""
        keys, values = (x.swapaxes(1, 2).astype(self.keys.dtype) for x in (keys, values))
        return dataclasses.replace(self, keys=keys, values=values, positions=positions)

    def source(self) -> Read:
        """What `kept` was given."""
        return self.keys.swapaxes(1, 2), self.values.swapaxes(1, 2), self.positions


class RecurrentCache(Cache):
    """What a recurrence keeps, however long the text: the last tokens that its convolutions see, and its state.

    query, key [B,W-1,G,N] and value [B,W-1,H,P], before the convolution; state float32[B,H,N,P].
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    state: jax.Array


class HybridCache(Cache):
    """What attention and a recurrence side by side keep."""

    attention: FullCache | SlidingCache
    recurrence: RecurrentCache


def block_cache(config: Transformer, batch_size: int, length: int, dtype: Any) -> Cache:
    """An empty cache of one block for `length` tokens a row, by its own config."""

    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros((batch_size, *shape), dtype)

    found: list[Any] = []
    if config.has("attention"):
        a, (_, heads, width) = config.attention, config.attention.sizes(config.embed_dim)
        heads, widths = (heads, (width, width)) if a.latent is None else (1, (a.latent.kv_rank, a.latent.rope_dim))
        slots = min(a.window or length, 1 if a.sharing == "reuse" else length)  # that one is never written
        shape = (heads, slots) if slots == length else (slots, heads)
        keys, values = (zeros(*shape, each) for each in widths)
        values = jnp.swapaxes(values, -1, -2) if slots == length else values
        kept = keys, values, jnp.full((batch_size, slots), ABSENT, jnp.int32)
        found.append(FullCache(*kept, jnp.zeros((), jnp.int32)) if slots == length else SlidingCache(*kept))
    if (r := config.recurrence) is not None and config.has("recurrence"):
        pair, value = zeros(r.kernel - 1, r.groups, r.state_dim), zeros(r.kernel - 1, r.num_heads, r.head_dim)
        state = jnp.zeros((batch_size, r.num_heads, r.state_dim, r.head_dim), STABLE)
        found.append(RecurrentCache(pair, pair, value, state))
    cache = HybridCache(*found) if len(found) > 1 else found[0]
    if config.cross is None:
        return cache
    _, heads, width = config.cross.sizes(config.embed_dim)
    source = zeros(heads, 0, width)
    return CrossCache(cache, source, source, jnp.zeros((batch_size, 0), jnp.int32))
