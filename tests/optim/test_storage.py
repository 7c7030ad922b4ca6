"""Averages in fewer bits: right on average, never stuck, never zero where something is divided by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.optim.storage import Int8, read, store, zeros
from jaxmodel.options import Optimizer
from tests.contract import same
from tests.optim.problem import learnt

SHAPE = (3, 8, 512)
DTYPES = ["bfloat16", "int8"]


def averages(negative) -> jax.Array:
    """Gradients' averages range over many powers of ten; block 1 of row 0 is all zero."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=SHAPE) * np.exp(rng.normal(size=SHAPE) * 2)
    x[0, 0, 256:] = 0
    return jnp.asarray(x if negative else np.square(x), jnp.float32)


def neighbours(x, dtype, negative):
    """The stored magnitudes next below and above those of x."""
    size = np.abs(np.asarray(x, np.float64))
    if dtype == "bfloat16":
        gap = 2.0 ** (np.floor(np.log2(np.where(size, size, 1))) - 7)
        below = np.floor(size / gap) * gap
        return below, below + gap
    levels = (np.arange(128) / 127) ** 2 if negative else (np.arange(1, 257) / 256) ** 4
    blocks = size.reshape(*SHAPE[:-1], 2, 256)
    largest = blocks.max(-1, keepdims=True)
    share = blocks / np.where(largest, largest, 1)
    above = np.clip(np.searchsorted(levels, share, side="right"), 1, len(levels) - 1)
    return tuple((levels[code] * largest).reshape(SHAPE) for code in (above - 1, above))


@pytest.mark.parametrize("negative", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_stored_is_a_neighbour_and_right_on_average(dtype, negative):
    x = np.asarray(averages(negative))
    through = jax.jit(lambda x, count: read(store(x, dtype, negative, count, 5)))
    kept = np.stack([through(x, jnp.int32(count)) for count in range(400)]).astype(np.float64)
    below, above = neighbours(x, dtype, negative)
    assert np.all(kept * np.sign(x) >= below * (1 - 1e-5)) and np.all(kept * np.sign(x) <= above * (1 + 1e-5))
    within = (np.abs(x) >= below) & (x != 0)  # what is below the least level of squares takes that
    assert within.mean() > 0.9
    off = ((kept.mean(0) - x) / np.where(within, above - below, 1))[within]
    deviation = 0.5 / 400**0.5  # of one mean, at most, in gaps
    assert np.max(np.abs(off)) < 6 * deviation
    assert np.abs(np.mean(off)) < 6 * deviation / off.size**0.5


def test_int8_keeps_the_largest_exactly_and_no_square_at_zero():
    for negative in (True, False):
        x = np.array(averages(negative))
        x[1, 0, :256] = 1e-12  # far below the largest of its block
        x[1, 0, 7] = 1.0
        stored = store(jnp.asarray(x), "int8", negative, jnp.int32(1), 0)
        assert isinstance(stored, Int8) and stored.scale.shape == (3, 8, 2)
        assert stored.values.dtype == (jnp.int8 if negative else jnp.uint8)
        kept = np.asarray(read(stored))
        largest = np.abs(x) == np.abs(x).reshape(3, 8, 2, 256).max(-1).repeat(256, -1)
        np.testing.assert_array_equal(kept[largest], x[largest])
        assert np.all(kept[1, 0, 8:256] == (0 if negative else np.float32(256.0**-4)))


@pytest.mark.parametrize(
    ("size", "blocks"),
    [(1, 1), (31, 1), (64, 1), (256, 1), (257, 1), (384, 2), (512, 2), (2048, 8), (300, 2), (50257, 1)],
)
def test_an_axis_is_cut_into_equal_blocks(size, blocks):
    assert zeros((2, size), "int8", True).scale.shape == (2, blocks)


@pytest.mark.parametrize("negative", [True, False])
@pytest.mark.parametrize("dtype", ["float32", *DTYPES])
def test_zeros_are_stored_zeros(dtype, negative):
    made = zeros((2, 512), dtype, negative)
    stored = store(jnp.zeros((2, 512)), dtype, negative, jnp.int32(1), 0)
    assert [a.dtype for a in jax.tree.leaves(made)] == [a.dtype for a in jax.tree.leaves(stored)]
    assert same(made, stored) and not np.any(read(made))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_slow_average_moves(dtype):
    """0.999 ** 1500 of it is left; rounded to the nearest number of 8 bits it would stay where it is."""
    x = jnp.linspace(0.5, 1.0, 512)[None]
    assert (jnp.ones((), jnp.bfloat16) * 0.999).astype(jnp.bfloat16) == 1

    def step(kept, count):
        return store(0.999 * read(kept), dtype, False, count, 0), None

    first = store(x, dtype, False, jnp.int32(0), 0)
    last = jax.jit(lambda kept: jax.lax.scan(step, kept, jnp.arange(1500))[0])(first)
    left = np.asarray(read(last) / x)
    assert abs(left.mean() / 0.999**1500 - 1) < 0.03
    assert left.max() < 2 * 0.999**1500


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_on_any_mesh(dtype):
    x = averages(False)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "a", "b"))
    f = jax.jit(lambda x, count: read(store(x, dtype, False, count, 3)))
    np.testing.assert_array_equal(f(jax.device_put(x, place), jnp.int32(7)), f(x, jnp.int32(7)))


def test_steps_and_arrays_round_apart():
    x = averages(True)
    seeds = ((1, 0), (1, 0), (2, 0), (1, 1))
    kept = [store(x, "bfloat16", True, jnp.int32(count), salt) for count, salt in seeds]
    alike = [float(jnp.mean(each == kept[0])) for each in kept]
    assert alike[1] == 1 and 0.4 < alike[2] < 0.8 and 0.4 < alike[3] < 0.8


@pytest.mark.parametrize("name", ["adamw", "rmsprop", "lion", "muon"])
def test_training_learns_as_well(name):
    def left(dtype):
        first, last = learnt(Optimizer(name=name, state_dtype=dtype))
        return last / first

    whole = left("float32")
    for dtype in DTYPES:
        assert left(dtype) == pytest.approx(whole, rel=0.02)
