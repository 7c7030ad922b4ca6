"""Losses over rows with a target each: a class, labels, numbers, or a partner.

Shapes: B batch, C classes or labels, D outputs, Q quantiles. Where targets have further axes (the tokens of a row,
the pixels of an image) so have logits and predictions, in front of C, D or Q.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodel import losses
from jaxmodel import metrics as exact
from jaxmodel.errors import InputError
from jaxmodel.model import Batch, Model, Outputs, Params, State
from jaxmodel.options import Task as Options
from jaxmodel.tasks.base import LossFn, Result, class_counts, result, weights_of

DEFAULT = Options()


def classification(model: Model, options: Options = DEFAULT) -> LossFn:
    """Cross entropy of `targets` int32[B], each counting `weights` float32[B] (one where none are given).

    The model gives `logits` [B,C]. Metrics: loss (nats an example), accuracy, and the model's own losses by name; in
    evaluation also precision, recall and F1 (means over classes) and, above five classes, top5_accuracy.
    `label_smoothing` is for training alone, so that an evaluation says what the model knows.
    """

    def loss(params: Params, batch: Batch, state: State, key: jax.Array | None, train: bool) -> Result:
        targets = batch["targets"]
        weights = weights_of(batch, targets.shape)
        out = model.apply(params, batch, state or None, key=key, train=train)
        logits = out["logits"]
        sums = losses.cross_entropy(logits, targets, weights, options.label_smoothing if train else 0.0)
        metrics = {"accuracy": (sums.correct, sums.weight)}
        if train:
            return result(sums.loss, weights, metrics, out)
        ids, prediction = jnp.arange(logits.shape[-1]), jnp.argmax(logits, axis=-1)
        metrics |= class_counts(prediction[..., None] == ids, targets[..., None] == ids, weights[..., None])
        if logits.shape[-1] > 5:
            metrics["top5_accuracy"] = (jnp.sum(weights * _among(5, logits, targets)), sums.weight)
        return result(sums.loss, weights, metrics, out, {"prediction": prediction, "targets": targets})

    return loss


def _among(count: int, logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Whether the target is one of the `count` likeliest classes; of equal logits the first is likelier."""
    ids, target = jnp.arange(logits.shape[-1]), targets[..., None]
    own = jnp.sum(jnp.where(ids == target, logits, 0), axis=-1, keepdims=True)
    return jnp.sum(jnp.where(ids < target, logits >= own, logits > own), axis=-1) < count


def predict_classes(outputs: Outputs, options: Options) -> dict[str, jax.Array]:
    """`probabilities` float32[B,C] and `prediction` int32[B]."""
    del options
    logits = outputs["logits"].astype(jnp.float32)
    return {"probabilities": jax.nn.softmax(logits), "prediction": jnp.argmax(logits, axis=-1).astype(jnp.int32)}


def binary(model: Model, options: Options = DEFAULT) -> LossFn:
    """Sigmoid cross entropy of `targets` [B], 0 or 1, each counting `weights` float32[B] (one where none are given).

    The model gives one logit an example, [B] or [B,1]. Metrics: loss (nats an example), accuracy, and the model's
    own losses by name; in evaluation also precision, recall and F1 of the ones and, collected, roc_auc and
    average_precision. One is predicted from the probability `threshold` on.
    """

    def loss(params: Params, batch: Batch, state: State, key: jax.Array | None, train: bool) -> Result:
        out = model.apply(params, batch, state or None, key=key, train=train)
        logits = _alike(out["logits"], batch["targets"], "a binary task has one logit an example")
        return _labels(logits, batch, options, out, train, lambda each: each[..., None])

    return loss


def multilabel(model: Model, options: Options = DEFAULT) -> LossFn:
    """Sigmoid cross entropy of `targets` [B,C], 0 or 1, each counting `weights` ([B,C], or [B] for whole rows).

    The model gives `logits` [B,C]. Metrics: loss (nats a label), accuracy (of labels), and the model's own losses by
    name; in evaluation also precision, recall and F1 (means over labels) and, collected, roc_auc and
    average_precision (means over the labels for which there are both ones and zeros). A label is predicted from the
    probability `threshold` on.
    """

    def loss(params: Params, batch: Batch, state: State, key: jax.Array | None, train: bool) -> Result:
        out = model.apply(params, batch, state or None, key=key, train=train)
        logits = _alike(out["logits"], batch["targets"], "a multilabel task has one logit a label")
        return _labels(logits, batch, options, out, train, lambda each: each)

    return loss


def _labels(
    logits: jax.Array,
    batch: Batch,
    options: Options,
    out: Outputs,
    train: bool,
    split: Callable[[jax.Array], jax.Array],
) -> Result:
    """The result of logits [B, …] against as many targets; `split` gives them an axis of labels, counted apart."""
    targets = batch["targets"]
    weights = weights_of(batch, targets.shape)
    smoothing = options.label_smoothing if train else 0.0
    sums = losses.sigmoid_cross_entropy(logits, targets, weights, smoothing, options.threshold)
    metrics = {"accuracy": (sums.correct, sums.weight)}
    if not train:
        chosen = losses.above(logits, options.threshold)
        metrics |= class_counts(split(chosen), split(targets > 0.5), split(weights))
    arrays = {"logits": logits, "targets": targets, "weights": weights}
    return result(sums.loss, weights, metrics, out, {name: split(each) for name, each in arrays.items()})


def curves(examples: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Areas under the ROC and the precision-recall curve, means over the labels that have both ones and zeros."""
    arrays = (examples[name] for name in ("logits", "targets", "weights"))
    columns = zip(*(array.reshape(-1, array.shape[-1]).T for array in arrays), strict=True)
    areas = np.array([(exact.roc_auc(*each), exact.average_precision(*each)) for each in columns])
    known = areas[~np.isnan(areas[:, 0])]
    mean = known.mean(axis=0) if len(known) else (np.nan, np.nan)
    return {"roc_auc": float(mean[0]), "average_precision": float(mean[1])}


def predict_binary(outputs: Outputs, options: Options) -> dict[str, jax.Array]:
    """`probability` float32[B] of a one, and `prediction` int32[B]."""
    logits = _single(outputs["logits"].astype(jnp.float32))
    chosen = losses.above(logits, options.threshold)
    return {"probability": jax.nn.sigmoid(logits), "prediction": chosen.astype(jnp.int32)}


def predict_labels(outputs: Outputs, options: Options) -> dict[str, jax.Array]:
    """`probabilities` float32[B,C] and `prediction` bool[B,C]."""
    logits = outputs["logits"].astype(jnp.float32)
    return {"probabilities": jax.nn.sigmoid(logits), "prediction": losses.above(logits, options.threshold)}


def regression(model: Model, options: Options = DEFAULT) -> LossFn:
    """The `loss` of the options against `targets` float32[B] or [B,D], each counting `weights` ([B,D], or [B]).

    The model gives `prediction`, or else `logits`, of the targets' shape ([B,1] for [B] will do), for `loss`
    quantile with an axis Q more. What weighs nothing may be missing (NaN). Metrics: loss, mse, mae and rmse, and the
    model's own losses by name; in evaluation, collected, also r2. Of quantiles the one nearest to 0.5 is measured.
    """

    def loss(params: Params, batch: Batch, state: State, key: jax.Array | None, train: bool) -> Result:
        out = model.apply(params, batch, state or None, key=key, train=train)
        targets = jnp.asarray(batch["targets"], jnp.float32)
        weights = weights_of(batch, targets.shape)
        known = jnp.where(weights > 0, targets, 0)
        if options.loss == "quantile":
            every = _predicted(out)
            if every.shape != (*targets.shape, len(options.quantiles)):
                raise InputError(
                    f"task.quantiles are {len(options.quantiles)} and targets {list(targets.shape)}, the model "
                    f"predicts {list(every.shape)}: give it one output a quantile, or change task.quantiles"
                )
            prediction = every[..., int(np.argmin(np.abs(np.asarray(options.quantiles) - 0.5)))]
            each = losses.pinball(every - known[..., None], options.quantiles)
        else:
            prediction = _alike(_predicted(out), targets, "a regression has one output a target")
            each = REGRESSION[options.loss](prediction - known, options)
        error = prediction - known
        squares, sizes = (jnp.sum(weights * one(error)) for one in (jnp.square, jnp.abs))
        weight = jnp.sum(weights)
        metrics = {"mse": (squares, weight), "mae": (sizes, weight), "rmse": (squares, weight)}
        examples = {"prediction": prediction, "targets": targets}
        return result(jnp.sum(weights * each), weights, metrics, out, examples)

    return loss


REGRESSION = {
    "mse": lambda errors, options: jnp.square(errors),
    "mae": lambda errors, options: jnp.abs(errors),
    "huber": lambda errors, options: losses.huber(errors, options.huber_delta),
}


def determination(examples: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The coefficient of determination, mean over the outputs."""
    return {"r2": exact.r2(examples["prediction"], examples["targets"], examples["weights"])}


def predict_numbers(outputs: Outputs, options: Options) -> dict[str, jax.Array]:
    """`prediction` float32[B] or [B,D]; of quantiles [B,Q], in the order of the options."""
    prediction = _predicted(outputs)
    return {"prediction": prediction if options.loss == "quantile" else _single(prediction)}


def contrastive(model: Model, options: Options = DEFAULT) -> LossFn:
    """Every row of `image_embedding` and `text_embedding` [B,D] is to find its partner: symmetric InfoNCE.

    A model that scales similarities itself gives them as `logits` [B,B]; of another they are cosines over
    `temperature`. With `pairs` sigmoid each pair is a question of its own (arXiv:2303.15343).

    A row of weight 0 (`weights` float32[B], one where none are given) is left out, also as a wrong answer. All rows of
    the batch are compared, on however many devices they lie. With gradient accumulation a row meets only those of
    its own piece: fewer negatives, and so another (easier) loss than that of the whole batch.

    Metrics: loss (nats a row) and accuracy, which depend on how many rows a batch has, and the model's own losses by
    name; in evaluation, collected, also recall_at_1 and recall_at_5 among all rows, which do not.
    """

    def loss(params: Params, batch: Batch, state: State, key: jax.Array | None, train: bool) -> Result:
        out = model.apply(params, batch, state or None, key=key, train=train)
        images, texts = out["image_embedding"], out["text_embedding"]
        weights = weights_of(batch, images.shape[:1])
        logits = out.values.get("logits")
        if logits is None:
            logits = losses.similarities(images, texts, options.temperature)
        if logits.shape != (len(weights), len(weights)):
            raise InputError(
                f"the model gives logits {list(logits.shape)} for {len(weights)} rows: a contrastive task has one for "
                "every pair of rows"
            )
        sums = CONTRASTIVE[options.pairs](logits, weights)
        examples = {"image_embedding": images, "text_embedding": texts}
        return result(sums.loss, weights, {"accuracy": (sums.correct, sums.weight)}, out, examples)

    return loss


CONTRASTIVE = {"softmax": losses.contrastive, "sigmoid": losses.sigmoid_contrastive}


def retrieval(examples: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How often a row's partner is the nearest of all, and among the five nearest; means of both directions."""
    towers = examples["image_embedding"], examples["text_embedding"]
    return {f"recall_at_{count}": exact.recall_at(count, *towers) for count in (1, 5)}


def predict_embeddings(outputs: Outputs, options: Options) -> dict[str, jax.Array]:
    """Every `…embedding` float32[B,D] that the model gives, at length one."""
    del options
    return {name: losses.unit(value) for name, value in outputs.values.items() if name.endswith("embedding")}


def _predicted(out: Outputs) -> jax.Array:
    return out["prediction" if "prediction" in out.values else "logits"].astype(jnp.float32)


def _single(x: jax.Array) -> jax.Array:
    """[B] from [B,1]; anything else as it is."""
    return x[..., 0] if x.ndim > 1 and x.shape[-1] == 1 else x


def _alike(x: jax.Array, targets: jax.Array, words: str) -> jax.Array:
    """x in the shape of the targets; InputError unless a last axis of one is all that tells them apart."""
    if x.shape in (targets.shape, (*targets.shape, 1)) or (*x.shape, 1) == targets.shape:
        return x.reshape(targets.shape)
    raise InputError(f"the model gives {list(x.shape)} for targets {list(targets.shape)}: {words}")
