"""A fitted table: all it takes to turn a csv into arrays, written down with the checkpoint."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmodel import config
from jaxmodel.config import register
from jaxmodel.data.cells import LARGEST, few, is_missing, labels_of, numbers_of, refuse, spelled
from jaxmodel.data.delimited import Columns
from jaxmodel.errors import InputError

FILE = "table.json"


@register
@dataclasses.dataclass(frozen=True)
class Numeric:
    """A column of numbers: `(x - center) / scale`, `imputed` (in the column's units) standing for what is missing.

    With `indicator` a feature of its own says where it was missing.
    """

    name: str
    center: float
    scale: float
    imputed: float
    indicator: bool = False


@register
@dataclasses.dataclass(frozen=True)
class Categorical:
    """A column of categories, the most frequent first: id 1 and up; 0 is what is unknown, rare or missing."""

    name: str
    categories: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many ids there are."""
        return len(self.categories) + 1


@register
@dataclasses.dataclass(frozen=True)
class Label:
    """The column that is predicted: `classes` in order, or for a regression its mean and deviation."""

    name: str
    task: str
    classes: tuple[str, ...] = ()
    center: float = 0.0
    scale: float = 1.0


class Encoded(NamedTuple):
    """Arrays by name, and what was met on the way: counts by column, and columns that nobody asked for."""

    arrays: dict[str, np.ndarray]
    unknown: dict[str, int]
    missing: dict[str, int]
    ignored: tuple[str, ...]

    def lines(self, title: str) -> Iterator[str]:
        """What of this a person should know."""
        for words, counts in (("missing values", self.missing), ("unknown or rare categories", self.unknown)):
            if counts:
                each = ", ".join(f"{name} {count}" for name, count in counts.items())
                yield f"table: {title}: {words}: {each}"
        if self.ignored:
            yield f"table: {title}: columns left out: {', '.join(self.ignored)}"


@register
@dataclasses.dataclass(frozen=True)
class Table:
    """All that turns a table of text into arrays, as it was fitted on the training part; see `fit_table`.

    `image_shape` (height, width, channels) makes the numeric columns, in their order, pixels of an image.
    `missing` is "impute" or "error".
    """

    label: Label
    numeric: tuple[Numeric, ...]
    categorical: tuple[Categorical, ...] = ()
    image_shape: tuple[int, ...] = ()
    missing: str = "impute"

    @property
    def facts(self) -> dict[str, Any]:
        """What a model has to know of the data: see `fitted` of the configs."""
        num_outputs = len(self.label.classes) if self.label.task == "classification" else 1
        if self.image_shape:
            return {"inputs": ("images",), "channels": self.image_shape[2], "num_outputs": num_outputs}
        num_features = len(self.numeric) + sum(each.indicator for each in self.numeric)
        return {
            "inputs": ("features",) * bool(num_features) + ("categories",) * bool(self.categorical),
            "num_features": num_features,
            "categories": tuple(each.size for each in self.categorical),
            "num_outputs": num_outputs,
        }

    def encode(self, columns: Columns, *, need_label: bool = True) -> Encoded:
        """Text to arrays, columns being found by name.

        Arrays: `features` float32[N,F] (the numeric columns, then their indicators), `categories` int32[N,C], or
        `images` float32[N,H,W,C]; with `need_label` `targets`, int32[N] of a class or float32[N], standardised.

        Raises:
          InputError: a column is missing (named), a number is none (with its row), or a label no class of training.
        """
        wanted = [each.name for each in (*self.numeric, *self.categorical)]
        absent = [name for name in wanted if name not in columns.columns]
        if absent:
            raise InputError(
                f"{columns.flag}: {columns.title} lacks {few(absent)}, which the model was trained on: give a table "
                f"with the columns {few(wanted, 12)}"
            )
        unknown, missing = {}, {}
        features, indicators, categories = [], [], []
        for each in self.numeric:
            values = numbers_of(columns, each.name)
            gone = np.isnan(values)
            if gone.any():
                missing[each.name] = self._count(columns, each.name, gone)
                if self.missing == "error":
                    refuse(columns, each.name, gone, "is missing: fill it in, or train with data.missing=impute")
            scaled = (np.where(gone, each.imputed, values) - each.center) / each.scale
            refuse(columns, each.name, np.abs(scaled) > LARGEST, "is too large, once scaled as in training")
            features.append(scaled)
            if each.indicator:
                indicators.append(gone)
        for each in self.categorical:
            ids = {category: i for i, category in enumerate(each.categories, 1)}
            found = np.array([ids.get(text, 0) for text in columns[each.name]], np.int32)
            gone = is_missing(columns[each.name])
            if gone.any():
                missing[each.name] = self._count(columns, each.name, gone)
            if (unseen := int(((found == 0) & ~gone).sum())) > 0:
                unknown[each.name] = unseen
            categories.append(found)
        arrays = {}
        if self.image_shape:
            arrays["images"] = _stacked(features, np.float32).reshape(-1, *self.image_shape)
        elif features:
            arrays["features"] = _stacked(features + indicators, np.float32)
        if categories:
            arrays["categories"] = _stacked(categories, np.int32)
        if need_label:
            arrays["targets"] = self._targets(columns)
        extra = tuple(name for name in columns.columns if name not in {*wanted, self.label.name})
        return Encoded(arrays, unknown, missing, extra)

    def answers(self, predicted: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """What a person wants to read of what a task makes of outputs (`Task.predict`): columns by name, each [N].

        `prediction`: the class by its name, or the number in the label's units (`prediction_0`, … where there are
        several, as of quantiles); `probability_NAME` of each class, of two classes that of the second.
        """
        label, prediction = self.label, np.asarray(predicted["prediction"])
        if label.task == "regression":
            values = (prediction.astype(np.float64) * label.scale + label.center).astype(np.float32)
            if values.ndim == 1:
                return {"prediction": values}
            return {f"prediction_{i}": column for i, column in enumerate(values.T)}
        columns = {"prediction": np.array(label.classes)[prediction]}
        if label.task == "binary":
            return columns | {f"probability_{label.classes[1]}": np.asarray(predicted["probability"])}
        each = np.asarray(predicted["probabilities"]).T
        return columns | {f"probability_{name}": row for name, row in zip(label.classes, each, strict=True)}

    def to_json(self) -> str:
        """All of it; `Table.from_json` reads it back."""
        return json.dumps(config.to_dict(self), indent=1, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> "Table":
        """The table that `to_json` wrote; InputError if it is none."""
        try:
            found = config.from_dict(json.loads(text))
        except ValueError as error:  # InputError too
            raise InputError(f"{FILE} is not as it was written ({error}): take another checkpoint") from error
        if not isinstance(found, Table):
            raise InputError(f"{FILE} holds a {type(found).__name__}, not a Table: take another checkpoint")
        return found

    def _count(self, columns: Columns, name: str, gone: np.ndarray) -> int:
        if self.missing == "error":
            refuse(columns, name, gone, "is missing: fill it in, or train with data.missing=impute")
        return int(gone.sum())

    def _targets(self, columns: Columns) -> np.ndarray:
        label = self.label
        texts = labels_of(columns, label.name)
        if label.task == "regression":
            values = (numbers_of(columns, label.name) - label.center) / label.scale
            return values.astype(np.float32)
        ids = {name: i for i, name in enumerate(label.classes)}
        targets = np.array([ids.get(name, -1) for name in spelled(texts, label.classes)], np.int32)
        refuse(columns, label.name, targets < 0, f"is none of the classes of training: {few(label.classes)}")
        return targets


def _stacked(columns: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.stack(columns, axis=1).astype(dtype)
