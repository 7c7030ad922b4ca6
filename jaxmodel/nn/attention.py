"""Multi-head, grouped-query and sliding-window attention.

B batch, T queries, S keys, D model dim, H query heads, G key/value heads, R = H/G, K head dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmodel import weights
from jaxmodel.errors import InputError
from jaxmodel.models import parts
from jaxmodel.models.configs import Transformer
from jaxmodel.nn.cache import AttentionCache, CrossCache, Read
from jaxmodel.nn.layer import STABLE, Initializer, Layer, Weight, compact, einsum, ones, scaled, zeros
from jaxmodel.nn.mask import attention_mask
from jaxmodel.nn.norm import norm_scale, rms_normalize
from jaxmodel.nn.relative import bias_between
from jaxmodel.nn.rope import rotate

SHORTEST_PIECE = 32  # queries; below it more pieces cost more than they save

UNSEEN = -1e30  # added to a score that must not count; finite, so that a row without any is not NaN


@jax.custom_jvp
def softmax(x: jax.Array) -> jax.Array:
    """Softmax over the last axis; one reciprocal a row, and a backward pass that keeps the result alone."""
    shifted = jnp.exp(x - jnp.max(x, axis=-1, keepdims=True))
    return shifted * (1 / jnp.sum(shifted, axis=-1, keepdims=True))


@softmax.defjvp
def _softmax_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    y = softmax(x)
    return y, y * (dx - jnp.sum(y * dx, axis=-1, keepdims=True))


def dot_product_attention(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    mask: jax.Array | None,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Attention in plain array code, which every backend and export can run: float32 softmax, [B,T,H,K] out.

    Values may have another width than keys, which then is that of what comes out.
    `mask` is bool[B or 1,T,S]; a query that may see nothing (padding) gets a finite, meaningless answer. `sinks`
    float32[H] are scores of nothing: they take weight away from what is seen (arXiv:2309.17453). `bias`
    float32[B or 1,H,T,S] is added to the scores.
    """
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    q_BGRTK = (q_BTHK * jnp.asarray(scale, q_BTHK.dtype)).reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    k_BGSK = k_BSGK.astype(q_BTHK.dtype).transpose(0, 2, 1, 3)
    v_BGSK = v_BSGK.astype(q_BTHK.dtype).transpose(0, 2, 1, 3)
    scores = jnp.einsum("bgrtk,bgsk->bgrts", q_BGRTK, k_BGSK, preferred_element_type=STABLE)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.reshape(bias.shape[0], G, H // G, *bias.shape[2:])
    if mask is not None:
        # Added, not selected: the backward pass then need not look at the mask again.
        scores = scores + jnp.where(mask[:, None, None], 0.0, UNSEEN)
    if sinks is not None:
        column = jnp.broadcast_to(sinks.reshape(G, H // G, 1, 1), (*scores.shape[:-1], 1))
        scores = jnp.concatenate([scores, column], axis=-1)
    weights = softmax(scores).astype(v_BGSK.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    out_BGRTK = jnp.einsum("bgrts,bgsk->bgrtk", weights, v_BGSK)
    return out_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, v_BSGK.shape[-1])


def _kept(
    cache: AttentionCache | None, keys: jax.Array, values: jax.Array, positions: jax.Array
) -> tuple[AttentionCache | None, Read]:
    """The grown cache, and all that is visible."""
    return (None, (keys, values, positions)) if cache is None else cache.append(keys, values, positions)


class Source(NamedTuple):
    """What an encoder read: hidden [B,S,E], and positions int32[B,S], ABSENT where there is padding."""

    hidden: jax.Array
    positions: jax.Array


class Attention(Layer):
    """The attention half of a block, x [B,T,D] to [B,T,D]; with a cache, also its successor.

    `relative` float32[H,N] is what `Relative` gives.
    """

    config: parts.Attention
    model: Transformer
    dim: int
    init_input: Initializer
    init_output: Initializer

    @compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        segments: jax.Array | None,
        cache: AttentionCache | None,
        pieces: int = 1,
        relative: jax.Array | None = None,
    ) -> tuple[jax.Array, AttentionCache | None]:
        config, (H, G, K) = self.config, self._sizes
        widen = None
        if config.latent is not None:
            q, k, v, key_positions, cache, widen = self._latent(config.latent, x, positions, cache, K)
        else:
            q = self._project(x, "query", "heads", H, K)
            k = scaled(self._project(x, "key", "kv_heads", G, K), config.key_scale)
            v = k if config.keys_as_values else self._project(x, "value", "kv_heads", G, K)
            if config.value_norm:
                v = rms_normalize(v, config.qk_norm_epsilon).astype(x.dtype)
            if config.qk_norm != "none":
                q, k = self._normalize(q, "query_norm"), self._normalize(k, "key_norm")
            if config.rotary:
                q, k = (rotate(each, positions, config, self.model.max_length) for each in (q, k))
            cache, (k, v, key_positions) = _kept(cache, k, v, positions)
        sinks = self.vector("sinks", "heads", (H,), zeros) if config.sinks else None
        scale = K**-0.5 if config.scale is None else config.scale
        # In training no key after a query is ever seen, nor computed: late keys are cut off a piece of queries at
        # a time. (Not elsewhere: an export must compute, bit for bit, what the checkpoint does at every length.)
        T = x.shape[1]
        if pieces > 1 and (not config.causal or T % pieces or T // pieces < SHORTEST_PIECE):
            pieces = 1

        def attend(begin: int, end: int, last: int) -> jax.Array:
            here = None if segments is None else segments[:, begin:end]
            there = None if segments is None else segments[:, :last]
            mask = attention_mask(
                positions[:, begin:end],
                key_positions[:, :last],
                query_segments=here,
                key_segments=there,
                causal=config.causal,
                window=config.window,
            )
            part = q[:, begin:end], k[:, :last], v[:, :last]
            bias = None
            if config.relative is not None and relative is not None:
                bias = bias_between(relative, positions[:, begin:end], key_positions[:, :last])
            return dot_product_attention(*part, mask, scale=scale, softcap=config.softcap, sinks=sinks, bias=bias)

        with jax.named_scope("attend"):
            if pieces == 1:
                out = attend(0, T, k.shape[1])
            else:
                ends = [(i + 1) * T // pieces for i in range(pieces)]
                out = jnp.concatenate([attend(end - T // pieces, end, end) for end in ends], axis=1)
        out = out if widen is None else widen(out)
        if config.gate:
            gate = self._project(x, "gate", "heads", H, K)
            out = out * jax.nn.sigmoid(gate.astype(STABLE)).astype(out.dtype)
        return self._output(out), cache

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Query heads, key/value heads and the width of one."""
        H = self.config.num_heads
        return H, self.config.num_kv_heads or H, self.config.head_dim or self.dim // H

    def _output(self, out: jax.Array) -> jax.Array:
        out = self.constrain(out, "batch", None, "heads", None)
        bias, layout = self.config.output_bias, "heads head_dim -> embed"
        y = self.linear(out, "output", layout, (self.dim,), self.init_output, bias)
        return scaled(y, self.config.output_scale)

    def _project(self, x: jax.Array, name: str, heads: str, num: int, width: int) -> jax.Array:
        config = self.config
        bias = config.bias if name != "key" or config.key_bias is None else config.key_bias
        y = self.linear(x, name, f"embed -> {heads} head_dim", (num, width), self.init_input, bias)
        return self.constrain(y, "batch", None, heads, None)

    def _latent(
        self, latent: parts.Latent, x: jax.Array, positions: jax.Array, cache: AttentionCache | None, K: int
    ) -> tuple[
        jax.Array, jax.Array, jax.Array, jax.Array, AttentionCache | None, Callable[[jax.Array], jax.Array] | None
    ]:
        """Queries, keys, values and their positions; the cache; and what makes heads of what attention gives, if any.

        A single token, whose cache may be long, meets the narrow vectors themselves: its queries are brought to
        them, and what it takes from them to heads; that saves making keys and values of every token again.
        """
        H, R, rank = self.config.num_heads, latent.rope_dim, latent.kv_rank

        def heads(name: str, origin: str, width: int, size: int) -> Weight:
            return self.weight(name, f"{origin} -> heads head_dim", (width,), (H, size), self.init_input)

        def turned(x: jax.Array) -> jax.Array:
            return rotate(x, positions, self.config, self.model.max_length)

        if latent.q_rank is None:
            q = einsum(x, heads("query", "embed", self.dim, K))
        else:
            narrow = self._normalize(self._project(x, "query_latent", "latent", 1, latent.q_rank), "query_norm")
            q = einsum(narrow[:, :, 0], heads("query", "latent", latent.q_rank, K))
        q, q_turned = q[..., : K - R], turned(q[..., K - R :])
        k = self._normalize(self._project(x, "latent", "latent", 1, rank), "latent_norm")
        k_turned = turned(self._project(x, "rope_key", "latent", 1, R))
        whole = cache is None or x.shape[1] > 1
        cache, (k, k_turned, key_positions) = _kept(cache, k, k_turned, positions)
        k, k_turned = k.astype(x.dtype), k_turned.astype(x.dtype)
        key, value = heads("key", "latent", rank, K - R), heads("value", "latent", rank, latent.value_dim)
        widen: Callable[[jax.Array], jax.Array] | None = None
        if whole:
            v, k = einsum(k[:, :, 0], value), einsum(k[:, :, 0], key)
            k_turned = jnp.broadcast_to(k_turned, (*k.shape[:3], R))
        else:
            into, out = (weights.dense(each.leaf, x.dtype).reshape(rank, H, -1) for each in (key, value))
            q, v = jnp.einsum("bthk,rhk->bthr", q, into), k
            widen = functools.partial(jnp.einsum, "rhk,bthr->bthk", out)
        q, k = jnp.concatenate([q, q_turned], axis=-1), jnp.concatenate([k, k_turned], axis=-1)
        return self.constrain(q, "batch", None, "heads", None), k, v, key_positions, cache, widen

    def _normalize(self, x: jax.Array, name: str) -> jax.Array:
        """Norm [B,T,H,K] over each head, or over all of them together."""
        config, flat = self.config, x
        if config.qk_norm == "layer":
            scale = self.vector(name, "heads_norm head_dim", x.shape[2:], ones)
            centred = x.astype(STABLE) - jnp.mean(x.astype(STABLE), axis=-1, keepdims=True)
            return (rms_normalize(centred, config.qk_norm_epsilon) * scale).astype(x.dtype)
        layout = "head_dim"
        if config.qk_norm == "all":
            flat, layout = x.reshape(*x.shape[:2], -1), "heads_norm"
        scale = norm_scale(self, name, layout, flat.shape[-1], self.model.norm.offset)
        return (rms_normalize(flat, config.qk_norm_epsilon) * scale).astype(x.dtype).reshape(x.shape)


class CrossAttention(Attention):
    """Attention of x [B,T,D] to a source, or to what a cache keeps of one; with a cache, also its successor."""

    @compact
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: jax.Array, source: Source | None, cache: CrossCache | None
    ) -> tuple[jax.Array, CrossCache | None]:
        config, (H, G, K) = self.config, self._sizes
        q = self._project(x, "query", "heads", H, K)
        if source is not None:
            k, v = (self._project(source.hidden, name, "kv_heads", G, K) for name in ("key", "value"))
            read = k, v, source.positions
            cache = None if cache is None else cache.kept(*read)
        else:
            assert cache is not None
            read = cache.source()
            if not read[2].shape[1]:
                raise InputError("the cache holds no source yet: let the model read one first")
        k, v, positions = read
        scale = K**-0.5 if config.scale is None else config.scale
        with jax.named_scope("attend"):
            mask = attention_mask(jnp.zeros((1, 1), jnp.int32), positions, causal=False)
            out = dot_product_attention(q, k, v, mask, scale=scale, softcap=config.softcap)
        return self._output(out), cache
