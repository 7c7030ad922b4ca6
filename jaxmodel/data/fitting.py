"""Fitting a table to its training part: which columns are numbers, how they are scaled, what is to be predicted."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmodel.config import to_text
from jaxmodel.data.cells import is_missing, labels_of, numbers_of, numbers_or_none, parse_numbers, spell
from jaxmodel.data.delimited import Columns
from jaxmodel.data.order import permute
from jaxmodel.data.table import Categorical, Label, Numeric, Table
from jaxmodel.errors import InputError

TASKS = ("classification", "binary", "regression")
RARE = 2  # categories seen less often in training share the id of what was never seen
MAX_CLASSES = 100  # whole numbers of more values than this are a quantity
Log = Callable[[str], None]


def fit_table(columns: Columns, options: Any, *, task: str | None = None, log: Log = print) -> Table:
    """The table that `columns`, the training part alone, come to.

    A column whose values are all numbers is numeric, any other one categorical; an empty one is left out.

    Args:
      columns: the training part.
      options: `label`, `categorical`, `ignore`, `scaling`, `missing` and `image_shape` of a `jaxmodel.options.Data`.
      task: one of `TASKS`; None: as `task_of` the label.
      log: is told of columns that are left out, or look like names of the rows.

    Raises:
      InputError: text in a column of numbers (with its row), a number without end, a column that is not there,
        an image_shape of other than the numeric columns, or no column to learn from.
    """
    for name in (*options.categorical, *options.ignore):
        columns[name]  # or it says which ones there are
    task = task_of(columns, options.label, options.label in options.categorical, task)
    numeric, categorical = {}, []
    for name in columns.columns:
        if name == options.label or name in options.ignore:
            continue
        if is_missing(columns[name]).all():
            log(f"table: column {name} holds nothing, and is left out")
            continue
        values = None if name in options.categorical else numbers_or_none(columns, name)
        if values is None:
            categorical.append(_fit_categorical(columns, name, log))
        else:
            numeric[name] = values
    if not numeric and not categorical:
        raise InputError(f"{columns.flag}: {columns.title} has no column beside {options.label} to learn from")
    shape = tuple(options.image_shape)
    kind = options.scaling
    if shape:
        _check_image(columns, shape, numeric, categorical)
        shape = (*shape, 1)[:3]
        # Pixels are one quantity: they share a scale, and need no word of each that is missing.
        one = _fit_numeric("", np.concatenate(list(numeric.values())), "minmax" if kind == "auto" else kind)
        fitted = tuple(dataclasses.replace(one, name=name, indicator=False) for name in numeric)
    else:
        kind = "standard" if kind == "auto" else kind
        fitted = tuple(_fit_numeric(name, values, kind) for name, values in numeric.items())
    label = _fit_label(columns, options.label, task)
    return Table(label, fitted, tuple(categorical), shape, options.missing)


def task_of(columns: Columns, name: str, categorical: bool = False, task: str | None = None) -> str:
    """What predicting a column is: binary for two values, classification for names or few whole numbers, or regression.

    Args:
      columns: all rows there are.
      name: the label.
      categorical: its numbers are names.
      task: what it is said to be, and is then checked for.

    Raises:
      InputError: no such column, a row without a label, fewer than two classes, or a task that does not fit.
    """
    if task not in (None, *TASKS):
        raise InputError(f"task.name={task} is not for a table with one label: choose from {', '.join(TASKS)}")
    texts = labels_of(columns, name)
    numbers = None if categorical else numbers_or_none(columns, name)
    values = set(texts) if numbers is None else set(numbers)
    place = f"{columns.flag}: column {name} of {columns.title}"
    if len(values) < 2:
        raise InputError(f"{place} holds nothing but {texts[0]}: there is nothing to tell apart")
    if task == "regression" and numbers is None:
        raise InputError(f"{place} holds text: task.name=regression needs numbers, task.name=classification does not")
    if task == "binary" and len(values) > 2:
        raise InputError(
            f"{place} holds {len(values)} values: task.name=binary needs two: set task.name=classification"
        )
    if task is not None:
        return task
    if len(values) == 2:
        return "binary"
    names = numbers is None or (len(values) <= MAX_CLASSES and all(value.is_integer() for value in values))
    return "classification" if names else "regression"


def held_out(columns: Columns, label: str, task: str, fraction: float) -> np.ndarray:
    """Which rows to hold out, bool[N]: about `fraction`, always the same, and of every class alike.

    Of a class with a single row that row is for training.
    """
    rank = permute(np.arange(len(columns)), len(columns), "heldout/0")
    if task == "regression":
        classes = np.zeros(len(columns), np.int64)
    else:
        classes = np.unique(np.asarray(columns[label], str), return_inverse=True)[1]
    rows = np.lexsort((rank, classes))
    rows = rows[np.bincount(classes)[classes[rows]] > 1]
    # Every so-manyth row of that order: classes take turns in being rounded up.
    counts = np.floor(np.arange(len(rows) + 1) * fraction + 0.5)
    held = np.zeros(len(columns), bool)
    held[rows[np.diff(counts) > 0]] = True
    return held


def _fit_numeric(name: str, values: np.ndarray, kind: str) -> Numeric:
    center, scale = _scale(values, kind)
    gone = np.isnan(values)
    return Numeric(name, center, scale, float(np.median(values[~gone])), bool(gone.any()))


def _scale(values: np.ndarray, kind: str) -> tuple[float, float]:
    """Center and scale of the numbers that are there; a scale of 1 where they do not differ."""
    values = values[~np.isnan(values)]
    if kind == "standard":
        center, scale = values.mean(), values.std()
    elif kind == "minmax":
        center, scale = values.min(), np.ptp(values)
    elif kind == "robust":
        low, center, high = np.percentile(values, [25, 50, 75])
        scale = high - low
    else:
        return 0.0, 1.0
    flat = scale <= 1e-12 * np.abs(values).max()  # no more than the sums were rounded by
    return float(center), 1.0 if flat else float(scale)


def _fit_categorical(columns: Columns, name: str, log: Log) -> Categorical:
    present = np.asarray(columns[name][~is_missing(columns[name])], str)
    texts, counts = np.unique(present, return_counts=True)
    if len(texts) > max(len(columns) // 2, MAX_CLASSES):
        log(f"table: column {name} has {len(texts)} categories in {len(columns)} rows: data.ignore={name}?")
    order = np.lexsort((texts, -counts))
    return Categorical(name, tuple(str(texts[i]) for i in order if counts[i] >= RARE))


def _fit_label(columns: Columns, name: str, task: str) -> Label:
    if task == "regression":
        return Label(name, task, (), *_scale(numbers_of(columns, name), "standard"))
    values, text = parse_numbers(columns[name])
    if text.any():
        return Label(name, task, tuple(sorted(set(columns[name]))))
    return Label(name, task, tuple(spell(value) for value in sorted(set(values))))


def _check_image(
    columns: Columns, shape: tuple[int, ...], numeric: Mapping[str, Any], categorical: Sequence[Categorical]
) -> None:
    said = f"data.image_shape={to_text(shape)}"
    if categorical:
        raise InputError(
            f"{said} makes every column a pixel, and column {categorical[0].name} of {columns.title} holds text: "
            f"set data.ignore={categorical[0].name}, or leave the shape out"
        )
    if math.prod(shape) != len(numeric):
        raise InputError(
            f"{said} needs {math.prod(shape)} numeric columns, and {columns.title} has {len(numeric)}: correct the "
            "shape, or leave columns out by data.ignore"
        )
