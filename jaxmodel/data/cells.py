"""From text to numbers: what is missing, what is a number, what a label is called; every error names its row."""

import math
from collections.abc import Sequence

import numpy as np

from jaxmodel.data.delimited import Columns
from jaxmodel.errors import InputError

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})  # in any case
MOSTLY = 0.95  # a column with this share of numbers was meant to hold numbers alone
LARGEST = float(np.finfo(np.float32).max)


def is_missing(texts: np.ndarray) -> np.ndarray:
    """Which cells hold nothing, or a word for it (`MISSING`), bool[N]."""
    return np.array([text.lower() in MISSING for text in texts], bool)


def parse_numbers(texts: Sequence[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers float64[N], NaN where there is none, and where there is text instead, bool[N]."""
    values = np.full(len(texts), np.nan)
    text = np.zeros(len(texts), bool)
    for i, cell in enumerate(texts):
        try:
            values[i] = float(cell) if "_" not in cell else float("?")
        except ValueError:
            text[i] = cell.lower() not in MISSING
    return values, text


def numbers_or_none(columns: Columns, name: str) -> np.ndarray | None:
    """The numbers of a column as `numbers_of`, or None if it holds text.

    Raises InputError, which names the first text, where nearly all is numbers.
    """
    values, text = parse_numbers(columns[name])
    if text.any():
        num_numbers = int((~np.isnan(values)).sum())
        why = f"is text in a numeric column: mend it, leave it empty, or set data.categorical={name}"
        refuse(columns, name, text & (num_numbers >= MOSTLY * (num_numbers + text.sum())), why)
        return None
    return _finite(columns, name, values)


def numbers_of(columns: Columns, name: str) -> np.ndarray:
    """The numbers of a column, float64[N], NaN where missing; InputError for text and what float32 cannot hold."""
    values, text = parse_numbers(columns[name])
    refuse(columns, name, text, "is not a number, as all were in training: mend it, or leave it empty")
    return _finite(columns, name, values)


def _finite(columns: Columns, name: str, values: np.ndarray) -> np.ndarray:
    why = "is no finite float32 number: mend it, or leave it empty"
    refuse(columns, name, np.abs(values) > LARGEST, why)
    return values


def refuse(columns: Columns, name: str, wrong: np.ndarray, why: str) -> None:
    """InputError about the first row that is `wrong` (bool[N]), if any is."""
    if wrong.any():
        row, rest = int(wrong.argmax()), int(wrong.sum()) - 1
        more = f" (so are {rest} more of this column)" if rest else ""
        cell = columns[name][row][:40]
        raise InputError(f"{columns.flag}: {columns.where(row)}, column {name}: {cell!r} {why}{more}")


def labels_of(columns: Columns, name: str) -> np.ndarray:
    """The label column, object[N] of str; InputError where it is not there, or has a hole.

    Among names, "none" is a name too; among numbers it is a hole.
    """
    if name not in columns.columns and columns.columns and "0" not in columns.columns:
        _, text = parse_numbers(list(columns.columns))
        if not text.any():
            raise InputError(
                f"{columns.flag}: {columns.title} has no column {name}, and numbers for names: if its first line is a "
                "row, set data.header=false, and data.label to the label's place, from 0"
            )
    texts = columns[name]
    values, text = parse_numbers(texts)
    gone = np.array([cell == "" for cell in texts], bool) if text.any() else np.isnan(values)
    refuse(columns, name, gone, "is no label: fill it in, or take the row out")
    return texts


def spelled(texts: Sequence[str] | np.ndarray, classes: Sequence[str]) -> Sequence[str]:
    """Labels as `classes` are spelled: where those are numbers, "1.0" is "1"."""
    if parse_numbers(classes)[1].any():
        return list(texts)
    values, text = parse_numbers(texts)
    return [cell if bad else spell(value) for cell, value, bad in zip(texts, values, text, strict=True)]


def spell(value: float) -> str:
    """A number as a class is called by it: whole ones without a point."""
    return str(int(value)) if math.isfinite(value) and float(value).is_integer() else repr(float(value))


def few(names: Sequence[str], most: int = 6) -> str:
    """Names for a message, not all where there are many."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
