"""Caches: what a block remembers of earlier tokens.

That of attention has one method, `append(keys, values, positions) -> (cache, keys, values, positions)`: it takes
what the new tokens bring and returns itself, grown, and everything that the new tokens' queries may look at.
Padding has position ABSENT and is never seen, so rows of different lengths share a batch, padded left or right.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel.models.configs import Transformer
from jaxmodel.nn.mask import ABSENT

Read = tuple[jax.Array, jax.Array, jax.Array]


class Cache:
    """What a block keeps, of any kind: a dataclass of arrays, by which `unstack` knows the blocks of a stack."""


class AttentionCache(Cache):
    """keys, values [B,T,H,K] and positions int32[B,T] in; the grown cache and all that is visible out."""

    def append(self, keys: jax.Array, values: jax.Array, positions: jax.Array) -> tuple[AttentionCache, Read]:
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FullCache(AttentionCache):
    """Every token so far, in the order it came: keys and values [B,H,S,K], positions int32[B,S], int32[] used.

    A head's tokens lie together, as attention multiplies them: what is read is not copied first.
    """

    keys: jax.Array
    values: jax.Array
    positions: jax.Array
    used: jax.Array

    def append(self, keys: jax.Array, values: jax.Array, positions: jax.Array) -> tuple[FullCache, Read]:
        """Write at the next free slots; the caller sees to it that S is not exceeded."""
        at = self.used

        def write(old: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, _heads_first(new).astype(old.dtype), at, axis=2)

        written = jax.lax.dynamic_update_slice_in_dim(self.positions, positions, at, axis=1)
        grown = FullCache(write(self.keys, keys), write(self.values, values), written, at + positions.shape[1])
        return grown, (_heads_first(grown.keys), _heads_first(grown.values), written)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
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
        keys, values = (_heads_first(x).astype(self.keys.dtype) for x in (keys, values))
        return dataclasses.replace(self, keys=keys, values=values, positions=positions)

    def source(self) -> Read:
        """What `kept` was given."""
        return _heads_first(self.keys), _heads_first(self.values), self.positions


def _heads_first(x: jax.Array) -> jax.Array:
    """[B,T,H,K] to [B,H,T,K], and back."""
    return x.transpose(0, 2, 1, 3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlidingCache(AttentionCache):
    """The last S tokens of each row in a ring: a token at position p lies in slot p mod S."""

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
        grown = SlidingCache(
            self.keys.at[row, slot].set(keys.astype(self.keys.dtype), mode="drop"),
            self.values.at[row, slot].set(values.astype(self.values.dtype), mode="drop"),
            self.positions.at[row, slot].set(positions, mode="drop"),
        )
        if positions.shape[1] == 1:
            return grown, (grown.keys, grown.values, grown.positions)
        return grown, (
            jnp.concatenate([self.keys, keys.astype(self.keys.dtype)], axis=1),
            jnp.concatenate([self.values, values.astype(self.values.dtype)], axis=1),
            jnp.concatenate([self.positions, positions], axis=1),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RecurrentCache(Cache):
    """What a recurrence keeps, however long the text: the last tokens that its convolutions see, and its state.

    query, key [B,W-1,G,N] and value [B,W-1,H,P], before the convolution; state float32[B,H,N,P].
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    state: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HybridCache(Cache):
    """What attention and a recurrence side by side keep."""

    attention: AttentionCache
    recurrence: RecurrentCache


def block_cache(config: Transformer, batch_size: int, length: int, dtype: Any) -> Cache:
    """An empty cache of one block, by its own config."""
    found: list[Any] = []
    if config.has("attention"):
        a = config.attention
        width = a.head_dim or config.embed_dim // a.num_heads
        kept = a.num_kv_heads or a.num_heads, (width, width)
        if a.latent is not None:
            kept = 1, (a.latent.kv_rank, a.latent.rope_dim)
        found.append(make_cache(batch_size, length, a.window, *kept, dtype))
    if config.has("recurrence"):
        r = config.recurrence
        assert r is not None
        pair = jnp.zeros((batch_size, r.kernel - 1, r.groups, r.state_dim), dtype)
        value = jnp.zeros((batch_size, r.kernel - 1, r.num_heads, r.head_dim), dtype)
        state = jnp.zeros((batch_size, r.num_heads, r.state_dim, r.head_dim), jnp.float32)
        found.append(RecurrentCache(pair, pair, value, state))
    cache = HybridCache(*found) if len(found) > 1 else found[0]
    if (cross := config.cross) is None:
        return cache
    heads, width = (cross.num_kv_heads or cross.num_heads, cross.head_dim or config.embed_dim // cross.num_heads)
    source = jnp.zeros((batch_size, heads, 0, width), dtype)
    return CrossCache(cache, source, source, jnp.zeros((batch_size, 0), jnp.int32))


def make_cache(
    batch_size: int, length: int, window: int | None, heads: int, widths: tuple[int, int], dtype: Any
) -> FullCache | SlidingCache:
    """An empty cache for `length` tokens a row; a sliding one where the window is shorter than that.

    `widths` are those of a key's and a value's head, or of the narrow vector and the turned key (`parts.Latent`).
    """
    slots = length if window is None else min(window, length)
    positions = jnp.full((batch_size, slots), ABSENT, jnp.int32)
    if slots == length:
        keys, values = (jnp.zeros((batch_size, heads, slots, width), dtype) for width in widths)
        return FullCache(keys, values, positions, used=jnp.zeros((), jnp.int32))
    keys, values = (jnp.zeros((batch_size, slots, heads, width), dtype) for width in widths)
    return SlidingCache(keys, values, positions)
