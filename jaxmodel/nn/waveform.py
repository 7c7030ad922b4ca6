"""Samples of sound become vectors: convolutions that shorten them, then positions by another (arXiv:2006.11477).

B batch, S samples, T frames, C channels, D model dim, K frames of a window.
"""

import jax
import jax.numpy as jnp

from jaxmodel import weights
from jaxmodel.models import parts
from jaxmodel.nn.activations import ACTIVATIONS
from jaxmodel.nn.conv import grouped, windows
from jaxmodel.nn.layer import STABLE, Layer, compact, constant, normal, zeros
from jaxmodel.nn.norm import Norm

CHANNELS = parts.Norm(kind="layer", bias=True)


class Waveform(Layer):
    """Samples float32[B,S], and which frames are real, bool[B or 1,T], to [B,T,D]; what is not real is silent."""

    config: parts.Waveform
    norm: parts.Norm
    dim: int

    @compact
    def __call__(self, x_BS: jax.Array, real_BT: jax.Array, train: bool) -> jax.Array:
        config, D = self.config, self.dim
        activation = ACTIVATIONS[config.activation][0]
        x = x_BS[..., None]
        for i, (filters, size, stride) in enumerate(zip(config.dims, config.kernels, config.strides, strict=True)):
            name = f"convolution_{i}"
            x = self.linear(windows(x, size, stride), name, "window -> filters", (filters,), normal(None), config.bias)
            if config.norm == "layer" or i == 0:
                x = Norm(self.partitioning, CHANNELS, -1 if config.norm == "layer" else 1, name=f"{name}_norm")(x)
            x = activation(x)
        x = Norm(self.partitioning, self.norm, name="norm")(x)
        x = self.linear(x, "projection", "filters -> embed", (D,), normal(None), True)
        if config.mask_fraction:
            masked = self.vector("masked", "embed_bias", (D,), normal(0.02)).astype(x.dtype)
            x = jnp.where(self._spans(x.shape[:2])[..., None], masked, x) if train else x
        x = jnp.where(real_BT[..., None], x, 0)
        return x + activation(self._positions(x))

    def _spans(self, shape: tuple[int, ...]) -> jax.Array:
        """bool[B,T]: frames that training hides, in spans of equal length (SpecAugment, arXiv:1904.08779)."""
        length = self.config.mask_length
        begins = jax.random.bernoulli(self.make_rng("dropout"), self.config.mask_fraction / length, shape)
        begun = jnp.cumsum(begins, axis=1)
        return begun > jnp.pad(begun, ((0, 0), (length, 0)))[:, : shape[1]]

    def _positions(self, x_BTD: jax.Array) -> jax.Array:
        """A convolution over K frames, by groups of channels; of each of its K places a learned norm is kept apart."""
        D, K, size = self.dim, self.config.position_kernel, self.dim // self.config.position_groups
        weight = self.weight("positions", "window -> filters", (K * size,), (D,), normal(None))
        kernel = weights.dense(weight.leaf, STABLE).reshape(K, size, D)
        scale = self.vector("positions_scale", "window", (K,), constant((D / K) ** 0.5))  # what the norms begin with
        kernel = kernel * (scale / jnp.linalg.norm(kernel.reshape(K, -1), axis=1))[:, None, None]
        y = grouped(x_BTD, kernel, ((K // 2, (K - 1) // 2),))
        return y + self.vector("positions_bias", "embed_bias", (D,), zeros).astype(y.dtype)
