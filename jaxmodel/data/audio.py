"""Sound as models read it: log-mel frames of raw samples, as a pure function.

B batch, S samples, T frames, W samples of a window, R frequencies of its spectrum, M mel bands.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

FLOOR = 1e-10  # smallest power that a logarithm sees
HOP = 160  # samples from one frame to the next
RANGE = 8.0  # powers of ten below the loudest of a row that are kept


def log_mel(
    audio_BS: jax.Array | np.ndarray, *, bands: int = 80, rate: int = 16_000, window: int = 400, hop: int = HOP
) -> jax.Array:
    """Log-mel frames float32[B,T,M] of audio float32[B,S], with T = S // hop (Whisper, arXiv:2212.04356).

    Each row's floor is set by its own loudest moment. Whisper reads 30 s: pad shorter rows with zeros first.

    Args:
      audio_BS: samples between -1 and 1; more than half a window of them.
      bands: mel bands, which cover 0 to half the rate.
      rate: samples a second.
      window: samples that a frame sees.
      hop: samples from one frame to the next.
    """
    padded = jnp.pad(audio_BS.astype(jnp.float32), ((0, 0), (window // 2, window // 2)), mode="reflect")
    frames = audio_BS.shape[1] // hop
    at_TW = np.arange(frames)[:, None] * hop + np.arange(window)
    hann_W = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)).astype(np.float32)
    power_BTR = jnp.abs(jnp.fft.rfft(padded[:, at_TW] * hann_W)) ** 2
    mel_BTM = jnp.matmul(power_BTR, mel_filters(bands, rate, window), precision="highest")
    log = jnp.log10(jnp.maximum(mel_BTM, FLOOR))
    log = jnp.maximum(log, jnp.max(log, axis=(1, 2), keepdims=True) - RANGE)
    return (log + 4) / 4


@functools.lru_cache(maxsize=8)
def mel_filters(bands: int, rate: int, window: int) -> np.ndarray:
    """Triangles float32[R,M] of equal area, evenly spaced on Slaney's scale (Auditory Toolbox, 1998)."""
    edges = _hertz(np.linspace(0, _mel(rate / 2), bands + 2))
    frequencies = np.linspace(0, rate / 2, window // 2 + 1)[:, None]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return (np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)).astype(np.float32)


# Slaney's scale is linear up to 1000 Hz, which is 15 mel, and 27 mel are a factor of 6.4 above.


def _mel(hertz: float) -> float:
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * float(np.log(hertz / 1000) / np.log(6.4))


def _hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))
