"""Augmentation: each change does what it says, by its own draw for each image, and evaluation never sees one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.config import fields
from jaxmodel.data.augment import AUGMENTATIONS, augment, augmented, rotate
from jaxmodel.options import Data

SIZE = 16
IMAGES = jax.random.uniform(jax.random.key(0), (64, SIZE, SIZE, 2), minval=0.5, maxval=1.5)


@functools.cache
def changed(*names):
    return np.asarray(jax.jit(augment, static_argnums=0)(names, IMAGES, jax.random.key(3)))


@functools.cache
def moved(rows, columns):
    """The images moved down by rows and right by columns, zeros coming in."""
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)))
    return padded[:, 2 - rows : 2 - rows + SIZE, 2 - columns : 2 - columns + SIZE]


def test_the_flag_names_them_all():
    assert fields(Data)["augment"].choices == tuple(AUGMENTATIONS)


def test_shift():
    found = changed("shift")
    steps = [(rows, columns) for rows in range(-2, 3) for columns in range(-2, 3)]
    which = [[np.array_equal(image, moved(*step)[i]) for step in steps] for i, image in enumerate(found)]
    assert (np.sum(which, axis=1) == 1).all()
    assert len(set(np.argmax(which, axis=1))) > 15  # 25 there are, 64 draws


def test_flip():
    same = [np.array_equal(image, IMAGES[i]) for i, image in enumerate(changed("flip"))]
    mirrored = [np.array_equal(image, IMAGES[i, :, ::-1]) for i, image in enumerate(changed("flip"))]
    assert np.logical_xor(same, mirrored).all() and 16 < np.sum(same) < 48


def test_cutout():
    blank = changed("cutout") == 0
    assert (blank[..., 0] == blank[..., 1]).all()
    np.testing.assert_array_equal(changed("cutout")[~blank], IMAGES[~blank])
    rows, columns = blank[..., 0].any(axis=2), blank[..., 0].any(axis=1)
    assert (rows.sum(axis=1) == 4).all() and (columns.sum(axis=1) == 4).all()
    assert (blank[..., 0].sum(axis=(1, 2)) == 16).all()  # a square, then
    assert set(rows.argmax(axis=1)) | set(columns.argmax(axis=1)) == set(range(13))


def test_rotate():
    """A disc stays where it is; a spot off the center keeps its distance from it, and turns by up to ten degrees."""
    y, x = np.mgrid[:33, :33] - 16.0
    spot = np.exp(-((x - 10) ** 2 + y**2) / 4)
    disc = np.exp(-(x**2 + y**2) / 4)
    images = np.repeat(np.stack([spot, disc], -1)[None], 40, axis=0).astype(np.float32)
    found = np.asarray(jax.jit(rotate)(images, jax.random.key(0)), np.float64)
    np.testing.assert_allclose(found[..., 1], images[..., 1], atol=0.06)  # of linear interpolation
    mass = found[..., 0].sum(axis=(1, 2))
    place = np.stack([(found[..., 0] * axis).sum(axis=(1, 2)) / mass for axis in (y, x)])
    np.testing.assert_allclose(np.hypot(*place), 10, rtol=0.02)
    angles = np.degrees(np.arctan2(*place))
    assert -10.2 < angles.min() < -7 and 7 < angles.max() < 10.2
    assert abs(angles.mean()) < 3


def test_changes_follow_each_other_with_keys_of_their_own():
    both = changed("shift", "flip")
    first = changed("shift")
    assert all(
        np.array_equal(image, first[i]) or np.array_equal(image, first[i, :, ::-1]) for i, image in enumerate(both)
    )
    assert augment((), IMAGES, jax.random.key(0)) is IMAGES
    assert not np.array_equal(augment(("shift", "shift"), IMAGES, jax.random.key(3)), changed("shift"))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_shape_and_dtype_stay_and_the_key_decides(name):
    images = jnp.asarray(IMAGES[:4], jnp.bfloat16)
    one, same, other = (augment((name,), images, jax.random.key(seed)) for seed in (1, 1, 2))
    assert one.shape == images.shape and one.dtype == images.dtype
    assert jnp.array_equal(one, same) and not jnp.array_equal(one, other)


def test_only_training_sees_changed_images():
    seen = []

    def loss(params, batch, state, key, train):
        seen.append((batch["images"], batch["targets"], key, train))
        return "result"

    batch, key = {"images": IMAGES, "targets": np.arange(64)}, jax.random.key(7)
    assert augmented(loss, ()) is loss
    assert augmented(loss, ("flip",))(None, batch, {}, None, False) == "result"
    assert seen[-1][0] is IMAGES
    augmented(loss, ("flip",))(None, batch, {}, key, True)
    images, targets, given, train = seen[-1]
    assert not np.array_equal(images, IMAGES) and targets is batch["targets"] and given is key and train
    assert not np.array_equal(images, augment(("flip",), IMAGES, key))  # a stream apart from the model's
