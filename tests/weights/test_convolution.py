"""Both ways to convolve by a weight, against XLA's own convolution, and which of them is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel import weights
from jaxmodel.weights.convolution import FEWEST, patches, winograd

DIMS = ("NHWC", "HWIO", "NHWC")


def arrays(*shapes, dtype=jnp.float32):
    return [jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate(shapes)]


def same_padding(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMS)


@pytest.mark.parametrize(
    ("size", "stride", "shape"),
    [(1, 2, (3, 4)), (3, 1, (5, 7)), (3, 2, (3, 4)), (7, 2, (3, 4)), (2, 2, (2, 3)), (4, 4, (1, 1))],
)
def test_windows_are_those_of_a_convolution(size, stride, shape):
    x, kernel = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(2, 5, 7, 3), (size, size, 3, 4)]))
    pad = 0 if size == stride else (size - 1) // 2
    expected = jax.lax.conv_general_dilated(
        *(x, kernel, (stride, stride), ((pad, pad), (pad, pad))), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    found = patches(x, size, stride) @ kernel.reshape(-1, 4)
    assert found.shape == (2, *shape, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (4, 1), (1, 1), (2, 3)])
def test_fewer_products_are_the_same_convolution_and_derivatives(size):
    with jax.enable_x64(True):
        x, kernel, dy = arrays((2, *size, 3), (3, 3, 3, 4), (2, *size, 4), dtype=jnp.float64)
        expected, back = jax.vjp(same_padding, x, kernel)
        found, our_back = jax.vjp(winograd, x, kernel)
        for ours, theirs in zip((found, *our_back(dy)), (expected, *back(dy)), strict=True):
            assert ours.shape == theirs.shape and ours.dtype == jnp.float64
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-13 * np.abs(theirs).max())


def test_errors_of_fewer_products_are_those_of_the_definition_at_most_twice():
    x, kernel, dy = arrays((4, 16, 16, 64), (3, 3, 64, 64), (4, 16, 16, 64))
    wide = [each.astype(np.float64) for each in map(np.asarray, (x, kernel, dy))]
    with jax.enable_x64(True):
        exact, back = jax.vjp(same_padding, *map(jnp.asarray, wide[:2]))
        exact = [np.asarray(each) for each in (exact, *back(jnp.asarray(wide[2])))]

    def by_windows(x, kernel):
        return weights.convolve(x, kernel.reshape(-1, 64), 3, 1)

    def errors(convolve):
        found, back = jax.vjp(convolve, x, kernel)
        both = zip((found, *back(dy)), exact, strict=True)
        return np.array([np.sqrt(np.mean((each - true) ** 2) / np.mean(true**2)) for each, true in both])

    ratios = errors(winograd) / errors(by_windows)
    assert (ratios < 2).all(), ratios


def test_second_derivatives_and_examples_one_by_one():
    x, kernel = arrays((3, 5, 4, 2), (3, 3, 2, 2))

    def loss(convolve):
        return lambda kernel, x: jnp.sum(jnp.sin(convolve(x[None], kernel)))

    ours, theirs = (jax.vmap(jax.grad(loss(each)), (None, 0))(kernel, x) for each in (winograd, same_padding))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)

    def squared(convolve):
        return lambda kernel: jnp.sum(jax.grad(loss(convolve))(kernel, x[0]) ** 2)

    ours, theirs = (jax.grad(squared(each))(kernel) for each in (winograd, same_padding))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "filters", "size", "stride", "dtype", "training", "quick"),
    [
        (FEWEST, 16, 3, 1, jnp.float32, True, True),
        (FEWEST, 16, 3, 1, jnp.float32, False, False),
        (FEWEST - 1, 16, 3, 1, jnp.float32, True, False),
        (FEWEST, 17, 3, 1, jnp.float32, True, False),
        (17, FEWEST, 3, 1, jnp.float32, True, False),
        (FEWEST, 16, 3, 2, jnp.float32, True, False),
        (FEWEST, 16, 1, 1, jnp.float32, True, False),
        (FEWEST, 16, 3, 1, jnp.bfloat16, True, False),
    ],
)
def test_fewer_products_are_for_training_alone(channels, filters, size, stride, dtype, training, quick):
    x, weight = arrays((1, 8, 8, channels), (size * size * channels, filters), dtype=dtype)
    program = jax.make_jaxpr(lambda x, w: weights.convolve(x, w, size, stride, training=training))(x, weight)
    assert str(program).count("dot_general") == (16 if quick else 1)


def test_a_quantized_weight_multiplies_as_it_always_does():
    x, weight = arrays((1, 8, 8, FEWEST), (9 * FEWEST, 8))
    packed = weights.quantize({"kernel": weight}, {"kernel": "height width channels -> filters"})["kernel"]
    found = weights.convolve(x, packed, 3, 1, training=True)
    np.testing.assert_array_equal(found, weights.matmul(patches(x, 3, 1), packed))
