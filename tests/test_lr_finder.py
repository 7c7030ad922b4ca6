"""The range test finds a rate that works, leaves the weights alone, and says when nothing can be found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.errors import InputError
from jaxmodel.lr_finder import HIGH, LOW, find_learning_rate
from jaxmodel.model import from_function
from jaxmodel.options import Optimizer
from jaxmodel.tasks import Result

CURVATURE = 4.0
MODEL = from_function(lambda key: {"w": jnp.full((3,), 2.0)}, lambda params, batch: params["w"])


def bowl(params, batch, state, key, train):
    """CURVATURE / 2 * w² for each of three numbers: gradient descent is stable below a rate of 2 / CURVATURE."""
    weight = jnp.sum(batch["weights"])
    return Result(CURVATURE / 2 * jnp.sum(params["w"] ** 2) * weight, weight, {}, {})


def flat(params, batch, state, key, train):
    """Nothing to learn, and nothing learnt."""
    return Result(jnp.sum(params["w"]) * 0 + 1, jnp.ones(()), {}, {})


def batches(count=100):
    return ({"weights": np.ones(2, np.float32)} for _ in range(count))


PLAIN = Optimizer(name="sgd", clip_norm=None, schedule="cosine", warmup=50, final_learning_rate=0.5)


def test_the_suggestion_is_a_rate_that_descends():
    params = {"w": jnp.full((3,), 2.0)}
    found = find_learning_rate(MODEL, bowl, PLAIN, batches(), jax.random.key(0), params=params)
    assert found.rates[0] == LOW and found.rates[-1] < HIGH  # it stopped where the loss was lost
    assert found.rates[-1] > 2 / CURVATURE
    np.testing.assert_allclose(np.diff(np.log(found.rates)), np.log(HIGH / LOW) / 99, rtol=1e-9)
    assert 0.01 / CURVATURE < found.suggestion < 2 / CURVATURE
    np.testing.assert_array_equal(params["w"], 2.0)  # and not used up


def test_losses_are_those_of_descent_with_rising_rates():
    found = find_learning_rate(MODEL, bowl, PLAIN, batches(), jax.random.key(0))
    w, average, expected = 2.0, 0.0, []
    for i, rate in enumerate(found.rates):
        average = 0.9 * average + 0.1 * 3 * CURVATURE / 2 * w**2
        expected.append(average / (1 - 0.9 ** (i + 1)))
        w -= rate * CURVATURE * w
    np.testing.assert_allclose(found.losses, expected, rtol=1e-4)


def test_a_loss_that_never_falls_is_said_so():
    with pytest.raises(InputError, match=r"the loss never fell; look at the data and the model"):
        find_learning_rate(MODEL, flat, PLAIN, batches(), jax.random.key(0))
