"""A residual convolutional network of images: stem, stages of blocks, pooled features, perhaps a head."""

import jax
import jax.numpy as jnp

from jaxmodel.model import Batch, Model
from jaxmodel.models import network
from jaxmodel.models.plain import ConvNet
from jaxmodel.nn.activations import ACTIVATIONS
from jaxmodel.nn.conv import Conv, DepthwiseConv, max_pool
from jaxmodel.nn.layer import STABLE, compact, constant, he
from jaxmodel.sharding import Partitioning


class _Network(network.Network):
    config: ConvNet

    @compact
    def __call__(self, batch: Batch, train: bool) -> dict[str, jax.Array]:
        config, stem = self.config, self.config.stem
        inverted = config.block == "inverted"
        x = self._constrained(batch["images"].astype(jnp.dtype(config.execution.dtype)))
        x = self._normed("stem", x, stem.width or config.widths[0], stem.size, stem.stride, train)
        x = x if inverted else self._activation(x)
        x = max_pool(x) if stem.pool else x
        for stage, (width, blocks, stride) in enumerate(config.stages):
            if inverted and (stride != 1 or x.shape[-1] != width):
                x = self.norm(f"stage{stage}_down_norm", x, train)
                x = self._conv(f"stage{stage}_down", x, width, stride, stride, train)
            for block in range(blocks):
                run = self._inverted if inverted else self._residual
                x = run(f"stage{stage}_{block}", x, width, 1 if block else stride, train)
        pooled = jnp.mean(x.astype(STABLE), axis=(1, 2))
        if config.pool_epsilon is not None:
            pooled = self.layer_norm("pool_norm", pooled, config.pool_epsilon)
        values = {"hidden": x, "embedding": self.dropout(pooled, config.dropout, train)}
        if count := config.num_classes:
            values["logits"] = self.linear(values["embedding"], "classes", "filters_in -> classes", (count,), he, True)
        return values

    def _residual(self, name: str, x: jax.Array, width: int, stride: int, train: bool) -> jax.Array:
        """activation(x + f(x)), with x projected where its shape changes."""
        config, h = self.config, x
        last = len(config.convolutions) - 1
        strided = 0 if config.stride_early else last - 1  # the first that is spatial
        for i, (part, size, factor) in enumerate(config.convolutions):
            step = stride if i == strided else 1
            h = self._normed(f"{name}_{part}", h, int(width * factor), size, step, train)
            h = self._activation(h) if i < last else h
        if stride != 1 or x.shape[-1] != width:
            x = self._normed(f"{name}_skip", x, width, 1, stride, train)
        return self._added(name, x, h)

    def _inverted(self, name: str, x: jax.Array, width: int, stride: int, train: bool) -> jax.Array:
        """x + f(x), where f is spatial first, for each channel by itself, and then wide; strides are between stages."""
        config = self.config
        (first, size, _), (second, _, factor), (third, _, _) = config.convolutions
        h = DepthwiseConv(self.partitioning, size, config.bias, name=f"{name}_{first}")(x)
        h = self.norm(f"{name}_{first}_norm", self._constrained(h), train)
        h = self._activation(self._conv(f"{name}_{second}", h, int(width * factor), 1, 1, train))
        return self._added(name, x, self._conv(f"{name}_{third}", h, width, 1, 1, train))

    def _activation(self, x: jax.Array) -> jax.Array:
        return ACTIVATIONS[self.config.activation][0](x)

    def _added(self, name: str, x: jax.Array, h: jax.Array) -> jax.Array:
        if (scale := self.config.layer_scale) is not None:
            h = h * self.vector(f"{name}_scale", "filters", x.shape[-1:], constant(scale)).astype(h.dtype)
        return x + h if self.config.block == "inverted" else self._activation(x + h)

    def _normed(self, name: str, x: jax.Array, width: int, size: int, stride: int, train: bool) -> jax.Array:
        return self._constrained(self.norm(f"{name}_norm", self._conv(name, x, width, size, stride, train), train))

    def _conv(self, name: str, x: jax.Array, width: int, size: int, stride: int, train: bool) -> jax.Array:
        return Conv(self.partitioning, width, size, stride, self.config.bias, name=name)(x, train)

    def _constrained(self, x: jax.Array) -> jax.Array:
        return self.constrain(x, "batch", None, None, None)


def build(config: ConvNet, partitioning: Partitioning | None = None) -> Model:
    """A network of images, float32[B,H,W,C], as pure functions.

    Values are `hidden` [B,H',W',D], its last feature map; `embedding` float32[B,D], the mean of that; and `logits`
    float32[B,classes] where it has a head. With batch norm, `start()` gives fresh running statistics; `apply` needs
    them, and in training returns their successors.

    Raises InputError as `network.build` says.
    """
    side = config.stem.stride * 2 ** len(config.widths)  # the smallest that leaves something of an image
    return network.build(config, _Network, partitioning, side)
