"""The sections of a training run beside the model: data, optimizer, training, mesh, checkpoints."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from jaxmodel.config import field, register, to_text, validate
from jaxmodel.errors import InputError
from jaxmodel.optim_options import Optimizer as Optimizer

DTYPES = ("float32", "bfloat16", "float16")  # that weights may be cast to


@register
@dataclasses.dataclass(frozen=True)
class Data:
    """What is read, and how it becomes sequences of tokens, or rows of features or images."""

    path: str | None = field(
        None,
        "a text file, .jsonl or .csv (.tsv, .gz), a folder of them, or package:NAME/FILE for what an installed "
        "Python package brings; none: the Python standard library's sources",
    )
    kind: str | None = field(None, "what it holds; none: as the file is called", choices=("text", "table"))
    pattern: str = field("*", "which files of a folder to read, as a glob: *.txt")
    heldout: float | None = field(
        None,
        "fraction kept for evaluation; none: 0.05 of documents, 0.2 of rows, or 0 beside data.eval_path",
        low=0.0,
        high=0.5,
    )
    eval_path: tuple[str, ...] = field(
        (), "other tables to evaluate on; the first is called eval, the others as their files"
    )
    eval_batches: int | None = field(None, "batches in one evaluation; none: all that was held out", low=1)
    # Text.
    text_field: str = field("text", "the field of a .jsonl line that holds the text")
    tokenizer: str = field("bpe", "bpe is trained on the data; byte needs no training", choices=("bpe", "byte"))
    vocab_size: int = field(2048, "tokens in a bpe vocabulary: 256 bytes, the separator, and merges", low=257)
    length: int = field(128, "tokens in a sequence", low=1)
    cache: str | None = field(None, "folder for tokenised data; none: the user's cache folder")
    # Tables.
    label: str = field("label", "the column that is predicted")
    categorical: tuple[str, ...] = field((), "columns of categories, whatever they look like")
    ignore: tuple[str, ...] = field((), "columns to leave out")
    scaling: str = field(
        "auto",
        "of numeric columns: to mean 0 and deviation 1, to 0 … 1, by median and quartiles, or not at all; "
        "auto: standard, and minmax for images",
        choices=("auto", "standard", "minmax", "robust", "none"),
    )
    missing: str = field(
        "impute",
        "what is missing becomes the median, or an unknown category; or is refused",
        choices=("impute", "error"),
    )
    header: bool = field(True, "the first line names the columns; false: they are called 0, 1, 2, …")
    skip_rows: int = field(0, "lines to skip at the top of each file", low=0)
    delimiter: str | None = field(
        None, "what separates the fields; none: found out", choices=("comma", "semicolon", "tab")
    )
    image_shape: tuple[int, ...] = field(
        (), "height,width or height,width,channels: each row's numbers, in their order, are an image", low=1
    )
    augment: tuple[str, ...] = field(
        (), "random changes of training images", choices=("shift", "flip", "rotate", "cutout")
    )

    def check(self) -> None:
        """Raise InputError if a field is out of bounds, or two contradict each other (both are named)."""
        validate(self, "data.")
        if self.eval_path and self.heldout:
            raise InputError(
                f"data.eval_path={to_text(self.eval_path)} and data.heldout={self.heldout} are both for evaluation: "
                "leave one out, or set data.heldout=0"
            )
        tabular = ("eval_path", "categorical", "ignore", "image_shape", "augment")
        said = next((name for name in tabular if getattr(self, name)), None)
        if self.kind == "text" and said:
            raise InputError(
                f"data.kind=text and data.{said}={to_text(getattr(self, said))} contradict: {said} is of tables; "
                "leave one of them out"
            )
        if self.label in self.ignore:
            raise InputError(
                f"data.ignore={to_text(self.ignore)} leaves out data.label={self.label}: change one of them"
            )
        both = set(self.categorical) & set(self.ignore)
        if both:
            raise InputError(f"data.categorical and data.ignore both name {min(both)}: take it out of one of them")
        if self.image_shape and len(self.image_shape) not in (2, 3):
            raise InputError(
                f"data.image_shape={to_text(self.image_shape)}: give height,width or height,width,channels"
            )
        if self.image_shape and set(self.categorical) - {self.label}:
            raise InputError(
                f"data.image_shape={to_text(self.image_shape)} makes every column a pixel, and "
                f"data.categorical={to_text(self.categorical)} makes some of them categories: leave one out"
            )
        if self.augment and not self.image_shape:
            raise InputError(
                f"data.augment={to_text(self.augment)} changes images: set data.image_shape, or leave it out"
            )


@register
@dataclasses.dataclass(frozen=True)
class Train:
    """How long, in what batches and in what precision."""

    steps: int | None = field(None, "optimizer steps; none: 1000, or as many as the epochs have", low=1)
    epochs: float | None = field(None, "passes over the training data, in place of steps", low=0.0)
    batch_size: int | Literal["auto"] = field(
        16,
        "sequences, rows or images in a step, over all devices; auto: as many as memory holds, found by compiling",
        low=1,
    )
    accumulate: int = field(1, "pieces a batch is computed in, one after the other, to save memory", low=1)
    seed: int = field(0, "decides the initial weights, the order of the data and dropout", low=0)
    dtype: str | None = field(
        None,
        "what is computed in, weights stay float32; none: as --model.execution.dtype says",
        choices=("float32", "bfloat16"),
    )
    log_every: int = field(10, "steps between lines of metrics.jsonl", low=1)
    eval_every: int = field(0, "steps between evaluations; 0: only at the end", low=0)
    monitor: str | None = field(
        None, "metric of the first evaluation whose best steps are kept, and that ends the run; none: the last step is"
    )
    mode: str | None = field(
        None, "whether its least or its greatest value is best; none: as the metric is", choices=("min", "max")
    )
    patience: int | None = field(
        None, "evaluations without a better train.monitor after which training stops; none: it does not", low=1
    )
    min_delta: float = field(0.0, "by how much train.monitor must be better to count", low=0.0)
    average: float | None = field(
        None,
        "decay of a running average of the weights, which is evaluated and shipped; none: no average",
        low=0.0,
        high=1.0,
    )
    skip_nonfinite: bool = field(False, "leave out updates that are not finite, and count them")
    rollback: int = field(
        0, "times to go back to the last checkpoint and leave out the batches since, where training diverges", low=0
    )
    spike: float | None = field(
        None, "with train.rollback: a logged loss of so many times the median of the last has diverged too", low=1.0
    )
    profile: tuple[int, ...] = field((), "first and last step to write a trace of, for xprof or Perfetto: 10,13", low=1)
    writers: tuple[str, ...] = field((), "where else numbers go", choices=("tensorboard", "wandb", "trackio"))
    overfit_one_batch: bool = field(False, "train on the first batch alone: a model that can learn gets it right")
    fast_dev_run: bool = field(
        False, "two steps, an evaluation of a batch and a checkpoint that is not kept: does all of it work?"
    )

    def check(self) -> None:
        """Raise InputError if a field is out of bounds, or the batch cannot be cut into equal pieces."""
        validate(self, "train.")
        if self.steps is not None and self.epochs is not None:
            raise InputError(
                f"train.steps={self.steps} and train.epochs={self.epochs:g} both say how long: leave one out"
            )
        if self.epochs == 0:
            raise InputError("train.epochs=0: must be above 0")
        for name, other, why in (
            ("patience", "monitor", "needs a metric: set train.monitor, as in loss"),
            ("mode", "monitor", "needs a metric: set train.monitor, as in loss"),
            ("min_delta", "monitor", "needs a metric: set train.monitor, as in loss"),
            ("patience", "eval_every", "counts evaluations: set train.eval_every, as in 100"),
            ("spike", "rollback", "says when to go back: set train.rollback, as in 3"),
        ):
            value = getattr(self, name)
            if value != getattr(Train, name) and not getattr(self, other):
                value = f"{value:g}" if isinstance(value, float) else value
                raise InputError(f"train.{name}={value} {why}, or leave it out")
        if self.average in (0.0, 1.0):
            raise InputError(f"train.average={self.average:g}: must be between 0 and 1, as in 0.999")
        if self.profile and (len(self.profile) != 2 or self.profile[0] > self.profile[1]):
            raise InputError(f"train.profile={to_text(self.profile)}: give the first and the last step, as in 10,13")
        if self.profile and self.epochs is None and self.profile[1] > self.length(1)[0]:
            raise InputError(
                f"train.profile={to_text(self.profile)} ends after train.steps={self.length(1)[0]}: lower it"
            )
        if self.batch_size != "auto" and self.batch_size % self.accumulate:
            raise InputError(
                f"train.batch_size={self.batch_size} does not divide into train.accumulate={self.accumulate} "
                "equal pieces: make train.batch_size a multiple, or change train.accumulate"
            )

    def length(self, num_examples: int) -> tuple[int, int | None]:
        """(optimizer steps, examples after which all that follow count nothing; None: no end) of a run on the data.

        With epochs, the batch size must be a number by then.
        """
        if self.epochs is None:
            return self.steps or 1000, None
        assert self.batch_size != "auto", "found before"
        examples = max(round(self.epochs * num_examples), 1)
        return -(-examples // self.batch_size), examples


@register
@dataclasses.dataclass(frozen=True)
class Mesh:
    """How many devices share each kind of work; their product is the number of devices."""

    data: int = field(-1, "devices that each take their own part of the batch; -1: all that remain", low=-1)
    fsdp: int = field(1, "devices that also share out the weights and optimizer state", low=1)
    tensor: int = field(1, "devices that share out heads, hidden units and vocabulary", low=1)
    expert: int = field(1, "devices that share out the experts", low=1)

    def check(self) -> None:
        """Raise InputError if an axis has no size a mesh can have."""
        validate(self, "mesh.")
        if self.data == 0:
            raise InputError("mesh.data=0: must be at least 1, or -1 for all devices that remain")


@register
@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When a run is saved."""

    every: int = field(0, "steps between checkpoints; 0: only at the end", low=0)
    keep: int = field(2, "how many of the newest are kept", low=1)
    keep_best: int = field(1, "how many of the best are kept, by train.monitor", low=1)

    def check(self) -> None:
        """Raise InputError if a field is out of bounds."""
        validate(self, "checkpoint.")


# name of the task -> what of the section it makes use of, beside its name
_TASK_OPTIONS = {
    "language_model": ("label_smoothing",),
    "masked_language_model": ("label_smoothing", "mask_fraction"),
    "seq2seq": ("label_smoothing",),
    "classification": ("label_smoothing",),
    "binary": ("label_smoothing", "threshold"),
    "multilabel": ("label_smoothing", "threshold"),
    "regression": ("loss", "huber_delta", "quantiles"),
    "contrastive": ("temperature", "pairs"),
    "ctc": ("blank",),
}
_REGRESSION_OPTIONS = {"mse": (), "mae": (), "huber": ("huber_delta",), "quantile": ("quantiles",)}


@register
@dataclasses.dataclass(frozen=True)
class Task:
    """What is minimised and measured, and what is made of a model's outputs."""

    name: str | None = field(None, "the kind of problem; none: as the data is", choices=tuple(_TASK_OPTIONS))
    loss: str = field("mse", "of a regression", choices=tuple(_REGRESSION_OPTIONS))
    huber_delta: float = field(1.0, "error from which a huber loss grows linearly, above 0", low=0.0)
    quantiles: tuple[float, ...] = field(
        (0.1, 0.5, 0.9), "quantiles a regression predicts, one output each", low=0.0, high=1.0
    )
    label_smoothing: float = field(
        0.0, "in training, share of a target that goes to all classes alike", low=0.0, high=1.0
    )
    mask_fraction: float = field(0.15, "share of the tokens that a masked model predicts", low=0.0, high=1.0)
    temperature: float = field(
        0.07,
        "what similarities are divided by in a contrastive loss, above 0, for a model that does not scale them",
        low=0.0,
    )
    pairs: str = field(
        "softmax",
        "how a contrastive loss compares: a row with all others at once, or every pair on its own (sigmoid)",
        choices=("softmax", "sigmoid"),
    )
    threshold: float = field(0.5, "probability from which a label is predicted", low=0.0, high=1.0)
    blank: int = field(0, "class of a frame that stands for no token", low=0)

    def check(self) -> None:
        """Raise InputError if a field is out of bounds, or is changed and not used (both fixes are named)."""
        validate(self, "task.")
        for name in ("huber_delta", "temperature", "mask_fraction"):
            if getattr(self, name) == 0:
                raise InputError(f"task.{name}=0.0: must be above 0")
        if self.label_smoothing == 1:
            raise InputError("task.label_smoothing=1.0: must be below 1, or the targets say nothing")
        if self.threshold in (0, 1):
            raise InputError(f"task.threshold={self.threshold}: must be between 0 and 1, or all is predicted alike")
        if not self.quantiles or min(self.quantiles) == 0 or max(self.quantiles) == 1:
            raise InputError(
                f"task.quantiles={to_text(self.quantiles)}: give one or more between 0 and 1, as in 0.1,0.5,0.9"
            )
        if self.name is not None:
            self._check_used("name", _TASK_OPTIONS)
        if self.name in (None, "regression"):
            self._check_used("loss", _REGRESSION_OPTIONS)

    def _check_used(self, by: str, table: Mapping[str, tuple[str, ...]]) -> None:
        """InputError for an option that was changed, is in the table, and not in the row of this `by`."""
        chosen = getattr(self, by)
        for option in dict.fromkeys(option for row in table.values() for option in row):
            value, users = getattr(self, option), [name for name, row in table.items() if option in row]
            if value != getattr(Task, option) and chosen not in users:
                raise InputError(
                    f"task.{option}={to_text(value)} means nothing to task.{by}={chosen}: leave task.{option} out, "
                    f"or set task.{by} to {' or '.join(users)}"
                )
