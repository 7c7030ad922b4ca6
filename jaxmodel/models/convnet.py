"""A residual convolutional classifier with batch norm and dropout (basic blocks of arXiv:1512.03385)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel.errors import InputError
from jaxmodel.model import Batch, Model, Outputs, Params, State
from jaxmodel.models.configs import ConvNet
from jaxmodel.models.inputs import check_batch
from jaxmodel.models.sizes import require_sizes
from jaxmodel.nn import layer
from jaxmodel.nn.conv import Conv
from jaxmodel.nn.layer import STABLE, Layer, compact, einsum, he, zeros
from jaxmodel.nn.norm import BatchNorm, fresh_statistics
from jaxmodel.sharding import Partitioning


class _Network(Layer):
    config: ConvNet

    @compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        config = self.config
        x = self.constrain(images.astype(jnp.dtype(config.execution.dtype)), "batch", None, None, None)
        x = jax.nn.relu(self._conv("stem", x, config.widths[0], 3, 1, train))
        for stage, width in enumerate(config.widths):
            for block in range(config.blocks):
                stride = 2 if stage and not block else 1
                name = f"stage{stage}_{block}"
                h = jax.nn.relu(self._conv(f"{name}_first", x, width, 3, stride, train))
                h = self._conv(f"{name}_second", h, width, 3, 1, train)
                if stride != 1 or x.shape[-1] != width:
                    x = self._conv(f"{name}_skip", x, width, 1, stride, train)
                x = jax.nn.relu(x + h)
        pooled = self.dropout(jnp.mean(x.astype(STABLE), axis=(1, 2)), config.dropout, train)
        num_classes = config.num_classes or 0  # not None: `build` has looked
        weight = self.weight("classes", "filters_in -> classes", pooled.shape[-1:], (num_classes,), he)
        bias = self.vector("classes_bias", "classes", (num_classes,), zeros)
        return einsum(pooled, weight) + bias, pooled

    def _conv(self, name: str, x: jax.Array, width: int, size: int, stride: int, train: bool) -> jax.Array:
        y = Conv(self.partitioning, x.shape[-1], width, size, stride, he, name=name)(x)
        norm = BatchNorm(
            self.partitioning, width, self.config.epsilon, self.config.momentum, name=f"{name}_norm"
        )
        return self.constrain(norm(y, train), "batch", None, None, None)


def build(config: ConvNet, partitioning: Partitioning | None = None) -> Model:
    """A classifier as pure functions: `images` float32[B,H,W,C] in, `logits` float32[B,classes] and `embedding` out.

    `start()` gives fresh running statistics; `apply` needs them, and in training returns their successors.
    """
    config.check()
    require_sizes(config)
    network = _Network(partitioning, config)

    def variables(key: jax.Array) -> Any:
        return _Network(None, config).init({"params": key}, jnp.zeros((1, 4, 4, config.channels or 0)), False)

    def apply(
        params: Params,
        batch: Batch,
        state: State = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Outputs:
        check_batch(batch, config.inputs, needed=config.inputs)
        if not state:
            raise InputError("this model keeps batch statistics: pass state=model.start(), or a checkpoint's")
        if train and config.dropout and key is None:
            raise InputError(
                f"model.dropout={config.dropout} needs a key in training: apply(…, key=key, train=True)"
            )
        rngs = {} if key is None else {"dropout": key}
        both = {"params": params, "state": state}
        out, changed = network.apply(both, batch["images"], train, rngs=rngs, mutable=["state"])
        return Outputs({"logits": out[0], "embedding": out[1]}, changed["state"])

    def start(batch_size: int | None = None, length: int | None = None) -> State:
        del batch_size, length
        return fresh_statistics(jax.eval_shape(variables, jax.random.key(0))["state"])

    layout = layer.layout_of(jax.eval_shape(variables, jax.random.key(0))["params"])
    return Model(lambda key: layer.params_of(variables(key)["params"]), apply, start, layout, config)
