"""A transformer block: attention and an MLP (or experts), as a rule, each with a norm and a residual."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel.models.configs import Transformer
from jaxmodel.nn.attention import Attention, CrossAttention, Source
from jaxmodel.nn.cache import Cache, CrossCache, HybridCache
from jaxmodel.nn.layer import Initializer, Layer, compact, constant, normal, ones
from jaxmodel.nn.mlp import MLP, MoE
from jaxmodel.nn.norm import Norm
from jaxmodel.nn.recurrence import Recurrence


class Block(Layer):
    """x [B,T,D] to ([B,T,D], cache, router losses float32[B]); `config` is one variant of the model's.

    `source` and `relative` are as attention takes them.
    """

    config: Transformer

    @property
    def init_input(self) -> Initializer:
        """Weights that read the residual stream."""
        return normal(self.config.init_scale)

    @property
    def init_output(self) -> Initializer:
        """Weights that write to it: smaller the deeper the stack is, so that its variance stays put (GPT-2)."""
        given = self.config.residual_init
        scale = (2 * self.config.num_layers) ** -0.5 if given is None else given
        plain = normal(self.config.init_scale)
        return lambda key, shape, dtype: plain(key, shape, dtype) * scale

    @compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        segments: jax.Array | None,
        mask: jax.Array | None,
        cache: Cache | None,
        train: bool,
        pieces: int = 1,
        source: Source | None = None,
        relative: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None, dict[str, jax.Array]]:
        config = self.config
        shared: dict[str, Any] = {"partitioning": self.partitioning, "dim": config.embed_dim}
        halves: dict[str, Any] = {"init_input": self.init_input, "init_output": self.init_output}

        def norm(wanted: bool, name: str, x: jax.Array) -> jax.Array:
            return Norm(**shared, config=config.norm, name=name)(x) if wanted else x

        def before(x: jax.Array, half: str) -> jax.Array:
            wanted = config.norm.before and (config.norm.attention or half != "attention")
            return norm(wanted, f"{half}_norm", x)

        def added(y: jax.Array, half: str) -> jax.Array:
            y = norm(config.norm.on_output, f"{half}_output_norm", y)
            if config.layer_scale is not None:
                scale = self.vector(f"{half}_scale", "embed_norm", y.shape[-1:], constant(config.layer_scale))
                y = y * scale.astype(y.dtype)
            y = self.dropout(y, config.dropout, train)
            return y if config.residual_scale is None else y * jnp.asarray(config.residual_scale, y.dtype)

        def after(x: jax.Array, half: str) -> jax.Array:
            x = norm(config.norm.placement == "post", f"{half}_norm", x)
            return self.constrain(x, "batch", None, None)

        def attend(h: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
            layer = Attention(**shared, **halves, config=config.attention, model=config, name="attention")
            return layer(h, positions, segments, cache, pieces, relative)

        def recur(h: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
            assert config.recurrence is not None
            sizes = {"config": config.recurrence, "epsilon": config.norm.epsilon}
            return Recurrence(**shared, **halves, **sizes, name="recurrence")(h, mask, segments, cache)

        losses: dict[str, jax.Array] = {}
        entering, h = x, None
        crossed, cache = (cache, cache.own) if isinstance(cache, CrossCache) else (None, cache)
        for half in config.sublayers:
            if h is None or config.norm.placement != "shared":
                h = before(entering if config.norm.parallel else x, half)
            if half == "attention":
                y, cache = attend(h, cache)
            elif half == "recurrence":
                y, cache = recur(h, cache)
            elif half == "cross":
                assert config.cross is not None
                cross = CrossAttention(**shared, **halves, config=config.cross, model=config, name=half)
                y, crossed = cross(h, source, crossed)
            elif half == "hybrid":
                assert cache is None or isinstance(cache, HybridCache)
                y, kept = attend(h, cache and cache.attention)
                z, state = recur(h, cache and cache.recurrence)
                y, cache = y + z, cache and HybridCache(kept, state)
            elif config.moe is None:
                y = MLP(**shared, **halves, config=config.mlp, name=half)(h)
            else:
                real = jnp.ones(x.shape[:2], bool) if mask is None else mask
                y, losses = MoE(**shared, **halves, config=config.moe, name="moe")(h, real, segments, cache is None)
            x = after(x + added(y, half), half)
        if config.block_scale:
            x = x * self.vector("scale", "scalar", (1,), ones).astype(x.dtype)
        return x, cache if crossed is None else dataclasses.replace(crossed, own=cache), losses
