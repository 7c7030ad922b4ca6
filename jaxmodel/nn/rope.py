"""Rotary positions (arXiv:2104.09864), and the ways to make them reach further than they were trained.

B batch, T time, H heads, K head dim, R = pairs that are turned.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodel.models.parts import Attention, Rope
from jaxmodel.nn.layer import STABLE


def rotate(x_BTHK: jax.Array, positions: jax.Array, attention: Attention, max_length: int) -> jax.Array:
    """Turn the pairs of each head by their positions, int32[B,T]; what lies beyond `rope.fraction` stays as it is.

    Args:
      x_BTHK: queries or keys.
      positions: negative ones (padding) count as 0.
      attention: whose `rope_theta` and `rope` apply.
      max_length: tokens the model is made for.
    """
    rope, width = attention.rope, x_BTHK.shape[-1]
    turned = width if rope.scaling == "proportional" else int(width * rope.fraction)
    positions = jnp.maximum(positions, 0)
    # A row's own length, so that what shares the batch changes nothing.
    length = jnp.max(positions, axis=1)[:, None, None] + 1
    frequency = frequencies(rope, attention.rope_theta, turned, max_length, length)
    angle_BTHR = (positions[..., None].astype(STABLE) * frequency)[:, :, None]
    factor = attention_factor(rope, max_length)
    sin, cos = jnp.sin(angle_BTHR) * factor, jnp.cos(angle_BTHR) * factor
    x = x_BTHK[..., :turned].astype(STABLE)
    low, high = (x[..., ::2], x[..., 1::2]) if rope.interleaved else jnp.split(x, 2, axis=-1)
    pair = low * cos - high * sin, high * cos + low * sin
    out = jnp.stack(pair, axis=-1).reshape(x.shape) if rope.interleaved else jnp.concatenate(pair, axis=-1)
    out = out.astype(x_BTHK.dtype)
    return out if turned == width else jnp.concatenate([out, x_BTHK[..., turned:]], axis=-1)


def attention_factor(rope: Rope, max_length: int) -> float:
    """What sines and cosines are scaled by: a longer context wants sharper attention."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor <= 1 or rope.scaling not in ("yarn", "longrope"):
        return 1.0
    if rope.scaling == "yarn":
        return 0.1 * math.log(rope.factor) + 1.0
    return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_length or max_length))


def frequencies(rope: Rope, theta: float, turned: int, max_length: int, length: jax.Array) -> Any:
    """Radians a token of each pair, float32 [R]; or [B,1,R], by the length int32[B,1,1] of each row."""
    exponent = np.arange(0, turned, 2, dtype=np.float32) / np.float32(turned)
    plain = (np.float32(1) / np.float32(theta) ** exponent).astype(np.float32)
    return SCALINGS[rope.scaling](rope, plain, theta, rope.original_length or max_length, length)


# (rope, radians without it, theta, tokens it was trained for, length) -> what `frequencies` gives.
Scaling = Callable[[Rope, np.ndarray, float, int, jax.Array], Any]


def _plain(rope: Rope, plain: np.ndarray, *_: Any) -> np.ndarray:
    return plain


def _linear(rope: Rope, plain: np.ndarray, *_: Any) -> np.ndarray:
    """Positions pressed together (arXiv:2306.15595)."""
    return plain / np.float32(rope.factor)


def _dynamic(rope: Rope, plain: np.ndarray, theta: float, original: int, length: jax.Array) -> jax.Array:
    """A larger base once a row is longer than the model was trained ("NTK-aware", by bloc97 and emozilla)."""
    turned = 2 * len(plain)
    longer = jnp.maximum(length, original).astype(STABLE)
    stretch = rope.factor * longer / original - (rope.factor - 1)
    base = theta * stretch ** (turned / (turned - 2))
    return 1.0 / base ** (jnp.arange(0, turned, 2, dtype=STABLE) / turned)


def _llama3(rope: Rope, plain: np.ndarray, theta: float, original: int, length: jax.Array) -> np.ndarray:
    """Slow turns stretched, quick ones not, those between by degrees (arXiv:2407.21783)."""
    turns = original * plain / (2 * math.pi)
    kept = np.clip((turns - rope.low_frequency) / (rope.high_frequency - rope.low_frequency), 0, 1)
    return ((1 - kept) * plain / rope.factor + kept * plain).astype(np.float32)


def _yarn(rope: Rope, plain: np.ndarray, theta: float, original: int, length: jax.Array) -> np.ndarray:
    """As llama3, by degrees over the index of the pair (arXiv:2309.00071)."""
    turned = 2 * len(plain)

    def index(turns: float) -> float:
        """The pair, as a real number, that turns so often within the original length."""
        return turned * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = index(rope.beta_fast), index(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, turned - 1)
    stretched = np.clip((np.arange(len(plain), dtype=np.float32) - low) / max(high - low, 1e-3), 0, 1)
    return (plain / rope.factor * stretched + plain * (1 - stretched)).astype(np.float32)


def _longrope(rope: Rope, plain: np.ndarray, theta: float, original: int, length: jax.Array) -> jax.Array:
    """A stretch for each pair, one list up to the original length and one beyond (arXiv:2402.13753)."""
    short, long = (np.asarray(each, np.float32) for each in (rope.short_factors, rope.long_factors))
    return jnp.asarray(plain) / jnp.where(length > original, long, short)


def _proportional(rope: Rope, plain: np.ndarray, *_: Any) -> np.ndarray:
    """The slow pairs of a head stand still (Gemma 4)."""
    turning = np.arange(len(plain)) < int(rope.fraction * len(plain))
    return np.where(turning, plain / np.float32(rope.factor), np.float32(0))


SCALINGS: dict[str, Scaling] = {
    "none": _plain,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "proportional": _proportional,
}
