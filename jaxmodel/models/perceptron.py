"""A multi-layer perceptron over numeric features and categories: hidden layers, then a linear head."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel import weights
from jaxmodel.model import Batch, Model
from jaxmodel.models import network
from jaxmodel.models.plain import Perceptron
from jaxmodel.nn import layer
from jaxmodel.nn.activations import ACTIVATIONS
from jaxmodel.nn.layer import STABLE, compact, he, normal
from jaxmodel.sharding import Partitioning


def embedding(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Rows of about unit length, as a scaled feature has; but zeros for id 0, which training may never see."""
    return jax.random.normal(key, shape, dtype).at[0].set(0.0) * shape[-1] ** -0.5


class _Network(network.Network):
    config: Perceptron

    @compact
    def __call__(self, batch: Batch, train: bool) -> dict[str, jax.Array]:
        config = self.config
        dtype = jnp.dtype(config.execution.dtype)
        parts = [batch["features"].astype(dtype)] if config.num_features else []
        for i, size in enumerate(config.categories or ()):
            dim = config.category_dim or min(50, (size + 1) // 2)
            table = self.weight(f"category{i}", "categories <- category_embed", (dim,), (size,), embedding)
            parts.append(weights.take(table.leaf, batch["categories"][:, i], dtype))
        x = self.constrain(jnp.concatenate(parts, axis=-1), "batch", None)
        activation = ACTIVATIONS[config.activation][0]
        for i, width in enumerate(config.hidden):
            x = self._dense(f"hidden{i}", "units", x, width, he)
            x = self.dropout(activation(self.norm(f"hidden{i}_norm", x, train)), config.dropout, train)
        hidden = x.astype(STABLE)
        logits = self._dense("outputs", "outputs", hidden, config.num_outputs or 0, normal(None))
        return {"logits": logits, "embedding": hidden}

    def _dense(self, name: str, dim: str, x: jax.Array, width: int, init: layer.Initializer) -> jax.Array:
        return self.constrain(self.linear(x, name, f"inputs -> {dim}", (width,), init, True), "batch", None)


def build(config: Perceptron, partitioning: Partitioning | None = None) -> Model:
    """A perceptron as pure functions.

    `features` float32[B,F] and `categories` int32[B,C], as far as the config has them, in; `logits`
    float32[B,outputs] and `embedding` (the last hidden layer, float32[B,units]) out. With batch norm `start()`
    gives fresh running statistics, which `apply` needs. Ids must be below those in `categories`: others give NaN.

    Raises InputError as `network.build` says.
    """
    return network.build(config, _Network, partitioning)
