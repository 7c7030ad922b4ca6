"""Linear recurrences in place of attention: a matrix of state a head, that each token fades and writes to.

B batch, T time, D model dim, H heads, G groups (heads of queries and keys), R = H/G, N state dim (width of queries and
keys), P head dim (of values), Q tokens of a chunk, W kernel of the convolution.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmodel.models import parts
from jaxmodel.models.configs import Transformer
from jaxmodel.nn.attention import UNSEEN
from jaxmodel.nn.cache import RecurrentCache
from jaxmodel.nn.layer import STABLE, Half, compact, normal, ones, scaled, zeros
from jaxmodel.nn.mask import Seen
from jaxmodel.nn.norm import rms_normalize

SCALED = ("gate", "value", "key", "query", "step")  # what `scales` are of


class Inputs(NamedTuple):
    """What tokens bring to a recurrence, float32; a token whose decay and strength are 0 changes nothing.

    Attributes:
      queries: [B,T,G,N], that read the state.
      keys: [B,T,G,N], where it is written.
      values: [B,T,G,R,P], what is.
      decay: [B,T,G,R], logarithm of what stays of the state.
      strength: [B,T,G,R], of writing.
      segments: int32[B,T], packed documents, each of which starts from nothing; None: a row is one.
    """

    queries: jax.Array
    keys: jax.Array
    values: jax.Array
    decay: jax.Array
    strength: jax.Array
    segments: jax.Array | None


def recur(inputs: Inputs, state: jax.Array, *, delta: bool, chunk: int) -> tuple[jax.Array, jax.Array]:
    """What each token reads of the state after it wrote, and the state after the last one.

    With state S, key k, value v, query q, a = exp(decay) and strength b, S becomes a S + b k vᵀ (SSD,
    arXiv:2405.21060), or, by the delta rule, a S + b k (v - a Sᵀ k)ᵀ (arXiv:2412.06464); what is read is Sᵀ q.

    Args:
      inputs: of T tokens.
      state: float32[B,G,R,N,P].
      delta: by the delta rule.
      chunk: tokens computed at once, by products; one after the other come only chunks. It changes but rounding.

    Returns:
      float32[B,T,G,R,P] and float32[B,G,R,N,P]; of packed documents the latter means nothing.
    """
    B, T = inputs.decay.shape[:2]
    before = jnp.zeros(B, jnp.int32)
    run = functools.partial(_chunk, delta=delta)
    if isinstance(T, int) and T == 1:
        (state, _), read = run((state, before), inputs)
        return read, state
    count = (T + chunk - 1) // chunk

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, count * chunk - T), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(B, count, chunk, *x.shape[2:]), 1, 0)

    # Recomputed in the backward pass, which else would keep [Q,Q] a head for every chunk.
    run = jax.checkpoint(run, prevent_cse=False)
    (state, _), read = jax.lax.scan(run, (state, before), jax.tree.map(split, inputs))
    return jnp.moveaxis(read, 0, 1).reshape(B, count * chunk, *read.shape[3:])[:, :T], state


def _chunk(
    carry: tuple[jax.Array, jax.Array], inputs: Inputs, *, delta: bool
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Q tokens at once: each reads what the state held before them, and what those before it in the chunk wrote."""
    state, before = carry
    q, k, values, decay, strength, segments = inputs
    total = jnp.cumsum(decay, axis=1)  # from before the chunk to after each token
    at = jnp.arange(decay.shape[1])
    mine = at[:, None] >= at[None, :]  # [T,S]: of what token S wrote, T sees something
    since, until, stays = jnp.exp(total), jnp.exp(total[:, -1:] - total), jnp.exp(total[:, -1])
    if segments is not None:
        mine = mine & (segments[:, :, None] == segments[:, None, :])
        since = since * (segments == before[:, None])[..., None, None]
        until = until * (segments == segments[:, -1:])[..., None, None]
        stays = stays * (segments[:, -1] == before)[:, None, None]
        before = segments[:, -1]
    each = jnp.moveaxis(total, 1, -1)  # [B,G,R,T]
    mine = mine if mine.ndim == 2 else mine[:, None, None]
    left = jnp.exp(jnp.where(mine, each[..., :, None] - each[..., None, :], UNSEEN))  # of S at T: [B,G,R,T,S]
    written = strength[..., None] * values
    if delta:  # what is written is less what the state gives for the key: a triangular system
        known = since[..., None] * jnp.einsum("btgn,bgrnp->btgrp", k, state)
        written = jnp.moveaxis(written - strength[..., None] * known, 1, 3)
        if at.shape[0] > 1:
            overlap = jnp.einsum("btgn,bsgn->bgts", k, k)[:, :, None] * left
            overlap = jnp.moveaxis(strength, 1, -1)[..., None] * jnp.tril(overlap, -1)
            solve = functools.partial(jax.scipy.linalg.solve_triangular, lower=True, unit_diagonal=True)
            written = solve(overlap, written)
        written = jnp.moveaxis(written, 3, 1)
    scores = jnp.einsum("btgn,bsgn->bgts", q, k)[:, :, None] * left
    read = since[..., None] * jnp.einsum("btgn,bgrnp->btgrp", q, state)
    read = read + jnp.einsum("bgrts,bsgrp->btgrp", scores, written)
    kept = jnp.einsum("bsgn,bsgrp->bgrnp", k, until[..., None] * written)
    return (stays[..., None, None] * state + kept, before), read


def causal_conv(
    x: jax.Array, kernel: jax.Array, tail: jax.Array, segments: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Depthwise convolution of x [B,T,…] over a token and the W-1 before it, by kernel [W,…] whose last row is its own.

    Args:
      tail: [B,W-1,…], what came before x; zeros where nothing did.
      segments: int32[B,T], none of which sees another's tokens.

    Returns:
      [B,T,…], and x with its tail before it, [B,W-1+T,…].
    """
    width, T = kernel.shape[0], x.shape[1]
    whole = jnp.concatenate([tail.astype(x.dtype), x], axis=1)
    y = jnp.zeros((), x.dtype)
    for i in range(width):
        seen = whole[:, i : i + T]
        if segments is not None:
            same = jnp.pad(segments, ((0, 0), (width - 1 - i, 0)))[:, :T] == segments
            seen = jnp.where(same.reshape(*same.shape, *(1,) * (x.ndim - 2)), seen, 0)
        y = y + seen * kernel[i].astype(x.dtype)
    return y, whole


class Recurrence(Half):
    """The recurrence of a block, x [B,T,D] to [B,T,D]; with a cache, also its successor."""

    config: parts.Recurrence
    model: Transformer

    @compact
    def __call__(
        self, x: jax.Array, seen: Seen, cache: RecurrentCache | None
    ) -> tuple[jax.Array, RecurrentCache | None]:
        config, T, mask, segments, order = self.config, x.shape[1], seen.mask, seen.segments, None
        H, G, N, P, delta = config.num_heads, config.groups, config.state_dim, config.head_dim, config.kind == "delta"
        if mask is not None and not (isinstance(T, int) and T == 1):
            # Real tokens first, padding behind: nobody then is ever before a token but those that it follows.
            order = jnp.argsort(~mask, axis=1, stable=True)
            x, mask, segments = jax.tree.map(lambda each: _taken(each, order), (x, mask, segments))
        gate = self._project(x, "gate", "heads", (H, P))
        step = self._project(x, "step", "heads", (H,)).astype(STABLE) + self.vector("step_shift", "heads", (H,), _steps)
        step = jnp.clip(jax.nn.softplus(step), config.step_min, config.step_max)
        strength = jax.nn.sigmoid(self._project(x, "strength", "heads", (H,)).astype(STABLE)) if delta else step
        decay = -jnp.exp(self.vector("decay", "heads", (H,), _decays)) * step
        if mask is not None:  # padding changes no state
            decay, strength = (jnp.where(mask[..., None], each, 0.0) for each in (decay, strength))
        tails: dict[str, jax.Array] = {}

        def convolved(name: str, heads: str, shape: tuple[int, ...]) -> jax.Array:
            y, channels = self._project(x, name, heads, shape), math.prod(shape)
            empty = jnp.zeros((y.shape[0], config.kernel - 1, *shape), y.dtype)
            tail = empty if cache is None else getattr(cache, name)
            kernel = self.vector(f"{name}_conv", "kernel channels", (config.kernel, channels), normal(None))
            y, whole = causal_conv(y, kernel.reshape(-1, *shape), tail, segments)
            if config.conv_bias:
                shift = self.vector(f"{name}_conv_bias", "channels", (channels,), zeros)
                y = y + shift.reshape(shape).astype(y.dtype)
            tails[name] = _last(whole, config.kernel - 1, mask).astype(tail.dtype)
            return jax.nn.silu(y).astype(STABLE)

        q, k = (convolved(name, "kv_heads", (G, N)) for name in ("query", "key"))
        v = convolved("value", "heads", (H, P))
        if delta:
            q, k = _unit(q) * N**-0.5, _unit(k)
        values, decay, strength = (a.reshape(*a.shape[:2], G, H // G, *a.shape[3:]) for a in (v, decay, strength))
        state = jnp.zeros((x.shape[0], H, N, P), STABLE) if cache is None else cache.state
        with jax.named_scope("recur"):
            inputs, state = Inputs(q, k, values, decay, strength, segments), state.reshape(-1, G, H // G, N, P)
            y, state = recur(inputs, state, delta=delta, chunk=config.chunk)
        y = y.reshape(*v.shape)
        if config.skip:
            y = y + self.vector("skip", "heads", (H,), ones)[:, None] * v
        y = self.from_heads(self._gated(y, gate).astype(x.dtype), config.bias, config.output_scale)
        if order is not None:
            y = _taken(y, jnp.argsort(order, axis=1))
        return y, cache and RecurrentCache(**tails, state=state.reshape(-1, H, N, P))

    def _project(self, x: jax.Array, name: str, heads: str, shape: tuple[int, ...]) -> jax.Array:
        scales: dict[str, float] = dict(zip(SCALED, self.config.scales, strict=False))
        return scaled(self.to_heads(x, name, heads, shape, self.config.bias), scales.get(name))

    def _gated(self, y: jax.Array, gate: jax.Array) -> jax.Array:
        """y [B,T,H,P], float32, normalised and times the gate, in the order that the config says."""
        config, gate = self.config, jax.nn.silu(gate.astype(STABLE))
        H, P = y.shape[2:]
        if config.norm == "none":
            return y * gate
        y = y if config.norm_first else y * gate
        groups = config.groups if config.norm == "group" else H
        y = rms_normalize(y.reshape(*y.shape[:2], groups, -1), self.model.norm.epsilon).reshape(y.shape)
        shape, layout = ((H, P), "heads head_dim") if config.norm == "group" else ((P,), "head_dim")
        y = y * self.vector("scale", layout, shape, ones)
        return y * gate if config.norm_first else y


def _taken(x: jax.Array, order: jax.Array) -> jax.Array:
    """x [B,T,…] in another order of its tokens, int32[B,T]."""
    return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), axis=1)


def _last(whole: jax.Array, count: int, mask: jax.Array | None) -> jax.Array:
    """The last `count` tokens of [B,count+T,…] that are real, where of the last T but the first ones are."""
    if mask is None:
        return whole[:, whole.shape[1] - count :]
    return _taken(whole, jnp.sum(mask, axis=1, dtype=jnp.int32)[:, None] + jnp.arange(count))


def _unit(x: jax.Array) -> jax.Array:
    """x with its last axis of length 1."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def _steps(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Time steps between 0.001 and 0.1, their logarithms uniform, as softplus gives them."""
    step = jnp.exp(jax.random.uniform(key, shape, dtype, math.log(1e-3), math.log(0.1)))
    return step + jnp.log(-jnp.expm1(-step))


def _decays(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Logarithms of what is uniform between 1 and 16."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0))
