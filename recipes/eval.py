"""Evaluate a model: python -m recipes.eval --checkpoint=DIR [--data.path=FILE]"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxmodel import config, options
from jaxmodel.config import field
from jaxmodel.errors import InputError
from recipes._flags import Command, Parsed, dtype_flag, run
from recipes._output import output_file

GZIP_BYTES = 64 << 20  # enough to know what gzip makes of a text
SHARES = ("accuracy", "top5_accuracy", "precision", "recall", "f1", "recall_at_1", "recall_at_5")  # told in percent


@dataclasses.dataclass(frozen=True)
class Data:
    """What the model is evaluated on: what training held out, but for what is said here."""

    path: str | None = field(None, "text, .jsonl, .csv or a folder of them; unsaid: that of training")
    pattern: str | None = field(None, "which files of a folder to read; unsaid: as in training")
    text_field: str | None = field(None, "the text's field in a .jsonl line; unsaid: as in training")
    length: int | None = field(None, "tokens in a sequence; unsaid: as in training", low=1)
    heldout: float | None = field(
        None,
        "fraction of the documents or rows; unsaid: as in training, and all of what was not trained on",
        low=0.0,
        high=0.5,
    )
    header: bool | None = field(None, "the first line names the columns; unsaid: as in training")
    skip_rows: int | None = field(None, "lines to skip at the top; unsaid: as in training", low=0)
    delimiter: str | None = field(
        None, "what separates the fields; unsaid: as in training", choices=("comma", "semicolon", "tab")
    )
    cache: str | None = field(None, "folder for tokenised data; unsaid: as in training")


@dataclasses.dataclass(frozen=True)
class Flags:
    """What is evaluated, on what, and where the numbers go."""

    checkpoint: str = field(help="a run's folder, one of its steps, an export, or a Hugging Face directory")
    output: str | None = field(
        None, "file for the numbers; none: eval.json in the run's folder, or eval-NAME.json of other data"
    )
    batch_size: int = field(16, "examples computed at once; changes no number", low=1)
    dtype: str | None = dtype_flag()
    mesh: options.Mesh | None = field(None, "devices that share the work; none: one device")
    data: Data = Data()


COMMAND = Command("eval", "Evaluate a model on what was held out from training, or on all of another file.", Flags)


def main(parsed: Parsed[Flags]) -> int:
    """Load, evaluate, compare text with gzip, write."""
    flags = parsed.flags
    other = flags.data.path
    output = _workdir(Path(flags.checkpoint)) / (f"eval-{Path(other).stem}.json" if other else "eval.json")
    if flags.output is not None:
        output = output_file(flags.output, "output")

    from recipes._runtime import compile_cache, log

    compile_cache()

    from jaxmodel.data.dataset import open_dataset
    from jaxmodel.data.loader import sequential
    from jaxmodel.data.text import gzip_bits_per_byte
    from jaxmodel.evaluate import evaluate
    from jaxmodel.interop.signature import limits_of
    from jaxmodel.loading import load
    from jaxmodel.sharding import Partitioning, make_mesh
    from jaxmodel.train import put
    from recipes._task import loss_of, task_in

    mesh = flags.mesh and make_mesh(dataclasses.asdict(flags.mesh))
    partitioning = mesh and Partitioning(mesh)
    if partitioning:
        partitioning.check_batch(flags.batch_size, "batch_size")
    loaded = load(flags.checkpoint, mesh=mesh, dtype=flags.dtype, log=log)
    task = task_in(loaded)
    if loaded.fitted is None or task is None:
        lacks = "no tokenizer and no table" if loaded.fitted is None else "no language model, and names no task"
        raise InputError(
            f"--checkpoint={flags.checkpoint} holds {lacks}: only what recipes.train made, and language models of "
            "Hugging Face, are evaluated here; from Python, see jaxmodel.evaluate"
        )
    data_options = _data(loaded.info, parsed.said)
    limit = limits_of(loaded.model).get("length", data_options.length)
    if data_options.length > limit:
        raise InputError(f"--data.length={data_options.length} is longer than the model's max_length={limit}: lower it")
    data = open_dataset(data_options, stored=loaded.fitted, log=log)
    loss = loss_of(task, loaded.model, data.facts, shards=mesh.size if mesh else 1)
    facts = {
        "checkpoint": flags.checkpoint,
        "step": loaded.step,
        "task": task.name,
        "fingerprint": data.fingerprint,
        "data": dataclasses.asdict(data_options),
    }
    numbers = {}
    for name, source in data.heldout.items():
        size = f"{len(source):,} rows"
        if data.text is not None:
            size = f"{data.text.heldout.num_targets:,} tokens, {data.text.heldout.num_bytes:,} bytes"
            facts |= {"tokens": data.text.heldout.num_targets, "bytes": data.text.heldout.num_bytes}
        log(f"evaluating step {loaded.step} on {size}" + (f" of {name}" if len(data.heldout) > 1 else ""))
        found = evaluate(
            loss,
            loaded.params,
            sequential(source, flags.batch_size),
            loaded.model_state,
            put=lambda batch: put(batch, partitioning),
            collect=task.row.collect,
        )
        if name == "eval" and task.name == data.task:
            found |= data.extra_metrics(found)
        if data.text is not None and "bits_per_byte" in found:
            found["gzip_bits_per_byte"] = gzip_bits_per_byte(data.text.heldout_bytes(GZIP_BYTES))
        log("  ".join(_told(found)))
        numbers |= found if name == "eval" else {f"{name}/{key}": value for key, value in found.items()}
    output.write_text(json.dumps(numbers | facts, indent=2) + "\n")
    follow = "predict --input=new.csv --output=predicted.csv" if loaded.table else "generate --prompt=…"
    verb, _, rest = follow.partition(" ")
    log(f"{output}\nnext: python -m recipes.{verb} --checkpoint={flags.checkpoint} {rest}")
    return 0


def _told(numbers: Mapping[str, float]) -> Iterator[str]:
    """The numbers as a person reads them."""
    for name in sorted(numbers, key=lambda name: name != "loss"):  # the loss first
        value = numbers[name]
        words = name.replace("_", " ")
        if name == "gzip_bits_per_byte":
            continue
        if name == "bits_per_byte":
            yield f"{words} {value:.3f} (gzip -9: {numbers['gzip_bits_per_byte']:.3f})"
        elif name == "perplexity":
            yield f"{words} {value:.2f}"
        elif name in SHARES:
            yield f"{words} {value:.1%}"
        else:
            yield f"{words} {value:.4f}"


def _workdir(checkpoint: Path) -> Path:
    """The run that a step belongs to, or the folder itself: a step's own files stay as they were written."""
    checkpoint = checkpoint.parent if checkpoint.parent.name == "checkpoints" else checkpoint
    return checkpoint.parent if checkpoint.name == "checkpoints" else checkpoint


def _data(info: Any, said: Any) -> options.Data:
    """The data section of training, with what was said laid over it."""
    known = config.fields(options.Data)
    trained = {name: value for name, value in info.get("data", {}).items() if name in known}
    over = {name.removeprefix("data."): value for name, value in said.items() if name.startswith("data.")}
    data = config.create(options.Data, trained | over, "data.")
    if "heldout" in over or "path" not in over or _same(over["path"], trained.get("path")):
        return data
    return dataclasses.replace(data, heldout=1.0, eval_path=())  # the model has seen none of it


def _same(path: str, trained: str | None) -> bool:
    return trained is not None and Path(path).expanduser().resolve() == Path(trained).expanduser().resolve()


if __name__ == "__main__":
    sys.exit(run(main, COMMAND))
