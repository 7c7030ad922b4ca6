"""One door for all kinds of data: from the `data` section to sources, and what a model has to know of them."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmodel.data import fitting
from jaxmodel.data.delimited import Columns, Format, is_table, read_table
from jaxmodel.data.loader import ArraySource, Source
from jaxmodel.data.packing import Windows
from jaxmodel.data.table import FILE, Table
from jaxmodel.data.text import TextData, prepare_text
from jaxmodel.data.tokenizer import Tokenizer
from jaxmodel.errors import InputError
from jaxmodel.options import Data

HELDOUT = 0.2  # of the rows of a table, where nothing else is said
Log = Callable[[str], None]
Numbers = Mapping[str, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Data ready for a run.

    Attributes:
      title: what to call it.
      train: None where all of it is held out.
      heldout: what to evaluate on, by name; "eval" is the first.
      facts: what a config must know of it: `config.fitted(facts)`.
      task: what it is for: "language_model", "classification", "binary" or "regression".
      fitted: what was fitted to the training part, a `Tokenizer` or a `Table`.
      texts: the same as text by file name, to be kept with a checkpoint.
      fingerprint: 16 hex digits; two runs with the same see the same examples.
      noun: what is counted, "tokens" or "rows": `num_train` of them, `per_example` in each example.
      extra_metrics: numbers of an evaluation on "eval" -> more of them.
      text: the text itself, if it is one.
    """

    title: str
    train: Source | None
    heldout: Mapping[str, Source]
    facts: Mapping[str, Any]
    task: str
    fitted: Tokenizer | Table
    texts: Mapping[str, str]
    fingerprint: str
    noun: str
    num_train: int
    per_example: int
    extra_metrics: Callable[[Numbers], dict[str, float]]
    text: TextData | None = None


def open_dataset(
    options: Data, *, stored: Tokenizer | Table | None = None, task: str | None = None, log: Log = print
) -> Dataset:
    """The data that `options` name, text or a table, ready to train and evaluate on.

    Args:
      options: the `data` section; a `heldout` of 1 keeps all for evaluation.
      stored: what a checkpoint holds: then nothing is fitted anew.
      task: of a table: what its label is for; None: as the label looks.
      log: is told what was found.

    Raises:
      InputError: what is wrong with the data or the options, or a `stored` that is of another kind.
    """
    kind = kind_of(options)
    wanted, noun = (Table, "a table") if kind == "table" else (Tokenizer, "text")
    if stored is not None and not isinstance(stored, wanted):
        raise InputError(
            f"data.path={options.path} is {noun}, and the checkpoint's model is not for that: give data as it was "
            "trained on"
        )
    if kind == "table":
        return _open_table(options, stored if isinstance(stored, Table) else None, task, log)
    # What only tables have is refused in the same words as beside data.kind=text.
    dataclasses.replace(options, kind="text", heldout=None).check()
    return _open_text(options, stored if isinstance(stored, Tokenizer) else None, log)


def kind_of(options: Data) -> str:
    """ "text" or "table": as `options.kind` says, or as what is at the path is called."""
    if options.kind is not None:
        return options.kind
    return "table" if options.path is not None and is_table(options.path, options.pattern) else "text"


def read_columns(options: Data, path: str | Path | None = None, flag: str = "data.path") -> Columns:
    """The columns of a table that is written as `options` say: theirs, or another one that `flag` named."""
    path = options.path if path is None else path
    if path is None:
        raise InputError("data.path is missing: name a .csv or .tsv file, or a folder of them")
    form = Format(options.header, options.skip_rows, options.delimiter)
    return read_table(path, form, pattern=options.pattern, flag=flag)


def _open_table(options: Data, table: Table | None, task: str | None, log: Log) -> Dataset:
    columns = read_columns(options)
    for number in columns.unnamed:
        log(f"table: column {number} of {columns.title} has no name (an index?), and is left out")
    label = options.label if table is None else table.label.name
    categorical = label in options.categorical
    task = fitting.task_of(columns, label, categorical, task) if table is None else table.label.task
    whole = options.heldout == 1
    fraction = options.heldout
    if fraction is None:
        fraction = 0.0 if options.eval_path else HELDOUT
    held = np.ones(len(columns), bool) if whole else fitting.held_out(columns, label, task, fraction)
    parts: dict[str, Columns] = {} if options.eval_path else {"eval": columns.take(held)}
    for i, path in enumerate(options.eval_path):
        name = "eval" if not i else Path(path).name.partition(".")[0]
        if name in parts:
            raise InputError(f"data.eval_path names {name} twice: give each file a name of its own")
        parts[name] = read_columns(options, path, "data.eval_path")
    if not options.eval_path and not held.any():
        raise InputError(
            f"data.heldout={fraction:g} of the {len(columns)} rows of {columns.title} leaves none to evaluate on: "
            "raise it, or name another file by data.eval_path"
        )
    rest = columns.take(~held)
    if table is None:
        if whole:
            raise InputError("data.heldout=1 leaves no rows to fit the table on: give a fraction of at most 0.5")
        table = fitting.fit_table(rest, options, task=task, log=log)

    def source(part: Columns, name: str) -> Source:
        encoded = table.encode(part)
        for line in encoded.lines(name):
            log(line)
        return ArraySource(encoded.arrays)

    train = None if whole else source(rest, "training")
    heldout = {name: source(part, name) for name, part in parts.items()}
    counts = ", ".join(f"{name} {len(each)}" for name, each in heldout.items())
    used = "" if whole else f"{len(rest)} rows to train on, "
    log(
        f"table: {columns.title}: {used}held out: {counts}; {_what(table)}; {table.label.name}: {task}{_classes(table)}"
    )
    text = table.to_json()
    mark = f"{columns.digest} {fraction} {text}"
    return Dataset(
        title=columns.title,
        train=train,
        heldout=heldout,
        facts=table.facts,
        task=task,
        fitted=table,
        texts={FILE: text},
        fingerprint=hashlib.blake2b(mark.encode(), digest_size=8).hexdigest(),
        noun="rows",
        num_train=len(rest),
        per_example=1,
        extra_metrics=lambda numbers: _in_units(numbers, table),
    )


def _what(table: Table) -> str:
    """The inputs of a table, in words."""
    facts = table.facts
    if table.image_shape:
        return f"images of {' x '.join(map(str, table.image_shape))}"
    return f"{facts['num_features']} features, {len(facts['categories'])} columns of categories"


def _classes(table: Table) -> str:
    names = table.label.classes
    return f" of {', '.join(names)}" if 0 < len(names) <= 10 else f" of {len(names)}" if names else ""


def _in_units(numbers: Numbers, table: Table) -> dict[str, float]:
    """Errors of a regression in the units of its label."""
    scale = table.label.scale
    found = {name: numbers[name] * scale for name in ("mae", "rmse") if name in numbers}
    if "mse" in numbers:
        found.setdefault("rmse", math.sqrt(numbers["mse"]) * scale)
    return {f"{name}_in_units": value for name, value in found.items()} if table.label.task == "regression" else {}


def _open_text(options: Data, tokenizer: Tokenizer | None, log: Log) -> Dataset:
    data = prepare_text(options, tokenizer, log=log)
    facts = {"inputs": ("tokens",), "vocab_size": data.tokenizer.vocab_size, "length": options.length}
    if (mask_id := data.tokenizer.mask_id) is not None:
        facts["mask_id"] = mask_id
    return Dataset(
        title=options.path or "the built-in text",
        train=None if options.heldout == 1 else Windows(data.train, options.length),
        heldout={"eval": Windows(data.heldout, options.length, partial=True)},
        facts=facts,
        task="language_model",
        fitted=data.tokenizer,
        texts={"tokenizer.json": data.tokenizer.to_json()},
        fingerprint=data.fingerprint,
        noun="tokens",
        num_train=0 if options.heldout == 1 else data.train.num_targets,
        per_example=options.length,
        extra_metrics=lambda numbers: {"bits_per_byte": data.heldout.bits_per_byte(numbers["loss"])},
        text=data,
    )
