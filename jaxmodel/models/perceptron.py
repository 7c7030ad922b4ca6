"""A multi-layer perceptron over numeric features and categories: hidden layers, then a linear head."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel import weights
from jaxmodel.errors import InputError
from jaxmodel.model import Batch, Model, Outputs, Params, State
from jaxmodel.models import parts
from jaxmodel.models.configs import Perceptron
from jaxmodel.models.inputs import check_batch
from jaxmodel.models.sizes import require_sizes
from jaxmodel.nn import layer
from jaxmodel.nn.activations import ACTIVATIONS
from jaxmodel.nn.layer import STABLE, Layer, compact, einsum, he, normal, zeros
from jaxmodel.nn.norm import BatchNorm, Norm, fresh_statistics
from jaxmodel.sharding import Partitioning


def embedding(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Rows of about unit length, as a scaled feature has; but zeros for id 0, which training may never see."""
    rows = jax.random.normal(key, shape, dtype) * shape[-1] ** -0.5
    return rows.at[0].set(0.0)


class _Network(Layer):
    config: Perceptron

    @compact
    def __call__(self, batch: Batch, train: bool) -> tuple[jax.Array, jax.Array]:
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
            x = self.dropout(activation(self._norm(f"hidden{i}_norm", x, train)), config.dropout, train)
        hidden = x.astype(STABLE)
        return self._dense("outputs", "outputs", hidden, config.num_outputs or 0, normal(None)), hidden

    def _dense(self, name: str, dim: str, x: jax.Array, width: int, init: layer.Initializer) -> jax.Array:
        y = einsum(x, self.weight(name, f"inputs -> {dim}", x.shape[-1:], (width,), init))
        y = y + self.vector(f"{name}_bias", dim, (width,), zeros).astype(y.dtype)
        return self.constrain(y, "batch", None)

    def _norm(self, name: str, x: jax.Array, train: bool) -> jax.Array:
        width, config = x.shape[-1], self.config
        if config.norm == "batch":
            return BatchNorm(self.partitioning, width, config.epsilon, config.momentum, name=name)(x, train)
        if config.norm == "layer":
            kind = parts.Norm(kind="layer", epsilon=config.epsilon, bias=True)
            return Norm(self.partitioning, width, kind, name=name)(x)
        return x


def build(config: Perceptron, partitioning: Partitioning | None = None) -> Model:
    """A perceptron as pure functions.

    `features` float32[B,F] and `categories` int32[B,C], as far as the config has them, in; `logits`
    float32[B,outputs] and `embedding` (the last hidden layer, float32[B,units]) out. With batch norm `start()`
    gives fresh running statistics, which `apply` needs.

    Raises InputError (when built or called) for a size that is not known yet, a batch that is not as `config.inputs`
    says, dropout without a key, and batch norm without statistics. Ids must be below those in `categories`: others
    give NaN.
    """
    config.check()
    require_sizes(config)
    network = _Network(partitioning, config)

    def variables(key: jax.Array) -> Any:
        example = {name: jnp.zeros((1, dims[1]), dtype) for name, (dtype, dims) in config.inputs.items()}
        return _Network(None, config).init({"params": key}, example, False)

    def apply(
        params: Params, batch: Batch, state: State = None, *, key: jax.Array | None = None, train: bool = False
    ) -> Outputs:
        if train and config.dropout and key is None:
            raise InputError(f"model.dropout={config.dropout} needs a key in training: apply(…, key=key, train=True)")
        check_batch(batch, config.inputs, needed=config.inputs)
        rngs = {} if key is None else {"dropout": key}
        read = {name: batch[name] for name in config.inputs}
        both = {"params": params, "state": state or {}}
        out, changed = network.apply(both, read, train, rngs=rngs, mutable=["state"])
        return Outputs({"logits": out[0], "embedding": out[1]}, changed.get("state", {}))

    def start(batch_size: int | None = None, length: int | None = None) -> State:
        del batch_size, length
        return fresh_statistics(jax.eval_shape(variables, jax.random.key(0)).get("state", {}))

    layout = layer.layout_of(jax.eval_shape(variables, jax.random.key(0))["params"])
    return Model(lambda key: layer.params_of(variables(key)["params"]), apply, start, layout, config)
