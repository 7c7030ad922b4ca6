"""A module of tables or images as pure functions: what networks with batch statistics have in common."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel.errors import InputError
from jaxmodel.model import Batch, Key, Model, Outputs, Params, State
from jaxmodel.models import parts
from jaxmodel.models.inputs import check_batch
from jaxmodel.nn.layer import Layer, layout_of, params_of, rngs
from jaxmodel.nn.norm import BatchNorm, Norm, fresh_statistics
from jaxmodel.sharding import Partitioning


class Network(Layer):
    """A network by its config, a `Perceptron` or a `ConvNet`."""

    config: Any

    def norm(self, name: str, x: jax.Array, train: bool) -> jax.Array:
        """x, normalised as the config says."""
        config = self.config
        if config.norm == "batch":
            how = config.epsilon, config.momentum, config.count_batches
            return BatchNorm(self.partitioning, *how, name=name)(x, train)
        return x if config.norm == "none" else self.layer_norm(name, x, config.epsilon)

    def layer_norm(self, name: str, x: jax.Array, epsilon: float) -> jax.Array:
        """x, normalised by layer norm."""
        return Norm(self.partitioning, parts.Norm(kind="layer", epsilon=epsilon, bias=True), name=name)(x)


def build(config: Any, module: type[Network], partitioning: Partitioning | None, side: int = 1) -> Model:
    """A model whose values are what `module(partitioning, config)` gives for (batch, train).

    Args:
      config: of the model.
      module: that it is for.
      partitioning: of a mesh.
      side: the least height and width of an image, of which something is left.

    Raises InputError (when built or called) for a size that is not known yet, a batch that is not as `config.inputs`
    says, dropout without a key, and batch norm without statistics.
    """
    for name in config.by_data:
        if getattr(config, name) is None:
            raise InputError(f"model.{name} is not known: set it, or let the data tell, config.fitted(dataset.facts)")
    network, inputs = module(partitioning, config), config.inputs
    sides = {"batch": 1, "height": side, "width": side}

    def variables(key: jax.Array) -> Any:
        example = {name: jnp.zeros([sides.get(d, d) for d in dims], kind) for name, (kind, dims) in inputs.items()}
        return module(None, config).init({"params": key}, example, False)

    def apply(params: Params, batch: Batch, state: State = None, *, key: Key = None, train: bool = False) -> Outputs:
        check_batch(batch, inputs, needed=inputs)
        if not state and config.norm == "batch":
            raise InputError("this model keeps batch statistics: pass state=model.start(), or a checkpoint's")
        if train and config.dropout and key is None:
            raise InputError(f"model.dropout={config.dropout} needs a key in training: apply(…, key=key, train=True)")
        both = {"params": params, "state": state or {}}
        values, changed = network.apply(both, batch, train, rngs=rngs(key), mutable=["state"])
        return Outputs(values, changed.get("state", {}))  # type: ignore[arg-type]

    def start(batch_size: int | None = None, length: int | None = None) -> State:
        del batch_size, length
        return fresh_statistics(jax.eval_shape(variables, jax.random.key(0)).get("state", {}))

    layout = layout_of(jax.eval_shape(variables, jax.random.key(0))["params"])
    return Model(lambda key: params_of(variables(key)["params"]), apply, start, layout, config)
