"""Tasks: what each kind of problem minimises, measures and makes of a model's outputs, in one table."""

from jaxmodel.tasks import frames, rows, tokens
from jaxmodel.tasks.base import Collect, LossFn, Result, Task, nothing
from jaxmodel.tasks.frames import ctc
from jaxmodel.tasks.rows import binary, classification, contrastive, multilabel, regression
from jaxmodel.tasks.tokens import language_model, masked_language_model, seq2seq

__all__ = [
    "TASKS",
    "Collect",
    "LossFn",
    "Result",
    "Task",
    "binary",
    "classification",
    "contrastive",
    "ctc",
    "language_model",
    "masked_language_model",
    "multilabel",
    "regression",
    "seq2seq",
]

_COUNTED = ("loss", "accuracy", "precision", "recall", "f1")
_TOKENS = ("loss", "accuracy", "perplexity")

TASKS: dict[str, Task] = {
    "language_model": Task(language_model, nothing, ("loss", "min"), _TOKENS, needs=("shards",)),
    "masked_language_model": Task(
        masked_language_model,
        tokens.predict_tokens,
        ("loss", "min"),
        _TOKENS,
        needs=("shards", "mask_id", "vocab_size"),
    ),
    "seq2seq": Task(seq2seq, nothing, ("loss", "min"), _TOKENS, needs=("shards",)),
    "classification": Task(classification, rows.predict_classes, ("accuracy", "max"), (*_COUNTED, "top5_accuracy")),
    "binary": Task(
        binary, rows.predict_binary, ("roc_auc", "max"), (*_COUNTED, "roc_auc", "average_precision"), rows.curves
    ),
    "multilabel": Task(
        multilabel, rows.predict_labels, ("f1", "max"), (*_COUNTED, "roc_auc", "average_precision"), rows.curves
    ),
    "regression": Task(
        regression, rows.predict_numbers, ("loss", "min"), ("loss", "mse", "mae", "rmse", "r2"), rows.determination
    ),
    "ctc": Task(ctc, frames.predict_frames, ("error_rate", "min"), ("loss", "unaligned", "error_rate")),
    "contrastive": Task(
        contrastive,
        rows.predict_embeddings,
        ("recall_at_1", "max"),
        ("loss", "accuracy", "recall_at_1", "recall_at_5"),
        rows.retrieval,
    ),
}
