"""Metrics: the same numbers however the examples were cut into batches."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxmodel import metrics


@given(st.lists(st.integers(0, 20), max_size=5), st.integers(0, 2**31))
def test_cuts_change_nothing(cuts, seed):
    rng = np.random.default_rng(seed)
    losses, weights = rng.integers(0, 100, 20), rng.integers(0, 3, 20)  # integers add up exactly
    weights[0] = 1
    edges = [0, *sorted(cuts), 20]
    total = {"loss": (0.0, 0.0)}
    for low, high in itertools.pairwise(edges):
        part = slice(low, high)
        pair = jnp.sum(jnp.asarray(losses[part] * weights[part], jnp.float32)), float(weights[part].sum())
        total = metrics.add(total, metrics.to_host({"loss": pair}))
    assert metrics.finish(total) == {"loss": (losses * weights).sum() / weights.sum()}


def test_sums_over_batches_are_of_64_bits():
    batch = {"loss": (jnp.float32(2**24), jnp.float32(2**24))}
    one = {"loss": (jnp.float32(1), jnp.float32(1))}
    numerator, _ = metrics.add(metrics.to_host(batch), metrics.to_host(one))["loss"]
    assert numerator == 2**24 + 1


def test_numbers():
    found = metrics.finish(
        {
            "loss": (3.0, 2.0),
            "perplexity": (3.0, 2.0),
            "accuracy": (1.0, 2.0),
        }
    )
    assert found["loss"] == 1.5 and found["accuracy"] == 0.5
    assert found["perplexity"] == math.exp(1.5)


def test_nothing_counted_is_nan_and_hopeless_is_infinite():
    assert math.isnan(metrics.finish({"loss": (0.0, 0.0)})["loss"])
    assert metrics.finish({"perplexity": (1e6, 1.0)})["perplexity"] == math.inf
    assert math.isnan(metrics.finish({"perplexity": (math.nan, 1.0)})["perplexity"])
