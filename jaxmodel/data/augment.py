"""Random changes of images, as pure functions of images float32[B,H,W,C] and a key, for use inside a jitted step.

Every image of a batch is changed by its own draw; what comes in from beyond the border is zero. How far they go is
fixed by the size of the image, so that a name says it all: `augment(("shift", "flip"), images, key)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

SHIFT = 8  # images move by up to a pixel in this many, each way
CUTOUT = 4  # a square of a side of one in this many is blanked
ROTATE = 10.0  # degrees, each way
STREAM = 0x617567  # folded into the step's key, so that these draws are none of the model's


def shift(images: jax.Array, key: jax.Array) -> jax.Array:
    """Moved by up to an eighth of the size (one pixel at least) along each side: pad and crop (arXiv:1512.03385)."""
    batch, height, width, channels = images.shape
    rows, columns = max(1, height // SHIFT), max(1, width // SHIFT)
    padded = jnp.pad(images, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
    limits = jnp.array([2 * rows + 1, 2 * columns + 1])
    starts = jax.random.randint(key, (batch, 2), 0, limits)

    def crop(image: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (start[0], start[1], 0), (height, width, channels))

    return jax.vmap(crop)(padded, starts)


def flip(images: jax.Array, key: jax.Array) -> jax.Array:
    """Half of them mirrored left to right."""
    mirrored = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def rotate(images: jax.Array, key: jax.Array) -> jax.Array:
    """Turned about the center by up to ten degrees each way, interpolated linearly."""
    batch, height, width, _ = images.shape
    angles = jax.random.uniform(key, (batch,), minval=-1.0, maxval=1.0) * (ROTATE * jnp.pi / 180)
    y, x = jnp.meshgrid(jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij")

    def turn(image: jax.Array, angle: jax.Array) -> jax.Array:
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        places = [y * cosine - x * sine + (height - 1) / 2, y * sine + x * cosine + (width - 1) / 2]

        def channel(plane: jax.Array) -> jax.Array:
            return jax.scipy.ndimage.map_coordinates(plane, places, order=1, mode="constant")

        return jax.vmap(channel, in_axes=-1, out_axes=-1)(image)

    return jax.vmap(turn)(images, angles)


def cutout(images: jax.Array, key: jax.Array) -> jax.Array:
    """A square of a quarter of the shorter side blanked, wherever it lies within the image (arXiv:1708.04552)."""
    batch, height, width, _ = images.shape
    side = max(1, min(height, width) // CUTOUT)
    limits = jnp.array([height - side + 1, width - side + 1])
    top, left = jax.random.randint(key, (batch, 2), 0, limits).T[..., None]
    y, x = jnp.arange(height), jnp.arange(width)
    rows, columns = (top <= y) & (y < top + side), (left <= x) & (x < left + side)
    blank = rows[:, :, None] & columns[:, None, :]
    return jnp.where(blank[..., None], 0.0, images)


AUGMENTATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "shift": shift,
    "flip": flip,
    "rotate": rotate,
    "cutout": cutout,
}


def augment(names: Sequence[str], images: jax.Array, key: jax.Array) -> jax.Array:
    """The named changes, one after the other, each with a key of its own."""
    for i, name in enumerate(names):
        images = AUGMENTATIONS[name](images, jax.random.fold_in(key, i)).astype(images.dtype)
    return images


def augmented(loss: Any, names: Sequence[str]) -> Any:
    """A loss (see `tasks.LossFn`) that in training sees changed images: loss -> loss.

    It draws from the key of the step, and leaves evaluation, and the key that the model gets, as they were.
    """
    if not names:
        return loss

    def changed(params: Any, batch: Any, state: Any, key: jax.Array | None, train: bool) -> Any:
        if train:
            assert key is not None, "augmentation draws random numbers: pass a key"
            images = augment(names, batch["images"], jax.random.fold_in(key, STREAM))
            batch = {**batch, "images": images}
        return loss(params, batch, state, key, train)

    return changed
