"""What comes after the stack: one vector a sequence, and logits.

B batch, T time, D model dim, V logits.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmodel.models.configs import Transformer
from jaxmodel.nn.activations import ACTIVATIONS
from jaxmodel.nn.layer import STABLE, Layer, Weight, compact, einsum, normal, zeros
from jaxmodel.nn.norm import Norm


class Pool(Layer):
    """hidden [B,T,D], and real bool[B,T] where there is padding, to the embedding [B,D] or [B,2D]."""

    config: Transformer

    @compact
    def __call__(self, hidden: jax.Array, real: jax.Array | None) -> jax.Array:
        pool = self.config.pool
        assert pool is not None
        x = pooled(hidden, real, pool.kind)
        if pool.activation != "none" or pool.spare:
            y = dense(self, x, self.config, self.config.embed_dim)
            x = x if pool.spare else ACTIVATIONS[pool.activation][0](y)
        if pool.normalize:
            x = x.astype(STABLE)
            x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
        return x


class Head(Layer):
    """hidden [B,T,D], or an embedding [B,D], to float32 logits [..., V], by its own weight or the stem's table."""

    config: Transformer

    @compact
    def __call__(self, hidden: jax.Array, tied: Weight | None) -> jax.Array:
        config, head = self.config, self.config.head
        assert head is not None
        width = head.dim or config.embed_dim
        if head.activation != "none" or head.dim:
            hidden = dense(self, hidden, config, width, head.dense_bias)
        if head.activation != "none":
            hidden = ACTIVATIONS[head.activation][0](hidden)
            if head.norm:
                hidden = Norm(self.partitioning, width, config.norm, name="norm")(hidden)
        outputs = "vocab" if head.outputs is None else "classes"  # a few classes are not worth splitting
        if tied is None:
            sizes = (hidden.shape[-1],), (config.num_outputs,)
            tied = self.weight("logits", f"embed -> {outputs}", *sizes, normal(config.init_scale))
        logits = einsum(hidden, tied).astype(STABLE)
        if head.bias:
            logits = logits + self.vector("bias", outputs, (config.num_outputs,), zeros)
        if head.scale is not None:
            logits = logits * head.scale
        if head.softcap is not None:
            logits = head.softcap * jnp.tanh(logits / head.softcap)
        return self.constrain(logits, "batch", *(None,) * (logits.ndim - 2), outputs)


def pooled(hidden: jax.Array, real: jax.Array | None, kind: str) -> jax.Array:
    """The first or the last real token of each row, or the mean or the largest of all: [B,T,D] to [B,D].

    `first_mean`: the first, and the mean of the others, side by side: [B,2D].
    """
    T = hidden.shape[1]
    if kind == "first_mean":
        real = jnp.ones(hidden.shape[:2], bool) if real is None else real
        others = real & (jnp.arange(T) != jnp.argmax(real, axis=1)[:, None])
        return jnp.concatenate([pooled(hidden, real, "first"), pooled(hidden, others, "mean")], axis=-1)
    if kind == "mean":
        weight = jnp.ones(hidden.shape[:2], STABLE) if real is None else real.astype(STABLE)
        total = jnp.einsum("btd,bt->bd", hidden.astype(STABLE), weight)
        return (total / jnp.maximum(jnp.sum(weight, axis=1), 1)[:, None]).astype(hidden.dtype)
    if kind == "max":
        return jnp.max(hidden, axis=1, initial=-jnp.inf, where=None if real is None else real[..., None])
    if real is None:
        return hidden[:, 0 if kind == "first" else T - 1]
    place = jnp.argmax(real, axis=1) if kind == "first" else T - 1 - jnp.argmax(real[:, ::-1], axis=1)
    return jnp.take_along_axis(hidden, place[:, None, None], axis=1)[:, 0]


def dense(layer: Layer, x: jax.Array, config: Transformer, width: int, bias: bool = True) -> jax.Array:
    """A layer that gives vectors of this width, among the params of `layer`."""
    weight = layer.weight("dense", "embed -> mlp", x.shape[-1:], (width,), normal(config.init_scale))
    y = einsum(x, weight)
    return y + layer.vector("dense_bias", "mlp", (width,), zeros).astype(y.dtype) if bias else y
