"""The one mask: who may attend to whom, from positions, segments, padding, causality and window."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

# The position of a token that is not there: padding, or a cache slot that was never written.
ABSENT = -1


class Source(NamedTuple):
    """What an encoder read: hidden [B,S,E], and positions int32[B,S], ABSENT where there is padding."""

    hidden: jax.Array
    positions: jax.Array


class Seen(NamedTuple):
    """What all blocks are told of the tokens whose vectors they are given.

    Attributes:
      positions: int32[B or 1,T], ABSENT where there is padding.
      segments: int32[B,T] packed documents; None: a row is one.
      mask: bool[B,T], true where a token is real; None: all are.
      kept: keys, values and their positions that earlier blocks keep for later ones, by window.
      source: what cross attention looks at; None: what a cache keeps of it.
      relative: float32[H,N], as `Relative` gives it.
      pieces: of the queries in attention, see there.
      train: whether things are dropped out.
    """

    positions: jax.Array
    segments: jax.Array | None = None
    mask: jax.Array | None = None
    kept: Mapping[str, tuple[jax.Array, jax.Array, jax.Array]] = {}
    source: Source | None = None
    relative: jax.Array | None = None
    pieces: int = 1
    train: bool = False


def positions_of(
    batch_size: int, length: int, mask: jax.Array | None = None, segments: jax.Array | None = None
) -> jax.Array:
    """int32[B,T] positions that count real tokens only, so left and right padding agree; padding is ABSENT.

    They restart with every segment; segment 0 is padding, and then `mask` is not looked at.
    """
    if segments is not None:
        index = jnp.arange(length, dtype=jnp.int32)
        return jnp.where(segments > 0, index - segment_starts(segments), ABSENT)
    if mask is None:
        return jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch_size, length))
    return jnp.where(mask, jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, ABSENT)


def segment_starts(segments: jax.Array) -> jax.Array:
    """int32[B,T]: where in its row a token's segment begins."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)
    begins = segments != jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
    return jax.lax.cummax(jnp.where(begins, index, 0), axis=1)


def attention_mask(
    queries: jax.Array, keys: jax.Array, segments: tuple[jax.Array | None, ...], *, causal: bool, window: int | None
) -> jax.Array:
    """bool[B,T,S], true where a query may see a key; [B,1,S] where every query sees alike.

    Args:
      queries: int32[B,T] positions of the queries; ABSENT where there is none.
      keys: int32[B,S] positions of the keys; ABSENT where there is none.
      segments: int32[B,T] of the queries and int32[B,S] of the keys, packed documents: attention stays inside one.
        Positions restart in each.
      causal: a query sees keys at its own position and before.
      window: a query sees this many positions, its own included (both ways when not causal).
    """
    q, k = queries[:, :, None], keys[:, None, :]
    seen = k >= 0
    if causal:
        seen = seen & (k <= q)
    if window is not None:
        seen = seen & (q - k < window)
        if not causal:
            seen = seen & (k - q < window)
    mine, theirs = segments
    if mine is not None and theirs is not None:
        seen = seen & (mine[:, :, None] == theirs[:, None, :])
    return seen
