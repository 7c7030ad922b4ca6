"""Tasks: sums that do not depend on padding, pieces or how the loss is computed; and what they measure."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel import metrics
from jaxmodel.losses import cross_entropy
from jaxmodel.tasks import classification, language_model
from tests import contract
from tests.bigram import B, T, V, batch_of, bigram, routed
from tests.contract import built, params_of, relative


def test_language_model_measures():
    model, data = bigram(), batch_of()
    params = model.init(jax.random.key(0))
    result = language_model(model)(params, data, {}, None, False)
    logits = np.asarray(model.apply(params, data)["logits"], np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nats = -(np.take_along_axis(logs, data["targets"][..., None], -1)[..., 0] * data["weights"]).sum()
    tokens = data["weights"].sum()
    found = metrics.finish(result.metrics)
    assert found["loss"] == pytest.approx(nats / tokens, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-6)
    assert found["accuracy"] == pytest.approx(
        ((logits.argmax(-1) == data["targets"]) * data["weights"]).sum() / tokens
    )
    assert (result.sum, result.weight) == result.metrics["loss"]


@pytest.mark.parametrize("chunk, shards", [(1, 1), (4, 1), (2, 4)])
def test_streaming_changes_no_number(chunk, shards):
    model, data = routed(bigram()), batch_of()
    params = model.init(jax.random.key(0))

    def run(loss):
        def objective(params):
            result = loss(params, data, {}, None, True)
            return result.sum, result

        return jax.jit(jax.value_and_grad(objective, has_aux=True))(params)

    direct = run(language_model(model))
    assert relative(run(language_model(model, chunk=chunk, shards=shards)), direct) < 2e-6


def test_streamed_logits_are_never_computed_whole():
    model, data = bigram(), batch_of()
    params = model.init(jax.random.key(0))

    def program(chunk):
        loss = language_model(model, chunk=chunk)
        total = jax.jit(lambda params: loss(params, data, {}, None, True).sum)
        return str(total.lower(params).compile().as_text())

    whole = f"f32[{B},{T},{V}]"
    assert whole in program(B * T)
    assert whole not in program(B)


def test_without_weights_every_target_counts_once():
    model, data = bigram(), batch_of()
    params = model.init(jax.random.key(0))
    ones = {**data, "weights": np.ones((B, T), np.float32)}
    del data["weights"]
    loss = language_model(model)
    assert relative(loss(params, data, {}, None, False), loss(params, ones, {}, None, False)) == 0
    assert loss(params, data, {}, None, False).weight == B * T


def test_a_models_own_losses_count_by_the_weight_of_their_rows():
    model, data = routed(bigram()), batch_of()
    params = model.init(jax.random.key(0))
    rows = model.apply(params, data).losses["balance"]
    result = language_model(model)(params, data, {}, None, True)
    wanted = float(np.sum(np.asarray(rows) * data["weights"].sum(1)))
    assert result.metrics["balance"][0] == pytest.approx(wanted, rel=1e-6)
    assert float(result.sum) == pytest.approx(float(result.metrics["loss"][0]) + wanted, rel=1e-6)
    less = {name: array[:-1] for name, array in data.items()}  # without the row of padding
    assert relative(language_model(model)(params, less, {}, None, True), result) < 1e-6


@pytest.mark.parametrize("name", ["nnx", "function"])
def test_classification(name):
    model, params = built(name), params_of(name)
    data: Any = contract.batch_of(name)
    data["weights"] = np.asarray([1, 0] * 4, np.float32)
    state = model.start()
    result = jax.jit(lambda p: classification(model)(p, data, state, None, False))(params)
    logits = model.apply(params, data, state)["logits"]
    wanted = cross_entropy(logits[::2], jnp.asarray(data["targets"][::2]), jnp.ones(4))
    assert relative((result.sum, result.weight, result.metrics["accuracy"][0]), tuple(wanted)) < 1e-6
    assert set(result.metrics) == {"loss", "accuracy"}


def test_training_returns_the_changed_state():
    model = built("nnx")
    data: Any = contract.batch_of("nnx")
    state = model.start()
    result = classification(model)(params_of("nnx"), data, state, jax.random.key(0), True)
    assert jax.tree.structure(result.state) == jax.tree.structure(state)
    assert relative(result.state, state) > 0.01
