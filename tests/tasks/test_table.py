"""The table of tasks: every row holds what it promises, through `evaluate` and `predict`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.config import fields
from jaxmodel.data.loader import ArraySource, sequential
from jaxmodel.errors import InputError
from jaxmodel.evaluate import evaluate
from jaxmodel.model import from_function
from jaxmodel.options import Task
from jaxmodel.predict import predict
from jaxmodel.tasks import TASKS

N, T, D, C = 11, 5, 6, 7
KNOWN = {"shards": 1, "mask_id": 1, "vocab_size": C}  # what a recipe could hand to any loss
RNG = np.random.default_rng(0)
FEATURES = {"features": RNG.normal(size=(N, D)).astype(np.float32)}
TOKENS = {"tokens": RNG.integers(0, C, (N, T)).astype(np.int32), "weights": np.ones((N, T), np.float32)}
NEXT = {"targets": RNG.integers(0, C, (N, T)).astype(np.int32)}


def linear(name: str, size: int, **others: int):
    sizes = {name: size, **others}

    def apply(params, batch):
        return {name: batch["features"] @ params[name] for name in sizes}

    return from_function(lambda key: {n: jax.random.normal(key, (D, size)) for n, size in sizes.items()}, apply)


def table(read: str):
    def apply(params, batch):
        return {"logits": params["table"][batch[read]]}

    return from_function(lambda key: {"table": jax.random.normal(key, (C, C))}, apply)


# task -> (a model, its data, what post-processing gives, by shape)
ROWS: dict[str, Any] = {
    "language_model": (table("tokens"), TOKENS | NEXT, {}),
    "masked_language_model": (table("tokens"), TOKENS, {"prediction": (N, T)}),
    "seq2seq": (table("decoder_tokens"), TOKENS | NEXT | {"decoder_tokens": TOKENS["tokens"]}, {}),
    "classification": (
        linear("logits", C),
        FEATURES | {"targets": RNG.integers(0, C, N).astype(np.int32)},
        {"probabilities": (N, C), "prediction": (N,)},
    ),
    "binary": (
        linear("logits", 1),
        FEATURES | {"targets": RNG.integers(0, 2, N).astype(np.int32)},
        {"probability": (N,), "prediction": (N,)},
    ),
    "multilabel": (
        linear("logits", C),
        FEATURES | {"targets": RNG.random((N, C)) < 0.5},
        {"probabilities": (N, C), "prediction": (N, C)},
    ),
    "regression": (
        linear("prediction", 2),
        FEATURES | {"targets": RNG.normal(size=(N, 2)).astype(np.float32)},
        {"prediction": (N, 2)},
    ),
    "ctc": (
        table("tokens"),
        {"tokens": TOKENS["tokens"], "targets": RNG.integers(1, C, (N, 2)).astype(np.int32)},
        {"prediction": (N, T)},
    ),
    "contrastive": (
        linear("image_embedding", 3, text_embedding=3),
        FEATURES,
        {"image_embedding": (N, 3), "text_embedding": (N, 3)},
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_measures_and_predicts_what_it_says(name):
    task, options, (model, data, outputs) = TASKS[name], Task(name=name), ROWS[name]
    options.check()
    params = model.init(jax.random.key(0))
    loss = task.loss(model, options, **{need: KNOWN[need] for need in task.needs})
    found = evaluate(loss, params, sequential(ArraySource(data), 4), collect=task.collect)
    assert set(found) == set(task.metrics)
    assert all(isinstance(number, float) and np.isfinite(number) for number in found.values())
    metric, best = task.monitor
    assert metric in found and best in ("min", "max")

    arrays = {k: v for k, v in data.items() if k in ("features", "tokens", "decoder_tokens")}
    post = predict(model, params, arrays, batch_size=4, postprocess=lambda out: task.predict(out, options))
    assert {key: value.shape for key, value in post.items()} == outputs
    assert jax.grad(lambda p: loss(p, jax.tree.map(jnp.asarray, data), {}, jax.random.key(0), True).sum)(params)


def test_every_task_can_be_named():
    choices = fields(Task)["name"].choices
    assert choices is not None and set(choices) == set(TASKS) == set(ROWS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"name": "regression", "label_smoothing": 0.1},
            "task.label_smoothing=0.1 means nothing to task.name=regression: leave task.label_smoothing out, or set "
            "task.name to language_model or masked_language_model or seq2seq or classification or binary or multilabel",
        ),
        (
            {"name": "classification", "loss": "mae"},
            "task.loss=mae means nothing to task.name=classification: leave task.loss out, or set task.name to "
            "regression",
        ),
        (
            {"huber_delta": 2.0},
            "task.huber_delta=2.0 means nothing to task.loss=mse: leave task.huber_delta out, or set task.loss to "
            "huber",
        ),
        (
            {"quantiles": (0.2, 0.8), "loss": "huber"},
            "task.quantiles=0.2,0.8 means nothing to task.loss=huber: leave task.quantiles out, or set task.loss to "
            "quantile",
        ),
        (
            {"loss": "quantile", "quantiles": (0.5, 1.0)},
            "task.quantiles=0.5,1.0: give one or more between 0 and 1, as in 0.1,0.5,0.9",
        ),
        ({"temperature": 0.0}, "task.temperature=0.0: must be above 0"),
        ({"label_smoothing": 1.0}, "task.label_smoothing=1.0: must be below 1, or the targets say nothing"),
        ({"threshold": 1.0}, "task.threshold=1.0: must be between 0 and 1, or all is predicted alike"),
        ({"loss": "l2"}, "task.loss=l2: must be one of mse, mae, huber, quantile"),
    ],
)
def test_options_that_do_not_fit(options, words):
    with pytest.raises(InputError) as error:
        Task(**options).check()
    assert str(error.value) == words


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "huber", "huber_delta": 2.0},
        {"name": "regression", "loss": "quantile", "quantiles": (0.3,)},
        {"name": "seq2seq", "label_smoothing": 0.1},
        {"label_smoothing": 0.1, "threshold": 0.2},  # as long as nothing says what for
    ],
)
def test_options_that_fit(options):
    Task(**options).check()
