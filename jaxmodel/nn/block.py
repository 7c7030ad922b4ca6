"""A transformer block: attention and an MLP (or experts), each with a norm and a residual."""

from __future__ import annotations

from typing import Any

import jax

from jaxmodel.models import configs
from jaxmodel.nn.attention import Attention
from jaxmodel.nn.cache import Cache
from jaxmodel.nn.layer import Initializer, Layer, compact, normal
from jaxmodel.nn.mlp import MLP, MoE
from jaxmodel.nn.norm import Norm


class Block(Layer):
    """x [B,T,D] to ([B,T,D], cache, router losses float32[B]); `config` is one variant of the model's."""

    config: configs.Transformer

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
        real: jax.Array,
        cache: Cache | None,
        train: bool,
        pieces: int = 1,
    ) -> tuple[jax.Array, Cache | None, dict[str, jax.Array]]:
        config = self.config
        pre = config.norm.placement == "pre"
        shared: dict[str, Any] = {"partitioning": self.partitioning, "dim": config.embed_dim}
        halves: dict[str, Any] = {"init_input": self.init_input, "init_output": self.init_output}

        def norm(name: str) -> Norm:
            kind: dict[str, Any] = {
                "kind": config.norm.kind,
                "epsilon": config.norm.epsilon,
                "bias": config.norm.bias,
            }
            return Norm(**shared, **kind, name=name)

        attention = Attention(**shared, **halves, config=config.attention, name="attention")
        a, cache = attention(norm("attention_norm")(x) if pre else x, positions, segments, cache, pieces)
        x = x + self.dropout(a, config.dropout, train)
        x = self.constrain(x if pre else norm("attention_norm")(x), "batch", None, None)

        h = norm("mlp_norm")(x) if pre else x
        losses: dict[str, jax.Array] = {}
        if config.moe is None:
            m = MLP(**shared, **halves, config=config.mlp, name="mlp")(h)
        else:
            m, losses = MoE(**shared, **halves, config=config.moe, name="moe")(h, real)
        x = x + self.dropout(m, config.dropout, train)
        x = self.constrain(x if pre else norm("mlp_norm")(x), "batch", None, None)
        return x, cache, losses
