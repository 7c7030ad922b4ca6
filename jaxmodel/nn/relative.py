"""Relative positions: a learned bias on scores for each head and bucket of distances (T5, arXiv:1910.10683)."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodel.models import parts
from jaxmodel.models.configs import Transformer
from jaxmodel.nn.layer import Layer, compact, small


class Relative(Layer):
    """The bias float32[H, 2 max_distance + 1] of each head, by distance: that of a key `max_distance` before first."""

    config: Transformer

    @compact
    def __call__(self) -> jax.Array:
        config = self.config.attention
        assert config.relative is not None
        shape, init = (config.relative.buckets, config.num_heads), small(self.config.init_scale)
        return self.vector("table", "buckets heads", shape, init)[buckets(config.relative, config.causal)].T


def bias_between(relative: jax.Array, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """float32[B,H,T,S] for positions int32[B,T] and [B,S], from what `Relative` gives."""
    far = relative.shape[1] // 2
    distance = jnp.clip(keys[:, None, :] - queries[:, :, None], -far, far)
    return jnp.moveaxis(jnp.take(relative, distance + far, axis=1), 0, 1)


def buckets(config: parts.Relative, causal: bool) -> np.ndarray:
    """Which bucket each distance from -max_distance to max_distance falls in.

    Half of them hold one distance each, the others ever more; beyond `max_distance` is the last one. Where a token
    sees only earlier ones all are for those, elsewhere half of them.
    """
    distance = np.arange(-config.max_distance, config.max_distance + 1)
    count = config.buckets if causal else config.buckets // 2
    later = 0 if causal else (distance > 0) * count
    distance = np.maximum(-distance, 0) if causal else np.abs(distance)
    exact = count // 2
    # In float32, as others compute it: some distances fall just on a border.
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    wide = np.log(ratio) / np.float32(math.log(config.max_distance / exact)) * np.float32(count - exact)
    return later + np.where(distance < exact, distance, np.minimum(exact + wide.astype(int), count - 1))
