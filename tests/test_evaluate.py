"""Evaluation: the same numbers whatever the batch size, compiled once."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxmodel.data.loader import ArraySource, sequential
from jaxmodel.errors import InputError
from jaxmodel.evaluate import evaluate
from jaxmodel.tasks import classification, language_model
from tests.bigram import batch_of as bigram_batch
from tests.bigram import bigram, routed
from tests.contract import batch_of, built, params_of


def source(name, rows=10):
    return ArraySource(batch_of(name, rows=rows))


def test_the_batch_size_changes_no_number_of_a_language_model():
    model = routed(bigram())
    params = model.init(jax.random.key(0))
    loss = language_model(model)
    data = ArraySource(bigram_batch(rows=10))
    found = [evaluate(loss, params, sequential(data, size)) for size in (10, 4)]
    assert found[0].keys() == {"loss", "accuracy", "perplexity", "balance"}
    assert found[1] == pytest.approx(found[0], rel=1e-6)


@pytest.mark.parametrize("name", ["function", "nnx"])
def test_the_batch_size_changes_no_number(name):
    model = built(name)
    loss = classification(model)
    found = [
        evaluate(loss, params_of(name), sequential(source(name), size), model.start()) for size in (10, 4)
    ]
    assert found[0].keys() == {"loss", "accuracy"}
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_numbers_are_those_of_all_examples():
    model, params = built("function"), params_of("function")
    data: Any = batch_of("function", rows=10)
    logits = np.asarray(model.apply(params, data)["logits"], np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = evaluate(classification(model), params, sequential(ArraySource(data), 3))
    assert found["loss"] == pytest.approx(-logs[np.arange(10), data["targets"]].mean(), rel=1e-6)
    assert found["accuracy"] == np.mean(logits.argmax(-1) == data["targets"])


def test_a_loss_is_compiled_once():
    model, traces = built("function"), []

    def loss(params, batch, state, key, train):
        traces.append((key, train))
        return classification(model)(params, batch, state, key, train)

    for seed in range(2):
        params = jax.tree.map(lambda p, seed=seed: p + seed, params_of("function"))
        evaluate(loss, params, sequential(source("function"), 4))
    assert traces == [(None, False)]


def test_a_loss_of_ones_own_needs_no_metrics():
    def loss(params, batch, state, key, train):
        result = classification(built("function"))(params, batch, state, key, train)
        return result._replace(metrics={})

    assert set(evaluate(loss, params_of("function"), sequential(source("function"), 4))) == {"loss"}


def test_no_data_is_told():
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate(classification(built("function")), params_of("function"), [])
