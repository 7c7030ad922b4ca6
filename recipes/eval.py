"""Evaluate a language model: python -m recipes.eval --checkpoint=DIR [--data.path=FILE]"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from jaxmodel import config, options
from jaxmodel.config import field
from jaxmodel.errors import InputError
from recipes._flags import Command, Parsed, run
from recipes._output import output_file

GZIP_BYTES = 64 << 20  # enough to know what gzip makes of a text


@dataclasses.dataclass(frozen=True)
class Data:
    """What the model is evaluated on: what training held out, but for what is said here."""

    path: str | None = field(None, "text file, .jsonl file or folder; unsaid: that of training")
    pattern: str | None = field(None, "which files of a folder to read; unsaid: as in training")
    text_field: str | None = field(None, "the text's field in a .jsonl line; unsaid: as in training")
    length: int | None = field(None, "tokens in a sequence; unsaid: as in training", low=1)
    heldout: float | None = field(
        None,
        "fraction of the documents; unsaid: as in training, and all of what was not trained on",
        low=0.0,
        high=0.5,
    )
    cache: str | None = field(None, "folder for tokenised data; unsaid: as in training")


@dataclasses.dataclass(frozen=True)
class Flags:
    """What is evaluated, on what, and where the numbers go."""

    checkpoint: str = field(help="a run's folder, one of its steps, or an export")
    output: str | None = field(
        None, "file for the numbers; none: eval.json in the run's folder, or eval-NAME.json of other data"
    )
    batch_size: int = field(16, "sequences computed at once; changes no number", low=1)
    mesh: options.Mesh | None = field(None, "devices that share the work; none: one device")
    data: Data = Data()


COMMAND = Command(
    "eval", "Evaluate a language model on the text held out from training, or on all of another.", Flags
)


def main(parsed: Parsed[Flags]) -> int:
    """Load, evaluate, compare with gzip, write."""
    flags = parsed.flags
    other = flags.data.path
    output = _workdir(Path(flags.checkpoint)) / (f"eval-{Path(other).stem}.json" if other else "eval.json")
    if flags.output is not None:
        output = output_file(flags.output, "output")

    from recipes._runtime import compile_cache, log

    compile_cache()

    from jaxmodel import tasks
    from jaxmodel.data.loader import sequential
    from jaxmodel.data.packing import Windows
    from jaxmodel.data.text import gzip_bits_per_byte, prepare_text
    from jaxmodel.evaluate import evaluate
    from jaxmodel.interop.signature import limits_of
    from jaxmodel.load import load
    from jaxmodel.sharding import Partitioning, make_mesh
    from jaxmodel.train import put

    mesh = flags.mesh and make_mesh(dataclasses.asdict(flags.mesh))
    partitioning = mesh and Partitioning(mesh)
    if partitioning:
        partitioning.check_batch(flags.batch_size, "batch_size")
    loaded = load(flags.checkpoint, mesh=mesh, log=log)
    if loaded.tokenizer is None:
        raise InputError(f"--checkpoint={flags.checkpoint} holds no tokenizer: name a language model's")
    data_options = _data(loaded.info, parsed.said)
    limit = limits_of(loaded.model).get("length", data_options.length)
    if data_options.length > limit:
        raise InputError(
            f"--data.length={data_options.length} is longer than the model's max_length={limit}: lower it"
        )
    data = prepare_text(data_options, loaded.tokenizer, log=log)
    windows = Windows(data.heldout, data_options.length, partial=True)
    log(
        f"evaluating step {loaded.step} on {data.heldout.num_targets:,} tokens, {data.heldout.num_bytes:,} bytes"
    )
    found = evaluate(
        tasks.language_model(loaded.model, shards=mesh.size if mesh else 1),
        loaded.params,
        sequential(windows, flags.batch_size),
        loaded.model_state,
        put=lambda batch: put(batch, partitioning),
    )
    bits = data.heldout.bits_per_byte(found["loss"])
    gzip_bits = gzip_bits_per_byte(data.heldout_bytes(GZIP_BYTES))
    facts = {
        "checkpoint": flags.checkpoint,
        "step": loaded.step,
        "tokens": data.heldout.num_targets,
        "bytes": data.heldout.num_bytes,
        "fingerprint": data.fingerprint,
        "data": dataclasses.asdict(data_options),
    }
    numbers = found | {"bits_per_byte": bits, "gzip_bits_per_byte": gzip_bits}
    output.write_text(json.dumps(numbers | facts, indent=2) + "\n")
    log(
        f"loss {found['loss']:.4f}  perplexity {found['perplexity']:.2f}  accuracy {found['accuracy']:.1%}  "
        f"bits per byte {bits:.3f} (gzip -9: {gzip_bits:.3f})"
    )
    log(f"{output}\nnext: python -m recipes.generate --checkpoint={flags.checkpoint} --prompt=…")
    return 0


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
    return dataclasses.replace(data, heldout=1.0)  # the model has seen none of it


def _same(path: str, trained: str | None) -> bool:
    return trained is not None and Path(path).expanduser().resolve() == Path(trained).expanduser().resolve()


if __name__ == "__main__":
    sys.exit(run(main, COMMAND))
