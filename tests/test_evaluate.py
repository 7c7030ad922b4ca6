"""Evaluation: the numbers of float64 whatever the batch size, the mesh and the padding; compiled once."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.data.loader import ArraySource, sequential
from jaxmodel.errors import InputError
from jaxmodel.evaluate import evaluate
from jaxmodel.metrics import average_precision, precision_recall_f1, r2, roc_auc
from jaxmodel.model import from_function, sharded
from jaxmodel.sharding import Partitioning, make_mesh
from jaxmodel.tasks import TASKS, classification, language_model
from jaxmodel.train import put
from jaxmodel.weights import matmul, take
from tests.bigram import batch_of as bigram_batch
from tests.bigram import bigram, routed
from tests.contract import batch_of, built, params_of

# Exactness: one layer, its numbers computed in float64 numpy.
N, T, D, V = 53, 6, 8, 16
MESHES = {"one": {"data": 1}, "data": {"data": 8}, "cube": {"data": 2, "fsdp": 2, "tensor": 2}}
SIZES = (1, 2, 3, 5, 7, 16, 64)  # rows of a batch for each device that has its own: 53 rows fill none of them
RNG = np.random.default_rng(0)
FEATURES = np.round(4 * RNG.normal(size=(N, D))).astype(np.float32) / 4


def weighed(*shape):
    """A third of what there is weighs nothing, and the rest unequally."""
    return (RNG.random(shape) * (RNG.random(shape) < 2 / 3)).astype(np.float32)


def layer(outputs, value="logits"):
    """`value` [B, outputs] from `features`. Numbers of few digits: what ties in float64 ties in float32."""

    def init(key):
        return {"matrix": jnp.round(4 * jax.random.normal(key, (D, outputs))) / 4}

    def apply(params, batch):
        return {value: matmul(batch["features"], params["matrix"])}

    return from_function(init, apply, layout={"matrix": "embed -> mlp" if outputs > 1 else "embed -> one"})


def tokens():
    """A language model of one token of context, with a head to run apart."""

    def init(key):
        table, head = jax.random.normal(key, (2, V, D))
        return {"table": table, "head": head.T}

    def apply(params, batch):
        hidden = batch["hidden"] if "hidden" in batch else take(params["table"], batch["tokens"], jnp.float32)
        return {"logits": matmul(hidden, params["head"]), "hidden": hidden}

    return from_function(init, apply, layout={"table": "vocab <- embed", "head": "embed -> vocab"})


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def mean(values, weights):
    return np.average(values, weights=weights)


def of_classes(logits, targets, w):
    prediction = logits.argmax(-1)
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
    return {
        "loss": mean(-np.take_along_axis(log_softmax(logits), targets[:, None], -1)[:, 0], w),
        "accuracy": mean(prediction == targets, w),
        "top5_accuracy": mean((best == targets[:, None]).any(-1), w),
        **dict(zip(("precision", "recall", "f1"), precision_recall_f1(prediction, targets, w), strict=True)),
    }


def of_two(logits, targets, w):
    z, chosen = logits[:, 0], logits[:, 0] >= 0
    hits, predicted, there = ((w * each).sum() for each in (chosen & (targets == 1), chosen, targets))
    return {
        "loss": mean(np.logaddexp(0, np.where(targets == 1, -z, z)), w),
        "accuracy": mean(chosen == targets, w),
        "precision": hits / predicted,
        "recall": hits / there,
        "f1": 2 * hits / (predicted + there),
        "roc_auc": roc_auc(z, targets, w),
        "average_precision": average_precision(z, targets, w),
    }


def of_numbers(prediction, targets, w):
    mse = mean((prediction - targets) ** 2, w)
    mae = mean(np.abs(prediction - targets), w)
    return {"loss": mse, "mse": mse, "mae": mae, "rmse": math.sqrt(mse), "r2": r2(prediction, targets, w)}


def of_tokens(logits, targets, w):
    nats = mean(-np.take_along_axis(log_softmax(logits), targets[..., None], -1)[..., 0], w)
    accuracy = mean(logits.argmax(-1) == targets, w)
    return {"loss": nats, "accuracy": accuracy, "perplexity": math.exp(nats)}


# task -> (a model, its targets and weights, its numbers from logits, targets and weights in float64)
EXACT: dict[str, Any] = {
    "classification": (layer(V), RNG.integers(0, V, N).astype(np.int32), weighed(N), of_classes),
    "binary": (layer(1), RNG.integers(0, 2, N).astype(np.int32), weighed(N), of_two),
    "regression": (
        layer(2, "prediction"),
        (100 + RNG.normal(size=(N, 2))).astype(np.float32),
        weighed(N, 2),
        of_numbers,
    ),
    "language_model": (tokens(), RNG.integers(0, V, (N, T)).astype(np.int32), weighed(N, T), of_tokens),
}
INPUTS = {"features": FEATURES, "tokens": RNG.integers(0, V, (N, T)).astype(np.int32)}


@functools.cache
def float64(task):
    model, targets, weights, numbers = EXACT[task]
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), jax.jit(model.init)(jax.random.key(0)))
    if task == "language_model":
        outputs = params["table"][INPUTS["tokens"]] @ params["head"]
    else:
        outputs = FEATURES.astype(np.float64) @ params["matrix"]
    return numbers(outputs, targets.astype(np.float64 if task == "regression" else int), weights.astype(np.float64))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("task", EXACT)
def test_numbers_are_those_of_float64(task, mesh):
    model, targets, weights, _ = EXACT[task]
    devices = jax.devices()[: math.prod(MESHES[mesh].values())]
    partitioning = Partitioning(make_mesh(MESHES[mesh], devices))
    bound = sharded(model, partitioning.mesh)
    params = bound.init(jax.random.key(0))
    # Pieces of eight tokens: all but the smallest batches are streamed in several.
    streaming = {"chunk": 8, "shards": len(devices)} if task == "language_model" else {}
    loss = TASKS[task].loss(bound, **streaming)
    data = {"targets": targets, "weights": weights, **INPUTS}
    del data["features" if task == "language_model" else "tokens"]
    for size in SIZES:
        if task == "language_model" and size % 2:  # a row may be padded with anything
            data = {name: np.pad(data[name][:, :T], ((0, 0), (0, size))) for name in data}
        batches = sequential(
            ArraySource(data), size * math.prod(MESHES[mesh][a] for a in MESHES[mesh] if a != "tensor")
        )
        found = evaluate(
            loss, params, batches, put=functools.partial(put, partitioning=partitioning), collect=TASKS[task].collect
        )
        assert found == pytest.approx(float64(task), rel=1e-6), size


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


def test_the_batch_size_changes_no_number_of_a_masked_language_model():
    model, options = bigram(), {"mask_id": 0, "vocab_size": 11}
    data: Any = bigram_batch(rows=10)
    del data["targets"]
    params = model.init(jax.random.key(0))
    loss = TASKS["masked_language_model"].loss(model, **options)
    padded = {name: np.pad(array, ((0, 0), (0, 3))) for name, array in data.items()}
    cases = [(data, 10), (data, 1), (data, 4), (padded, 4)]
    found = [evaluate(loss, params, sequential(ArraySource(each), size)) for each, size in cases]
    assert all(each == pytest.approx(found[0], rel=1e-6) for each in found)


def test_the_batch_size_changes_no_number_of_a_model_with_state():
    model, params = built("nnx"), params_of("nnx")
    loss, data = classification(model), source("nnx")
    found = [evaluate(loss, params, sequential(data, size), model.start()) for size in (10, 4)]
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_what_is_collected_are_the_rows_that_weigh_something():
    data = batch_of("function", rows=10)
    data["weights"][[2, 5]] = 0
    kept = data["weights"] > 0

    def collect(examples):
        assert np.array_equal(examples["targets"], data["targets"][kept])
        assert all(isinstance(each, np.ndarray) and len(each) == 8 for each in examples.values())
        return {"hits": np.sum(examples["prediction"] == examples["targets"])}

    loss = classification(built("function"))
    found = evaluate(loss, params_of("function"), sequential(ArraySource(data), 4), collect=collect)
    assert found["hits"] == round(found["accuracy"] * 8) and type(found["hits"]) is float
    assert "hits" not in evaluate(loss, params_of("function"), sequential(ArraySource(data), 4))


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


def test_a_loss_without_examples_has_nothing_to_collect():
    def loss(params, batch, state, key, train):
        return classification(built("function"))(params, batch, state, key, train)._replace(examples={})

    with pytest.raises(InputError, match="gives no examples to collect: leave collect out, or return them in its"):
        evaluate(loss, params_of("function"), sequential(source("function"), 4), collect=lambda _: {})


def test_no_data_is_told():
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate(classification(built("function")), params_of("function"), [])
