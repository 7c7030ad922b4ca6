"""A module of tables or images as pure functions: what networks with batch statistics have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel.errors import InputError
from jaxmodel.model import Batch, Model, Outputs, Params, State
from jaxmodel.models.inputs import check_batch
from jaxmodel.nn.layer import Layer, layout_of, params_of, rngs
from jaxmodel.nn.norm import fresh_statistics
from jaxmodel.sharding import Partitioning


def build(
    config: Any, module: type[Layer], shapes: Mapping[str, tuple[int, ...]], partitioning: Partitioning | None
) -> Model:
    """A model whose values are what `module(partitioning, config)` gives for (batch, train).

    Args:
      config: a `Perceptron` or a `ConvNet`.
      module: of it.
      shapes: of a small batch that it reads.
      partitioning: of a mesh.

    Raises InputError (when built or called) for a size that is not known yet, a batch that is not as `config.inputs`
    says, dropout without a key, and batch norm without statistics.
    """
    config.check()
    for name in config.by_data:
        if getattr(config, name) is None:
            raise InputError(f"model.{name} is not known: set it, or let the data tell, config.fitted(dataset.facts)")
    network = module(partitioning, config)  # pyright: ignore[reportCallIssue]

    def variables(key: jax.Array) -> Any:
        example = {name: jnp.zeros(shape, config.inputs[name][0]) for name, shape in shapes.items()}
        return module(None, config).init({"params": key}, example, False)  # pyright: ignore[reportCallIssue]

    def apply(
        params: Params, batch: Batch, state: State = None, *, key: jax.Array | None = None, train: bool = False
    ) -> Outputs:
        check_batch(batch, config.inputs, needed=config.inputs)
        if not state and config.norm == "batch":
            raise InputError("this model keeps batch statistics: pass state=model.start(), or a checkpoint's")
        if train and config.dropout and key is None:
            raise InputError(f"model.dropout={config.dropout} needs a key in training: apply(…, key=key, train=True)")
        both = {"params": params, "state": state or {}}
        read = {name: batch[name] for name in config.inputs}
        values, changed = network.apply(both, read, train, rngs=rngs(key), mutable=["state"])
        return Outputs(values, changed.get("state", {}))  # type: ignore[arg-type]

    def start(batch_size: int | None = None, length: int | None = None) -> State:
        del batch_size, length
        return fresh_statistics(jax.eval_shape(variables, jax.random.key(0)).get("state", {}))

    layout = layout_of(jax.eval_shape(variables, jax.random.key(0))["params"])
    return Model(lambda key: params_of(variables(key)["params"]), apply, start, layout, config)
