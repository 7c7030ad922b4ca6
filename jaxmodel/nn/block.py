"""A transformer block: attention and an MLP (or experts), as a rule, each with a norm and a residual."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel.models.configs import Transformer
from jaxmodel.nn.activations import ACTIVATIONS
from jaxmodel.nn.attention import Attention, CrossAttention
from jaxmodel.nn.cache import Cache, CrossCache, HybridCache
from jaxmodel.nn.layer import Layer, compact, constant, normal, ones, scaled
from jaxmodel.nn.mask import Seen
from jaxmodel.nn.mlp import MLP, MoE
from jaxmodel.nn.norm import Norm
from jaxmodel.nn.recurrence import Recurrence

MIXING = {"attention": Attention, "cross": CrossAttention, "recurrence": Recurrence}


class Block(Layer):
    """x [B,T,D] to ([B,T,D], cache, router losses float32[B]); `config` is one variant of the model's.

    Where the model has vectors for each layer, the block's own [B,T,P] is the variable `per_layer` of "given"; keys and
    values that it keeps for later blocks are in "kept", by window.
    """

    config: Transformer

    @compact
    def __call__(
        self, x: jax.Array, seen: Seen, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None, dict[str, jax.Array]]:
        config, reads = self.config, normal(self.config.init_scale)
        # Weights that write to the residual stream are smaller the deeper the stack is: its variance stays put (GPT-2).
        shrunk = (2 * config.num_layers) ** -0.5 if config.residual_init is None else config.residual_init
        common: Any = self.partitioning, config.embed_dim, reads, lambda *args: reads(*args) * shrunk

        def norm(wanted: bool, name: str, x: jax.Array) -> jax.Array:
            return Norm(self.partitioning, config.norm, name=name)(x) if wanted else x

        def added(y: jax.Array, half: str) -> jax.Array:
            y = norm(config.norm.placement in ("output", "both"), f"{half}_output_norm", y)
            if config.layer_scale is not None:
                scale = self.vector(f"{half}_scale", "embed_norm", y.shape[-1:], constant(config.layer_scale))
                y = y * scale.astype(y.dtype)
            return scaled(self.dropout(y, config.dropout, seen.train), config.residual_scale)

        def mixed(kind: str, h: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
            if kind == "hybrid":
                y, kept = mixed("attention", h, cache and cache.attention)
                z, state = mixed("recurrence", h, cache and cache.recurrence)
                return y + z, cache and HybridCache(kept, state)
            layer = MIXING[kind](*common, config=getattr(config, kind), model=config, name=kind)
            return layer(h, seen, cache)

        losses: dict[str, jax.Array] = {}
        entering, h = x, None
        crossed, cache = (cache, cache.own) if isinstance(cache, CrossCache) else (None, cache)
        for half in config.sublayers:
            if h is None or config.norm.placement != "shared":
                first = config.norm.placement not in ("post", "output")
                wanted = first and (config.norm.attention or half != "attention")
                h = norm(wanted, f"{half}_norm", entering if config.norm.placement in ("parallel", "shared") else x)
            if half == "cross":
                y, crossed = mixed(half, h, crossed)
            elif half != "mlp":
                y, cache = mixed(half, h, cache)
            elif config.moe is None:
                y = MLP(*common, config=config.mlp, name=half)(h)
            else:
                real = jnp.ones(x.shape[:2], bool) if seen.mask is None else seen.mask
                experts = MoE(*common, config=config.moe, norm=config.norm, name="moe")
                y, losses = experts(h, real, seen.segments, cache is None, x)
            x = norm(config.norm.placement == "post", f"{half}_norm", x + added(y, half))
            x = self.constrain(x, "batch", None, None)
        if (narrow := config.per_layer) is not None:
            mine = self.get_variable("given", "per_layer", jnp.zeros((*x.shape[:2], narrow.dim)))
            h = self.linear(x, "per_layer_gate", "embed -> mlp", (narrow.dim,), common[2])
            h = ACTIVATIONS[config.mlp.activation][0](h) * mine.astype(x.dtype)
            y = self.linear(h, "per_layer_output", "mlp -> embed", x.shape[-1:], common[3])
            x = x + norm(True, "per_layer_norm", y)
        if config.block_scale:
            x = x * self.vector("scale", "scalar", (1,), ones).astype(x.dtype)
        return x, cache if crossed is None else dataclasses.replace(crossed, own=cache), losses
