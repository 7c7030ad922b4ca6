"""Rows or arrays in, answers out: python -m recipes.predict --checkpoint=DIR --input=new.csv --output=out.csv"""

import csv
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmodel import config, options
from jaxmodel.config import field
from jaxmodel.errors import InputError
from recipes._flags import Command, Parsed, dtype_flag, run
from recipes._output import output_file


@dataclasses.dataclass(frozen=True)
class Data:
    """How a table is written, where it differs from that of training."""

    header: bool | None = field(None, "the first line names the columns; unsaid: as in training")
    skip_rows: int | None = field(None, "lines to skip at the top; unsaid: as in training", low=0)
    delimiter: str | None = field(
        None, "what separates the fields; unsaid: as in training", choices=("comma", "semicolon", "tab")
    )


@dataclasses.dataclass(frozen=True)
class Flags:
    """What is read, what is written, and how much at once."""

    checkpoint: str = field(help="a run's folder, one of its steps, an export, or a Hugging Face directory")
    input: str = field(
        help="a raw .csv or .tsv for a model trained on a table, or a .npz file of what the model reads: tokens, "
        "mask, images, …, by name"
    )
    output: str = field(help=".npz file for what it gives, by name; of a table also .csv")
    values: tuple[str, ...] = field((), "which of that; none named: all")
    batch_size: int = field(32, "rows computed at once", low=1)
    dtype: str | None = dtype_flag()
    data: Data = Data()


COMMAND = Command("predict", "Run a model on the rows of a table or on arrays, and write what it gives.", Flags)


def main(parsed: Parsed[Flags]) -> int:
    """Load, predict, write."""
    flags = parsed.flags
    output = output_file(flags.output, "output")

    from recipes._runtime import compile_cache, log

    compile_cache()

    from jaxmodel.data.delimited import is_table
    from jaxmodel.loading import load
    from jaxmodel.predict import predict, read_arrays

    raw = not Path(flags.input).is_dir() and is_table(flags.input)
    arrays = {} if raw else read_arrays(flags.input)
    loaded = load(flags.checkpoint, dtype=flags.dtype, log=log)
    how: dict[str, Any] = {"state": loaded.model_state, "batch_size": flags.batch_size}
    if raw:
        found = _answers(parsed, loaded, how, log)
    else:
        found = predict(loaded.model, loaded.params, arrays, values=flags.values, **how)
    _write(output, found)
    log(f"{output}: " + ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in found.items()))
    return 0


def _answers(parsed: Parsed[Flags], loaded: Any, how: Mapping[str, Any], log: Any) -> dict[str, Any]:
    """The rows of a raw table -> what the task makes of them, in the label's own words."""
    from jaxmodel.data.dataset import read_columns
    from jaxmodel.predict import predict
    from recipes._task import task_in

    flags = parsed.flags
    task = task_in(loaded)
    if loaded.table is None or task is None:
        raise InputError(
            f"--input={flags.input} is a table, and --checkpoint={flags.checkpoint} was not trained on one: give a .npz"
        )
    form = {name: loaded.info.get("data", {}).get(name) for name in ("header", "skip_rows", "delimiter")}
    said = {name.removeprefix("data."): value for name, value in parsed.said.items() if name.startswith("data.")}
    data = config.create(options.Data, {name: v for name, v in (form | said).items() if v is not None}, "data.")
    columns = read_columns(data, flags.input, "input")
    encoded = loaded.table.encode(columns, need_label=False)
    for line in encoded.lines(columns.title):
        log(line)

    def finish(outputs: Any) -> dict[str, Any]:
        return task.row.predict(outputs, task.options)

    found = loaded.table.answers(predict(loaded.model, loaded.params, encoded.arrays, postprocess=finish, **how))
    for name in flags.values:
        if name not in found:
            raise InputError(f"--values={name}: the answers are {config.did_you_mean(name, found)}")
    return {name: found[name] for name in flags.values or found}


def _write(output: Path, found: Mapping[str, Any]) -> None:
    """A .csv with a column for each name, or a .npz."""
    import numpy as np

    if output.suffix == ".csv":
        wide = [name for name, array in found.items() if array.ndim > 1]
        if wide:
            raise InputError(
                f"--output={output}: {wide[0]} is no column, it has {found[wide[0]].ndim} axes: name a .npz"
            )
        with open(output, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(found)
            writer.writerows(zip(*(array.tolist() for array in found.values()), strict=True))
        return
    with open(output, "wb") as file:  # given a name, numpy would add .npz to it
        np.savez(file, **found)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    sys.exit(run(main, COMMAND))
