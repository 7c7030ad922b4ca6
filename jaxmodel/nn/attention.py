"""Multi-head, grouped-query and sliding-window attention.

B batch, T queries, S keys, D model dim, H query heads, G key/value heads, R = H/G, K head dim.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel import weights
from jaxmodel.errors import InputError
from jaxmodel.models import parts
from jaxmodel.models.configs import Transformer
from jaxmodel.nn.cache import CrossCache, FullCache, Read, appended
from jaxmodel.nn.layer import STABLE, Half, compact, einsum, scaled, softcapped, zeros
from jaxmodel.nn.mask import Seen, attention_mask
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
    multiply: weights.Contraction = weights.contract,
) -> jax.Array:
    """Attention in plain array code, which every backend and export can run: float32 softmax, [B,T,H,K] out.

    Values may have another width than keys, which then is that of what comes out. `multiply` is how both products
    are made; `weights.streamed_matmul` wants keys and values as a `FullCache` keeps them, and few queries.
    `mask` is bool[B or 1,T,S]; a query that may see nothing (padding) gets a finite, meaningless answer. `sinks`
    float32[H] are scores of nothing: they take weight away from what is seen (arXiv:2309.17453). `bias`
    float32[B or 1,H,T,S] is added to the scores.
    """
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    q_BGRTK = (q_BTHK * jnp.asarray(scale, q_BTHK.dtype)).reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    k_BGSK = k_BSGK.astype(q_BTHK.dtype).transpose(0, 2, 1, 3)
    v_BGKS = v_BSGK.astype(q_BTHK.dtype).transpose(0, 2, 3, 1)
    scores = multiply(q_BGRTK, k_BGSK, STABLE)
    scores = softcapped(scores, softcap)
    if bias is not None:
        scores = scores + bias.reshape(bias.shape[0], G, H // G, *bias.shape[2:])
    if mask is not None:
        # Added, not selected: the backward pass then need not look at the mask again.
        scores = scores + jnp.where(mask[:, None, None], 0.0, UNSEEN)
    if sinks is not None:
        column = jnp.broadcast_to(sinks.reshape(G, H // G, 1, 1), (*scores.shape[:-1], 1))
        scores = jnp.concatenate([scores, column], axis=-1)
    shares = softmax(scores)[..., : k_BGSK.shape[2]].astype(v_BGKS.dtype)
    out_BGRTK = multiply(shares, v_BGKS, v_BGKS.dtype)
    return out_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, v_BSGK.shape[-1])


# Queries; keys, values, and positions and segments of both; the cache; a weight for what attention gives.
Projected = tuple[jax.Array, tuple[*Read, jax.Array | None], Any, jax.Array | None]


class Attention(Half):
    """The attention half of a block, x [B,T,D] to [B,T,D]; with a cache, also its successor."""

    config: parts.Attention
    model: Transformer

    @compact
    def __call__(self, x: jax.Array, seen: Seen, cache: Any) -> tuple[jax.Array, Any]:
        config, T = self.config, x.shape[1]
        q, read, cache, widen = self._projected(x, seen, cache)
        if config.sharing == "keep":
            found: Any = read[:3]
            self.sow("kept", str(config.window), found, reduce_fn=lambda _, found: found)
        scale = config.sizes(self.dim)[-1] ** -0.5 if config.scale is None else config.scale
        sinks = self.vector("sinks", "heads", (config.num_heads,), zeros) if config.sinks else None
        relative = seen.relative if config.relative else None
        multiply = cache.multiply if isinstance(cache, FullCache) and config.latent is None else weights.contract

        def attend(begin: int, end: int, last: int) -> jax.Array:
            asks, queries, mine = jax.tree.map(lambda a: a[:, begin:end], (q, seen.positions, seen.segments))
            k, v, keys, theirs = jax.tree.map(lambda a: a[:, :last], read)
            mask = attention_mask(queries, keys, (mine, theirs), causal=config.causal, window=config.window)
            bias = None if relative is None else bias_between(relative, queries, keys)
            how = {"scale": scale, "softcap": config.softcap, "multiply": multiply}
            return dot_product_attention(asks, k, v, mask, sinks=sinks, bias=bias, **how)

        # In training no key after a query is ever seen, nor computed: late keys are cut off a piece of queries at
        # a time. (Not elsewhere: an export must compute, bit for bit, what the checkpoint does at every length.)
        pieces = [(0, T, read[0].shape[1])]
        if seen.pieces > 1 and config.causal and T % seen.pieces == 0 and T // seen.pieces >= SHORTEST_PIECE:
            size = T // seen.pieces
            pieces = [(end - size, end, end) for end in range(size, T + 1, size)]
        with jax.named_scope("attend"):
            out = jnp.concatenate([attend(*piece) for piece in pieces], axis=1)
        out = out if widen is None else jnp.einsum("rhk,bthr->bthk", widen, out)
        if config.gate:
            gate = self._project(x, "gate", "heads", *out.shape[2:])
            out = out * jax.nn.sigmoid(gate.astype(STABLE)).astype(out.dtype)
        return self.from_heads(out, config.output_bias, config.output_scale), cache

    def _project(self, x: jax.Array, name: str, heads: str, *shape: int) -> jax.Array:
        bias = self.config.key_bias if name == "key" else None
        return self.to_heads(x, name, heads, shape, self.config.bias if bias is None else bias)

    def _projected(self, x: jax.Array, seen: Seen, cache: Any) -> Projected:
        config, (H, G, K) = self.config, self.config.sizes(self.dim)
        if config.latent is not None:
            return self._latent(x, seen, cache, config.latent)
        q = self._project(x, "query", "heads", H, K)
        if config.sharing == "reuse":
            return self._placed(q, "query_norm", seen), (*seen.kept[str(config.window)], seen.segments), cache, None
        k = scaled(self._project(x, "key", "kv_heads", G, K), config.key_scale)
        v = k if config.keys_as_values else self._project(x, "value", "kv_heads", G, K)
        if config.value_norm:
            v = rms_normalize(v, config.qk_norm_epsilon).astype(x.dtype)
        q, k = self._placed(q, "query_norm", seen), self._placed(k, "key_norm", seen)
        cache, read = appended(cache, k, v, seen.positions)
        return q, (*read, seen.segments), cache, None

    def _placed(self, x: jax.Array, name: str, seen: Seen) -> jax.Array:
        """Queries or keys, normalised by the norm of that name and turned by their positions, as the config says."""
        x = x if self.config.qk_norm == "none" else self._normalize(x, name)
        return rotate(x, seen.positions, self.config, self.model.max_length) if self.config.rotary else x

    def _latent(self, x: jax.Array, seen: Seen, cache: Any, latent: parts.Latent) -> Projected:
        """From narrow vectors, which are what a cache keeps.

        A single token, whose cache may be long, meets the narrow vectors themselves: its queries are brought to
        them, and what it takes from them to heads; that saves making keys and values of every token again.
        """
        H, _, K = self.config.sizes(self.dim)
        R, rank, layout, widen = latent.rope_dim, latent.kv_rank, "latent -> heads head_dim", None

        def turned(x: jax.Array) -> jax.Array:
            return rotate(x, seen.positions, self.config, self.model.max_length)

        if latent.q_rank is None:
            q = self.linear(x, "query", "embed -> heads head_dim", (H, K), self.init_input)
        else:
            narrow = self._normalize(self._project(x, "query_latent", "latent", 1, latent.q_rank), "query_norm")
            q = self.linear(narrow[:, :, 0], "query", layout, (H, K), self.init_input)
        q, q_turned = q[..., : K - R], turned(q[..., K - R :])
        k = self._normalize(self._project(x, "latent", "latent", 1, rank), "latent_norm")
        k_turned = turned(self._project(x, "rope_key", "latent", 1, R))
        whole = cache is None or x.shape[1] != 1
        cache, (k, k_turned, positions) = appended(cache, k, k_turned, seen.positions)
        k, k_turned = k.astype(x.dtype), k_turned.astype(x.dtype)
        key = self.weight("key", layout, (rank,), (H, K - R), self.init_input)
        value = self.weight("value", layout, (rank,), (H, latent.value_dim), self.init_input)
        if whole:
            v, k = einsum(k[:, :, 0], value), einsum(k[:, :, 0], key)
            k_turned = jnp.broadcast_to(k_turned, (*k.shape[:3], R))
        else:
            into, widen = (weights.dense(each.leaf, x.dtype).reshape(rank, H, -1) for each in (key, value))
            q, v = jnp.einsum("bthk,rhk->bthr", q, into), k
        q, k = jnp.concatenate([q, q_turned], axis=-1), jnp.concatenate([k, k_turned], axis=-1)
        return self.constrain(q, "batch", None, "heads", None), (k, v, positions, seen.segments), cache, widen

    def _normalize(self, x: jax.Array, name: str) -> jax.Array:
        """Norm [B,T,H,K] over each head, or over all of them together."""
        kind = self.config.qk_norm
        flat = x.reshape(*x.shape[:2], -1) if kind == "all" else x
        layout = {"all": "heads_norm", "layer": "heads_norm head_dim"}.get(kind, "head_dim")
        scale = norm_scale(self, name, layout, flat.shape[2 if kind == "layer" else -1 :], self.model.norm.offset)
        y = rms_normalize(flat, self.config.qk_norm_epsilon, centred=kind == "layer")
        return (y * scale).astype(x.dtype).reshape(x.shape)


class CrossAttention(Attention):
    """Attention of x [B,T,D] to a source, or to what a cache keeps of one; with a cache, also its successor."""

    def _projected(self, x: jax.Array, seen: Seen, cache: CrossCache | None) -> Projected:
        H, G, K = self.config.sizes(self.dim)
        q, source = self._project(x, "query", "heads", H, K), seen.source
        if source is not None:
            k, v = (self._project(source.hidden, name, "kv_heads", G, K) for name in ("key", "value"))
            read = k, v, source.positions
            cache = cache and cache.kept(*read)
        else:
            assert cache is not None
            read = cache.source()
            if not read[-1].shape[1]:
                raise InputError("the cache holds no source yet: let the model read one first")
        return q, (*read, None), cache, None
