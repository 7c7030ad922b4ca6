"""The stem: tokens or images become vectors.

B batch, T time, D model dim; of an image H height, W width, C channels, P patch.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel import weights
from jaxmodel.models.configs import Transformer
from jaxmodel.models.parts import Images
from jaxmodel.nn.activations import gelu
from jaxmodel.nn.conv import windows
from jaxmodel.nn.layer import Layer, Weight, compact, normal, scaled, small
from jaxmodel.nn.norm import Norm
from jaxmodel.nn.waveform import Waveform


class Stem(Layer):
    """What the batch holds as vectors [B,T,D].

    Tokens int32[B,T], images float32[B,H,W,C] of T patches, samples float32[B,S] of T frames, or frames [B,2T,M] of
    sound. Beside them the batch may hold `types` int32[B,T], `masked` bool[B,P] and `vectors` [N,D].
    """

    config: Transformer

    @compact
    def __call__(
        self, inputs: jax.Array, positions: jax.Array, batch: Mapping[str, Any], train: bool = False
    ) -> jax.Array:
        config, stem = self.config, self.config.stem
        dtype = jnp.dtype(config.execution.dtype)
        width = stem.embed_dim or config.embed_dim
        if config.waveform is not None:
            waveform = Waveform(self.partitioning, config.waveform, config.norm, config.embed_dim, name="waveform")
            x = waveform(inputs.astype(dtype), positions >= 0, train)
        elif config.spectrogram is not None:
            x = self._convolved(inputs.astype(dtype))
        elif config.images is None:
            x = scaled(weights.take(self.table().leaf, inputs, dtype), stem.scale)
            if batch.get("vectors") is not None:
                here = inputs == stem.image_token
                nth = jnp.cumsum(here.reshape(-1)).reshape(here.shape) - 1  # of all that the batch holds
                x = jnp.where(here[..., None], jnp.take(batch["vectors"].astype(dtype), nth, axis=0), x)
        else:
            x = self._patches(inputs.astype(dtype), config.images, batch.get("masked"))
        if stem.num_types:
            table = self.vector("types", "types embed", (stem.num_types, width), small(self.config.init_scale))
            types = jnp.zeros((1, 1), jnp.int32) if batch.get("types") is None else batch["types"]
            x = x + jnp.take(table, types, axis=0).astype(dtype)
        if stem.positions == "learned":
            rows = config.max_length + stem.position_offset
            table = self.vector("positions", "length embed", (rows, width), small(self.config.init_scale))
            x = x + jnp.take(table, jnp.maximum(positions, 0) + stem.position_offset, axis=0).astype(dtype)
        if stem.norm:
            x = Norm(self.partitioning, config.norm, name="norm")(x)
        x = self.dropout(x, config.dropout, train)
        if stem.embed_dim is not None:
            x = self.linear(x, "projection", "mlp -> embed", (config.embed_dim,), normal(config.init_scale), True)
        return self.constrain(x, "batch", None, None)

    def table(self) -> Weight:
        """The embedding table, which a tied head multiplies by."""
        config = self.config
        assert config.vocab_size is not None
        width = config.stem.embed_dim or config.embed_dim
        return self.weight("tokens", "vocab <- embed", (width,), (config.vocab_size,), small(self.config.init_scale))

    def _convolved(self, x: jax.Array) -> jax.Array:
        """[B,N,M] to [B,N/2,D]: two convolutions over time."""
        D = self.config.embed_dim
        for i, stride in enumerate((1, 2)):
            x = windows(jnp.pad(x, ((0, 0), (1, 1), (0, 0))), 3, stride)
            x = gelu(self.linear(x, f"convolution_{i}", "window -> embed", (D,), normal(None), True))
        return x

    def _patches(self, images: jax.Array, config: Images, masked: jax.Array | None) -> jax.Array:
        """[B,H,W,C] to [B,T,D]: row by row, each patch flattened and projected; a class token before them.

        Patches where masked bool[B,T] is true are the mask token instead.
        """
        B, H, W, C = images.shape
        P, D = config.patch, self.config.embed_dim
        images = images[:, : H // P * P, : W // P * P]  # what is left at the end is in no patch
        patches = images.reshape(B, H // P, P, W // P, P, C).transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, P * P * C)
        x = self.linear(patches, "patches", "pixels -> embed", (D,), normal(None), config.bias)
        if config.mask_token:
            token = self.vector("mask_token", "embed_bias", (D,), small(self.config.init_scale)).astype(x.dtype)
            x = x if masked is None else jnp.where(masked[..., None], token, x)
        if not config.class_token:
            return x
        first = self.vector("class_token", "embed_bias", (D,), small(self.config.init_scale)).astype(x.dtype)
        return jnp.concatenate([jnp.broadcast_to(first, (B, 1, D)), x], axis=1)


class PerLayer(Layer):
    """A narrow vector of each token for each layer, [L,B,T,P]: by a table of tokens int32[B,T], and of x [B,T,D]."""

    config: Transformer

    @compact
    def __call__(self, tokens: jax.Array, x: jax.Array) -> jax.Array:
        config, narrow = self.config, self.config.per_layer
        assert narrow is not None
        L, P, D = config.num_layers, narrow.dim, config.embed_dim
        table = self.weight("tokens", "vocab <- embed", (L * P,), (narrow.vocab_size,), small(config.init_scale))
        found = weights.take(table.leaf, tokens, x.dtype) * P**0.5
        # Whole on every device: a cut would go through vectors.
        y = self.linear(x, "projection", "embed -> latent", (L * P,), normal(config.init_scale)) * D**-0.5
        y = Norm(self.partitioning, config.norm, name="norm")(y.reshape(*y.shape[:2], L, P))
        return (2**-0.5 * (y + found.reshape(y.shape))).transpose(2, 0, 1, 3)
