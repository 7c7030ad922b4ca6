"""Export a checkpoint: python -m recipes.export --checkpoint=DIR --quantize=int8 --output=DIR"""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxmodel import config, options
from jaxmodel.config import field
from jaxmodel.errors import InputError
from recipes._flags import Command, Parsed, dtype_flag, run

BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Flags:
    """What is exported, how, and where to."""

    checkpoint: str = field(help="a run's folder, one of its steps, or a Hugging Face directory")
    output: str = field(help="a new or empty directory, or an earlier export, which is replaced")
    format: str = field("stablehlo", "what is written", choices=("stablehlo", "huggingface"))
    quantize: str = field("none", "what the weights become", choices=("none", "int8", "int4"))
    group: int | None = field(None, "inputs that share a scale; none: all of a channel for int8, 32 for int4", low=2)
    dtype: str | None = dtype_flag()
    merge: bool = field(False, "make adapters part of the weights they belong to")
    eval_batches: int = field(32, "batches of held-out text to compare the export on; 0: none", low=0)

    def check(self) -> None:
        """Raise InputError where two flags do not fit each other."""
        if self.group is not None and self.quantize == "none":
            raise InputError(
                f"--group={self.group} says how to quantize, and --quantize=none not to: give --quantize=int8 or "
                "int4, or no --group"
            )
        if self.format == "huggingface" and self.quantize != "none":
            raise InputError(
                f"--format=huggingface writes plain weights, and --quantize={self.quantize} packed ones: give "
                "--format=stablehlo, or no --quantize"
            )


COMMAND = Command(
    "export", "Export a checkpoint as programs that need jax and numpy alone, or as transformers reads it.", Flags
)


def main(parsed: Parsed[Flags]) -> int:
    """Load, export, tell."""
    flags = parsed.flags
    from recipes._runtime import compile_cache, log

    compile_cache()

    from jaxmodel.export import check_output, export, export_huggingface
    from jaxmodel.interop import stablehlo
    from jaxmodel.loading import load

    check_output(Path(flags.output))
    if stablehlo.is_export(Path(flags.checkpoint)):
        raise InputError(f"--checkpoint={flags.checkpoint} is an export: give the checkpoint that it was made from")
    loaded = load(flags.checkpoint, dtype=flags.dtype, log=log)
    log(f"exporting step {loaded.step} of {flags.checkpoint}, and running the export in a process of its own")
    common: Any = {"state": loaded.model_state, "merge": flags.merge, "info": loaded.info}
    if flags.format == "huggingface":
        result = export_huggingface(loaded.model, loaded.params, flags.output, tokenizer=loaded.tokenizer, **common)
    else:
        result = export(
            loaded.model,
            loaded.params,
            flags.output,
            quantize=flags.quantize,
            group=flags.group,
            fitted=loaded.fitted,
            step=loaded.step,
            batches=_heldout(loaded, flags.eval_batches, log) if flags.eval_batches else (),
            **common,
        )
    for line in _told(result):
        log(line)
    log(f"export: {flags.output}")
    follow = (
        f"predict --input={'new.csv --output=predicted.csv' if loaded.table else 'batch.npz --output=out.npz'}"
        if loaded.tokenizer is None
        else "generate --prompt='import '"
    )
    log(f"next: python -m recipes.{follow} --checkpoint={flags.output}")
    return 0


def _heldout(loaded: Any, limit: int, log: Callable[[str], None]) -> Iterable[Mapping[str, Any]]:
    """The held-out text that the checkpoint's training left alone."""
    if "data" not in loaded.info or loaded.info.get("task") != "language_model" or loaded.tokenizer is None:
        log("the checkpoint names no text: the export is not compared on any")
        return ()
    from jaxmodel.data.loader import sequential
    from jaxmodel.data.packing import Windows
    from jaxmodel.data.text import prepare_text

    known = config.fields(options.Data)
    said = {name: value for name, value in loaded.info["data"].items() if name in known}
    data = config.create(options.Data, said, "data.")
    text = prepare_text(data, loaded.tokenizer, log=log)
    return itertools.islice(sequential(Windows(text.heldout, data.length, partial=True), BATCH_SIZE), limit)


def _told(result: Mapping[str, Any]) -> Iterable[str]:
    """What a person wants to know of export.json."""
    mega = result["bytes"] / 1e6
    if result["format"] == "huggingface":
        yield f"weights: {mega:.2f} MB"
        if result["consumer"] is not None:
            yield f"largest deviation over largest value: {result['max_deviation']:.2g} ({result['consumer']})"
        return
    dense = result["float32_bytes"] / 1e6
    yield (
        f"weights: {mega:.2f} MB, {mega / dense:.3f} of the {dense:.2f} MB that they take as float32; "
        f"with its programs the export has {result['total_bytes'] / 1e6:.2f} MB"
    )
    yield f"deviation from the jitted model: {result['max_deviation']:g} ({result['consumer']})"
    if "perplexity" in result:
        yield (
            f"held-out perplexity: {result['perplexity']:.4f} (checkpoint: {result['checkpoint_perplexity']:.4f}); "
            f"KL {result['kl']:.2g} nats a token, the same likeliest token {100 * result['same_top1']:.2f}% of the time"
        )


if __name__ == "__main__":
    sys.exit(run(main, COMMAND))
