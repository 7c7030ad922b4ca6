"""Losses of rows against float64 numpy; what they predict; and what does not fit, in words."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel import metrics
from jaxmodel.errors import InputError
from jaxmodel.losses import cross_entropy
from jaxmodel.model import Outputs, from_function
from jaxmodel.options import Task
from jaxmodel.sharding import Partitioning, make_mesh
from jaxmodel.tasks import TASKS, binary, classification, contrastive, multilabel, regression
from jaxmodel.train import put
from tests import contract
from tests.contract import built, params_of, relative

B = 12


def given(**values):
    """A model that gives these values, whatever it sees, each times its one weight."""

    def apply(params, batch):
        return {name: params["scale"] * value for name, value in values.items()}

    return from_function(lambda key: {"scale": jnp.ones(())}, apply)


def measured(loss, batch, train=False):
    result = loss({"scale": jnp.ones(())}, jax.tree.map(jnp.asarray, batch), {}, None, train)
    return result, metrics.finish(result.metrics)


def rows(*shape, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.random(shape) * (rng.random(shape) < 0.7)
    return rng, np.asarray(weights, np.float32)


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
    training = classification(model)(params, data, state, jax.random.key(0), True)
    assert set(training.metrics) == {"loss", "accuracy"}


def test_training_returns_the_changed_state():
    model = built("nnx")
    data: Any = contract.batch_of("nnx")
    state = model.start()
    result = classification(model)(params_of("nnx"), data, state, jax.random.key(0), True)
    assert jax.tree.structure(result.state) == jax.tree.structure(state)
    assert relative(result.state, state) > 0.01


def test_classification_measures_classes():
    rng, weights = rows(200)
    logits, targets = rng.normal(size=(200, 8)).astype(np.float32), rng.integers(0, 8, 200)
    logits[np.arange(200), targets] += 1
    logits[:100] = np.round(logits[:100])  # equal logits, of which the first is likelier
    _, found = measured(classification(given(logits=logits)), {"targets": targets, "weights": weights})
    prediction, share = logits.argmax(-1), weights / weights.sum()
    assert found["accuracy"] == pytest.approx(((prediction == targets) * share).sum(), rel=1e-6)
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
    assert found["top5_accuracy"] == pytest.approx(((best == targets[:, None]).any(-1) * share).sum(), rel=1e-6)
    three = metrics.precision_recall_f1(prediction, targets, weights)
    assert [found[name] for name in ("precision", "recall", "f1")] == pytest.approx(three, rel=1e-6)


def test_classification_of_tokens():
    """A class for every token of a row, weighed one by one or by the row."""
    rng, weights = rows(4, 5)
    logits, targets = rng.normal(size=(4, 5, 3)).astype(np.float32), rng.integers(0, 3, (4, 5))
    flat = {"targets": targets.reshape(-1), "weights": weights.reshape(-1)}
    wanted = measured(classification(given(logits=logits.reshape(-1, 3))), flat)[1]
    found = measured(classification(given(logits=logits)), {"targets": targets, "weights": weights})[1]
    assert found == pytest.approx(wanted, rel=1e-6)
    by_row = measured(classification(given(logits=logits)), {"targets": targets, "weights": weights[:, 0]})[0]
    assert by_row.weight == pytest.approx(5 * weights[:, 0].sum(), rel=1e-6)


@pytest.mark.parametrize("one", [(), (1,)])
@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_binary(one, threshold):
    rng, weights = rows(200)
    logits, targets = rng.normal(size=200).astype(np.float32), rng.integers(0, 2, 200)
    model, options = given(logits=logits.reshape(200, *one)), Task(threshold=threshold)
    result, found = measured(binary(model, options), {"targets": targets, "weights": weights})
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    nats = -np.where(targets, np.log(p), np.log(1 - p))
    assert found["loss"] == pytest.approx(np.average(nats, weights=weights), rel=1e-6)
    chosen = p >= threshold
    assert found["accuracy"] == pytest.approx(np.average(chosen == targets, weights=weights), rel=1e-6)
    hits = (weights * chosen * targets).sum()
    assert found["precision"] == pytest.approx(hits / (weights * chosen).sum(), rel=1e-6)
    assert found["recall"] == pytest.approx(hits / (weights * targets).sum(), rel=1e-6)

    examples = {name: np.asarray(each) for name, each in result.examples.items()}
    collected = TASKS["binary"].collect(examples)  # pyright: ignore[reportOptionalCall]
    assert collected["roc_auc"] == pytest.approx(metrics.roc_auc(logits, targets, weights), rel=1e-12)
    predicted = TASKS["binary"].predict(Outputs({"logits": jnp.asarray(logits.reshape(200, *one))}), options)
    assert predicted["probability"].shape == predicted["prediction"].shape == (200,)
    np.testing.assert_allclose(predicted["probability"], p, rtol=1e-6)
    assert predicted["prediction"].dtype == jnp.int32
    np.testing.assert_array_equal(predicted["prediction"], chosen)


@pytest.mark.parametrize("by_row", [True, False])
def test_multilabel(by_row):
    rng, weights = rows(B, 4)
    logits, targets = rng.normal(size=(B, 4)).astype(np.float32), rng.random((B, 4)) < 0.5
    targets[:, 3] = True  # of which no area under a curve is known
    each = np.broadcast_to(weights[:, :1], (B, 4)) if by_row else weights
    batch = {"targets": targets, "weights": weights[:, 0] if by_row else weights}
    result, found = measured(multilabel(given(logits=logits), Task(threshold=0.4)), batch)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    nats = -np.where(targets, np.log(p), np.log(1 - p))
    assert found["loss"] == pytest.approx(np.average(nats, weights=each), rel=1e-6)
    assert found["accuracy"] == pytest.approx(np.average((p >= 0.4) == targets, weights=each), rel=1e-6)
    hits, chosen, there = ((each * x).sum(0) for x in ((p >= 0.4) & targets, p >= 0.4, targets))
    assert found["f1"] == pytest.approx(np.mean(2 * hits / (chosen + there)), rel=1e-6)

    examples = {name: np.asarray(each) for name, each in result.examples.items()}
    collected = TASKS["multilabel"].collect(examples)  # pyright: ignore[reportOptionalCall]
    areas = [metrics.roc_auc(logits[:, i], targets[:, i], each[:, i]) for i in range(3)]
    assert collected["roc_auc"] == pytest.approx(np.mean(areas), rel=1e-12)
    predicted = TASKS["multilabel"].predict(Outputs({"logits": jnp.asarray(logits)}), Task(threshold=0.4))
    np.testing.assert_allclose(predicted["probabilities"], p, rtol=1e-6)
    np.testing.assert_array_equal(predicted["prediction"], p >= 0.4)


@pytest.mark.parametrize("task", [binary, multilabel])
def test_labels_are_smoothed_in_training_alone(task):
    rng, weights = rows(B)
    logits, targets = rng.normal(size=(B, 1)).astype(np.float32), rng.integers(0, 2, (B, 1))
    batch = {"targets": targets[:, 0] if task is binary else targets, "weights": weights}
    model = given(logits=logits)
    losses = [
        [float(measured(task(model, Task(label_smoothing=s)), batch, train)[0].sum) for s in (0.0, 0.2)]
        for train in (True, False)
    ]
    aim = 0.8 * targets + 0.1
    nats = aim * np.logaddexp(0, -logits) + (1 - aim) * np.logaddexp(0, logits)
    assert losses[0][1] == pytest.approx((weights[:, None] * nats).sum(), rel=1e-6)
    assert losses[0][0] == losses[1][0] == losses[1][1]


ELEMENTWISE = {
    "mse": lambda e: e**2,
    "mae": np.abs,
    "huber": lambda e: np.where(np.abs(e) < 0.5, e**2 / 2, 0.5 * (np.abs(e) - 0.25)),
}


@pytest.mark.parametrize("value", ["prediction", "logits"])
@pytest.mark.parametrize("loss", ELEMENTWISE)
@pytest.mark.parametrize(
    "targets, outputs, weighed", [((B,), (B, 1), (B,)), ((B, 3), (B, 3), (B,)), ((B, 3), (B, 3), (B, 3))]
)
def test_regression(loss, targets, outputs, weighed, value):
    rng, weights = rows(*weighed)
    y = rng.normal(size=targets).astype(np.float32)
    prediction = (y + rng.normal(size=targets)).astype(np.float32)
    each = np.broadcast_to(weights.reshape(weights.shape + (1,) * (len(targets) - weights.ndim)), targets)
    error = prediction.astype(np.float64) - y
    r2 = metrics.r2(prediction, y, each)
    y[each == 0] = math.nan  # what weighs nothing may be missing
    task, options = TASKS["regression"], Task(loss=loss, huber_delta=0.5)
    model = given(**{value: prediction.reshape(outputs)})
    result, found = measured(regression(model, options), {"targets": y, "weights": weights})
    mse = np.average(error**2, weights=each)
    wanted = {
        "loss": np.average(ELEMENTWISE[loss](error), weights=each),
        "mse": mse,
        "mae": np.average(np.abs(error), weights=each),
        "rmse": math.sqrt(mse),
    }
    assert found == pytest.approx(wanted, rel=1e-6)
    examples = {name: np.asarray(array) for name, array in result.examples.items()}
    assert task.collect(examples) == pytest.approx({"r2": r2}, rel=1e-6)  # pyright: ignore[reportOptionalCall]
    slope = jax.grad(lambda p: regression(model, options)(p, {"targets": y, "weights": weights}, {}, None, True).sum)
    assert np.isfinite(slope({"scale": jnp.ones(())})["scale"])
    predicted = task.predict(Outputs({value: jnp.asarray(prediction.reshape(outputs))}), options)["prediction"]
    assert np.array_equal(predicted, prediction)


@pytest.mark.parametrize("targets", [(B,), (B, 2)])
def test_quantiles(targets):
    rng, weights = rows(B)
    y = rng.normal(size=targets).astype(np.float32)
    outputs = rng.normal(size=(*targets, 3)).astype(np.float32)
    options = Task(loss="quantile", quantiles=(0.05, 0.6, 0.9))
    _, found = measured(regression(given(prediction=outputs), options), {"targets": y, "weights": weights})
    over = outputs.astype(np.float64) - y[..., None]
    tilted = np.maximum(-np.asarray([0.05, 0.6, 0.9]) * over, np.asarray([0.95, 0.4, 0.1]) * over).mean(-1)
    each = np.broadcast_to(weights.reshape(-1, *(1,) * (len(targets) - 1)), targets)
    assert found["loss"] == pytest.approx(np.average(tilted, weights=each), rel=1e-6)
    assert found["mae"] == pytest.approx(np.average(np.abs(over[..., 1]), weights=each), rel=1e-6)
    predicted = TASKS["regression"].predict(Outputs({"prediction": jnp.asarray(outputs)}), options)
    assert np.array_equal(predicted["prediction"], outputs)


def test_a_quantile_loss_is_least_at_the_quantiles():
    y = np.sort(np.random.default_rng(0).normal(size=999)).astype(np.float32)
    options = Task(loss="quantile", quantiles=(0.1, 0.5, 0.8))
    q = jnp.quantile(jnp.asarray(y), jnp.asarray(options.quantiles))

    def loss(q):
        model = given(prediction=jnp.broadcast_to(q, (999, 3)))
        return regression(model, options)({"scale": jnp.ones(())}, {"targets": y}, {}, None, True).sum

    for step in (0.3 * jnp.eye(3), -0.3 * jnp.eye(3)):
        assert all(loss(q + each) > loss(q) + 0.1 for each in step)


def test_contrastive_measures_the_whole_batch():
    rng, weights = rows(B)
    a = rng.normal(size=(B, 4)).astype(np.float32)
    b = (a + rng.normal(size=(B, 4))).astype(np.float32)
    model, options = given(image_embedding=a, text_embedding=b), Task(temperature=0.5)
    result, found = measured(contrastive(model, options), {"weights": weights})
    kept = weights > 0
    x, y = (each[kept] / np.linalg.norm(each[kept].astype(np.float64), axis=-1, keepdims=True) for each in (a, b))
    logs = [s - np.log(np.exp(s).sum(-1, keepdims=True)) for s in (x @ y.T / 0.5, y @ x.T / 0.5)]
    nats = -np.mean([np.diagonal(each) for each in logs], axis=0)
    assert found["loss"] == pytest.approx(np.average(nats, weights=weights[kept]), rel=1e-5)
    predicted = TASKS["contrastive"].predict(model.apply({"scale": jnp.ones(())}, {}), options)
    assert set(predicted) == {"image_embedding", "text_embedding"}
    np.testing.assert_allclose(predicted["text_embedding"][kept], y, rtol=1e-5)
    examples = {name: np.asarray(each)[kept] for name, each in result.examples.items()}
    collected = TASKS["contrastive"].collect(examples)  # pyright: ignore[reportOptionalCall]
    assert collected["recall_at_1"] == metrics.recall_at(1, x, y) < collected["recall_at_5"]


@pytest.mark.parametrize("pairs", ["softmax", "sigmoid"])
def test_contrastive_takes_the_logits_of_a_model_that_has_its_own(pairs):
    rng, weights = rows(B)
    a, b = (rng.normal(size=(B, 4)).astype(np.float32) for _ in "ab")
    logits = (3 * rng.normal(size=(B, B))).astype(np.float32)
    model = given(image_embedding=a, text_embedding=b, logits=logits)
    _, found = measured(contrastive(model, Task(pairs=pairs)), {"weights": weights})
    kept, wide = weights > 0, logits.astype(np.float64)
    x = wide[kept][:, kept]
    if pairs == "softmax":
        logs = [s - np.log(np.exp(s).sum(-1, keepdims=True)) for s in (x, x.T)]
        nats = -np.mean([np.diagonal(each) for each in logs], axis=0)
    else:
        each = np.log1p(np.exp(-x * (2 * np.eye(len(x)) - 1)))
        nats = (each.sum(1) + each.sum(0)) / 2
    assert found["loss"] == pytest.approx(np.average(nats, weights=weights[kept]), rel=1e-5)
    small = given(image_embedding=a, text_embedding=b, logits=logits[:, :2])
    with pytest.raises(InputError, match=r"logits \[12, 2\] for 12 rows: a contrastive task has one for every pair"):
        measured(contrastive(small), {"weights": weights})


def test_contrastive_compares_rows_on_all_devices():
    """The loss and the gradients of eight devices are those of one: no row is only compared with its neighbours."""
    rng, weights = rows(16)
    model = from_function(
        lambda key: {name: jax.random.normal(key, (5, 3)) for name in ("image", "text")},
        lambda params, batch: {f"{name}_embedding": batch["features"] @ w for name, w in params.items()},
    )
    params = model.init(jax.random.key(0))
    batch = {"features": rng.normal(size=(16, 5)).astype(np.float32), "weights": weights}
    gradient = jax.jit(jax.value_and_grad(lambda p, batch: contrastive(model)(p, batch, {}, None, True).sum))
    split = put(batch, Partitioning(make_mesh({"data": 8})))
    assert len(split["features"].sharding.device_set) == 8
    assert relative(gradient(params, split), gradient(params, batch)) < 1e-5


def test_predicted_classes():
    logits = np.random.default_rng(0).normal(size=(B, 5)).astype(np.float32)
    found = TASKS["classification"].predict(Outputs({"logits": jnp.asarray(logits, jnp.bfloat16)}), Task())
    assert found["probabilities"].dtype == jnp.float32 and found["prediction"].dtype == jnp.int32
    exact = np.asarray(jnp.asarray(logits, jnp.bfloat16), np.float64)
    np.testing.assert_allclose(found["probabilities"], np.exp(exact) / np.exp(exact).sum(-1, keepdims=True), rtol=1e-6)
    np.testing.assert_array_equal(found["prediction"], exact.argmax(-1))


WRONG = [
    (binary, {"logits": np.zeros((B, 2))}, (B,), {}, "a binary task has one logit an example"),
    (multilabel, {"logits": np.zeros((B, 2))}, (B, 3), {}, r"gives \[12, 2\] for targets \[12, 3\]: a multilabel"),
    (regression, {"prediction": np.zeros((B, 2))}, (B,), {}, "a regression has one output a target"),
    (
        regression,
        {"prediction": np.zeros((B, 2))},
        (B,),
        {"loss": "quantile"},
        r"task.quantiles are 3 and targets \[12\], the model predicts \[12, 2\]: give it one output a quantile",
    ),
]


@pytest.mark.parametrize("task, values, targets, options, words", WRONG)
def test_what_does_not_fit_is_told(task, values, targets, options, words):
    with pytest.raises(InputError, match=words):
        measured(task(given(**values), Task(**options)), {"targets": np.zeros(targets)})


def test_weights_that_do_not_fit_are_told():
    batch = {"targets": np.zeros(B, np.int32), "weights": np.ones((B, 2))}
    with pytest.raises(InputError, match=r"weights are \[12, 2\], what they weigh is \[12\]: give one a row"):
        measured(classification(given(logits=np.zeros((B, 3)))), batch)
