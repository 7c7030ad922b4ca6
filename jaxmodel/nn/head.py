"""What comes after the stack: one vector a sequence, and logits.

B batch, T time, D model dim, V logits.
"""

import jax
import jax.numpy as jnp

from jaxmodel.errors import InputError
from jaxmodel.models import parts
from jaxmodel.models.configs import KEPT, Transformer
from jaxmodel.nn.activations import ACTIVATIONS
from jaxmodel.nn.attention import CrossAttention
from jaxmodel.nn.layer import STABLE, Layer, Weight, compact, einsum, normal, scaled, softcapped, zeros
from jaxmodel.nn.mask import Seen, Source, positions_of
from jaxmodel.nn.mlp import MLP
from jaxmodel.nn.norm import Norm


class Pool(Layer):
    """hidden [B,T,D], real bool[B,T] where there is padding, and tokens int32[B,T], to the embedding [B,D] or wider."""

    config: Transformer

    @compact
    def __call__(self, hidden: jax.Array, real: jax.Array | None, tokens: jax.Array | None) -> jax.Array:
        config, pool, init = self.config, self.config.pool, normal(self.config.init_scale)
        assert pool is not None
        if pool.kind == "attention":
            x = self._attended(hidden, real)
        elif pool.kind in ("token", "highest"):
            if tokens is None:
                raise InputError(f"model.pool.kind={pool.kind} looks at tokens: the batch needs them, not hidden alone")
            # The first where it is true, or the first of the largest.
            x = pooled(hidden, tokens if pool.kind == "highest" else tokens == pool.token, "first")
        else:
            x = pooled(hidden, None, "last") if pool.kind == "slot" else pooled(hidden, real, pool.kind)
        if pool.norm:
            x = Norm(self.partitioning, config.norm, name="norm")(x)
        if pool.activation != "none" or pool.spare:
            y = self.linear(x, "dense", "embed -> mlp", (config.embed_dim,), init, True)
            # Whole on every device, or the gradient of a head behind it, whose classes are not split, is gathered.
            x = x if pool.spare else self.constrain(ACTIVATIONS[pool.activation][0](y), "batch", None)
        if pool.dim is not None:
            x = self.linear(x, "projection", "embed -> classes", (pool.dim,), init, pool.bias)
        if pool.normalize:
            x = x.astype(STABLE)
            x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
        return x

    def _attended(self, hidden: jax.Array, real: jax.Array | None) -> jax.Array:
        """What a learned vector sees of all tokens, and an MLP of that."""
        config, D, init = self.config, self.config.embed_dim, normal(self.config.init_scale)
        common = self.partitioning, D, init, init
        probe = self.vector("probe", "embed_bias", (D,), normal(D**-0.5))
        probe = jnp.broadcast_to(probe.astype(hidden.dtype), (len(hidden), 1, D))
        attention = parts.Attention(**{name: getattr(config.attention, name) for name in KEPT}, causal=False)
        seen = Seen(positions_of(1, 1), source=Source(hidden, positions_of(len(hidden), hidden.shape[1], real)))
        x = CrossAttention(*common, attention, config, name="attention")(probe, seen, None)[0][:, 0]
        y = Norm(self.partitioning, config.norm, name="mlp_norm")(x)
        return x + MLP(*common, config.mlp, name="mlp")(y)


class Head(Layer):
    """hidden [B,T,D], or an embedding [B,D], to float32 logits [..., V], by its own weight or the stem's table."""

    config: Transformer

    @compact
    def __call__(self, hidden: jax.Array, tied: Weight | None) -> jax.Array:
        config, head, init = self.config, self.config.head, normal(self.config.init_scale)
        assert head is not None
        width = head.dim or config.embed_dim
        if head.activation != "none" or head.dim:
            hidden = self.linear(hidden, "dense", "embed -> mlp", (width,), init, head.dense_bias)
        if head.activation != "none":
            hidden = ACTIVATIONS[head.activation][0](hidden)
            if head.norm:
                hidden = Norm(self.partitioning, config.norm, name="norm")(hidden)
        outputs = "vocab" if head.outputs is None else "classes"  # a few classes are not worth splitting
        shape = (config.num_outputs,)
        weight = tied or self.weight("logits", f"embed -> {outputs}", hidden.shape[-1:], shape, init)
        logits = einsum(hidden, weight).astype(STABLE)
        if head.bias:
            logits = logits + self.vector("bias", outputs, shape, zeros)
        logits = softcapped(scaled(logits, head.scale), head.softcap)
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
