"""Activations: values and slopes of float64 closed forms, from nearly nothing to very large inputs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.models.parts import ACTIVATIONS as NAMES
from jaxmodel.models.parts import GATED
from jaxmodel.nn.activations import ACTIVATIONS
from tests.contract import compiled

erfc = np.vectorize(math.erfc)


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def of_sigmoid(scale):
    """x * sigmoid(scale x), and its slope."""
    return (lambda x: x * sigmoid(scale * x), lambda x: sigmoid(scale * x) * (1 + scale * x * sigmoid(-scale * x)))


def inner(x):
    return math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)


def inner_slope(x):
    return math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)


def softplus(x):
    return np.logaddexp(0, x)


def sech2(x):
    """1 - tanh(x)², with all its digits where tanh is nearly one."""
    return 4 * sigmoid(2 * x) * sigmoid(-2 * x)


REFERENCES = {  # name -> (value, slope)
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0) * 1.0),
    "leaky_relu": (lambda x: np.where(x > 0, x, 0.01 * x), lambda x: np.where(x > 0, 1, 0.01)),
    "elu": (lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), lambda x: np.exp(np.minimum(x, 0))),
    "gelu": (
        lambda x: 0.5 * x * erfc(-x / math.sqrt(2)),
        lambda x: 0.5 * erfc(-x / math.sqrt(2)) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi),
    ),
    "gelu_tanh": (
        lambda x: x * sigmoid(2 * inner(x)),
        lambda x: sigmoid(2 * inner(x)) + 0.5 * x * sech2(inner(x)) * inner_slope(x),
    ),
    "quick_gelu": of_sigmoid(1.702),
    "silu": of_sigmoid(1),
    "mish": (lambda x: x * np.tanh(softplus(x)), lambda x: np.tanh(softplus(x)) + x * sech2(softplus(x)) * sigmoid(x)),
    "tanh": (np.tanh, sech2),
    "sigmoid": (sigmoid, lambda x: sigmoid(x) * sigmoid(-x)),
    "softplus": (softplus, sigmoid),
    "relu_squared": (lambda x: np.maximum(x, 0) ** 2, lambda x: 2 * np.maximum(x, 0)),
}
REFERENCES |= {
    "swiglu": REFERENCES["silu"],
    "geglu": REFERENCES["gelu_tanh"],
    "geglu_exact": REFERENCES["gelu"],
    "quick_geglu": REFERENCES["quick_gelu"],
}
X = np.concatenate([np.linspace(-6, 6, 41) + 0.013, [1e-20, 9, 12.5, 20, 88, 89, 150, 1e3, 1e4, 1e9]])
X = np.asarray(np.concatenate([X, -X]), np.float32)


def test_the_config_knows_every_activation():
    assert set(NAMES) == set(ACTIVATIONS) == set(REFERENCES)
    assert set(GATED) == {name for name, (_, gated) in ACTIVATIONS.items() if gated}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_slopes(name):
    function = ACTIVATIONS[name][0]
    x = X.astype(np.float64)
    value, slope = (reference(x) for reference in REFERENCES[name])
    np.testing.assert_allclose(compiled(function)(X), value, rtol=2e-6, atol=5e-7)
    # What float32 rounds off 1 - tanh², 6e-8, the slope of a GELU by tanh multiplies by up to 25.
    reverse = compiled(jax.grad(lambda x: function(x).sum()))(X)
    forward = compiled(lambda x: jax.jvp(function, (x,), (jnp.ones(X.shape),))[1])(X)
    for found in (reverse, forward):
        np.testing.assert_allclose(found, slope, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_dtype_stays(name):
    found = ACTIVATIONS[name][0](jnp.asarray(X, jnp.bfloat16))
    assert found.dtype == jnp.bfloat16 and bool(jnp.all(jnp.isfinite(found)))
