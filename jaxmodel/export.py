"""Export: a checkpoint becomes a directory of someone else's format, which its real consumer has run."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodel import metrics as pairs
from jaxmodel import weights
from jaxmodel.checkpoint.manifest import Log, log_to_stderr
from jaxmodel.data.fitted import Fitted
from jaxmodel.data.tokenizer import Tokenizer
from jaxmodel.data.tokenizer_files import special_ids
from jaxmodel.errors import InputError
from jaxmodel.interop import stablehlo
from jaxmodel.interop.huggingface import directory as huggingface
from jaxmodel.interop.proof import Subject, Unproved, prove, prove_transformers
from jaxmodel.interop.signature import Inputs
from jaxmodel.metrics import Metrics
from jaxmodel.model import Batch, Model, Params, State
from jaxmodel.weights import transforms

RESULT = "export.json"
KINDS = ("none", *transforms.KINDS)


def export(
    model: Model,
    params: Params,
    output: Path | str,
    *,
    state: State = None,
    quantize: str = "none",
    group: int | None = None,
    merge: bool = False,
    fitted: Fitted | None = None,
    step: int = 0,
    info: Mapping[str, Any] | None = None,
    inputs: Inputs | None = None,
    batches: Iterable[Mapping[str, np.ndarray]] = (),
) -> dict[str, Any]:
    """Write a model as StableHLO (see `interop.stablehlo`), have a separate process run it, and measure it.

    All of it happens beside `output`, which appears at the end: a failed export leaves nothing.

    Args:
      model: not bound to a mesh.
      params: weights of any type.
      output: a new or empty directory, or an earlier export, which is replaced.
      state: batch statistics, for models that have them.
      quantize: "int8" or "int4"; "none" leaves the weights as they are.
      group: inputs that share a scale.
      merge: make adapters part of their weights first; otherwise they are exported beside them.
      fitted: tokenizer or table, goes along, as do
      step: updates made, and
      info: what the checkpoint has to add: with them the export evaluates on what its training held out.
      inputs: what a batch may hold, for a model whose config does not say.
      batches: held-out `tokens`, `targets` and `weights` (and `segments` and `positions`, if packed), over which
        a language model's export is compared with the model it was made from.

    Returns:
      What is in export.json: `format`, `quantize`, `bytes` of the weights, `float32_bytes` that the same weights take
      dense, `total_bytes` of all files, `consumer`, `max_deviation`; with batches also `kl` (of the export from the
      model, nats a token), `same_top1` (how often both find the same token likeliest), and the `perplexity` of the
      export beside `checkpoint_perplexity`.

    Raises:
      InputError: `output` holds something else, weights cannot be quantized (again), or nobody says what the model
        reads.
      RuntimeError: the process that ran the export did not get, bit for bit, what the jitted model gives.
    """
    made = transform(params, model.layout, quantize=quantize, group=group, merge=merge)
    with replacing(Path(output)) as directory:
        about = {"inputs": inputs, "fitted": fitted, "step": step, "info": info}
        stablehlo.write(directory, model, made, state, **about)
        (proof,) = prove(Subject(directory, model, made, state))
        result = {
            "format": "stablehlo",
            "quantize": kind_of(made),
            "bytes": (directory / stablehlo.WEIGHTS).stat().st_size,
            "float32_bytes": 4 * weights.num_params(params, model.layout),
            "total_bytes": sum(file.stat().st_size for file in directory.iterdir()),
            "consumer": proof.consumer,
            "max_deviation": proof.max_deviation,
        }
        exported = stablehlo.read(directory)
        result |= compare((model, params, state), (exported.model, exported.params, exported.state), batches)
        (directory / RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def export_huggingface(
    model: Model,
    params: Params,
    output: Path | str,
    *,
    state: State = None,
    merge: bool = False,
    tokenizer: Tokenizer | None = None,
    info: Mapping[str, Any] | None = None,
    log: Log = log_to_stderr,
) -> dict[str, Any]:
    """Write a model as transformers reads it, and have transformers run it where it is installed.

    As with `export`, a failure leaves nothing, and `output` is new, empty, or an earlier export.

    Args:
      model: not bound to a mesh, and of a family that transformers has.
      params: weights, not quantized.
      output: a directory.
      state: batch statistics.
      merge: make adapters part of their weights; transformers knows none.
      tokenizer: goes along; config.json gets the ids of what pads, begins and ends.
      info: of the checkpoint, which may hold the config.json that it came with.
      log: where it is said that nothing was proved, and what transformers warns of.

    Returns:
      What is in export.json: `format`, `quantize`, `bytes` of the weights, `consumer` and `max_deviation` (relative to
      the largest value), both None where transformers or torch is not installed.

    Raises:
      InputError: `output` holds something else, or no family of transformers is this model.
      RuntimeError: transformers cannot run it, or computes something else.
    """
    made = transform(params, model.layout, merge=merge)
    with replacing(Path(output)) as directory:
        paths = huggingface.write(directory, model, made, tokenizer, info, state)
        if tokenizer is not None:
            _say_ids(directory / huggingface.CONFIG, tokenizer)
        result = {
            "format": "huggingface",
            "quantize": "none",
            "bytes": sum(path.stat().st_size for path in paths if path.suffix == ".safetensors"),
            "consumer": None,
            "max_deviation": None,
        }
        try:
            proof, said = prove_transformers(Subject(directory, model, made, state))
        except Unproved as error:
            log(f"not proved, for lack of its consumer ({error}): pip install torch transformers, and export again")
        else:
            result |= {"consumer": proof.consumer, "max_deviation": proof.max_deviation}
            if said.strip():
                log(said.strip())
        (directory / RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _say_ids(path: Path, tokenizer: Tokenizer) -> None:
    """Add the tokenizer's ids to a config.json that lacks them: one that says its own may name several that end.

    An id beyond the embedding table, of a token that the model never knew, would keep transformers from loading it.
    """
    said = json.loads(path.read_text(encoding="utf-8"))
    size = said.get("vocab_size", float("inf"))
    ids = special_ids(tokenizer).items()
    missing = {name: i for name, i in ids if said.get(name) is None and i < size}
    if missing:
        path.write_text(json.dumps(said | missing, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def transform(
    params: Params, layout: Any, *, quantize: str = "none", group: int | None = None, merge: bool = False
) -> Params:
    """Params as they are to be exported: adapters merged first, then quantized; InputError where that cannot be."""
    if quantize not in KINDS:
        raise InputError(f"quantize={quantize}: choose one of {', '.join(KINDS)}")
    if group is not None and quantize == "none":
        raise InputError(f"group={group} says how to quantize: give quantize=int8 or int4 too, or no group")
    made = weights.merge(params, layout) if merge else params
    return made if quantize == "none" else weights.quantize(made, layout, quantize, group=group)


def kind_of(params: Params) -> str:
    """ "int8" or "int4" where weights are quantized (the fewest bits of any), else "none"."""
    found: set[int] = set()

    def look(node: Any) -> bool:
        if isinstance(node, weights.Quantized):
            found.add(node.bits)
        return isinstance(node, weights.Quantized)

    jax.tree.leaves(params, is_leaf=look)
    return f"int{min(found)}" if found else "none"


# One model, its weights and its batch statistics.
Held = tuple[Model, Params, State]


def compare(model: Held, exported: Held, batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """How an exported language model differs from its model on held-out batches; {} where there are none."""
    measure = _measure(model[0].apply, exported[0].apply)
    found = [measure(model[1:], exported[1:], dict(batch)) for batch in batches]
    if not found:
        return {}
    sums = functools.reduce(pairs.add, map(pairs.to_host, found))
    theirs = pairs.finish({"perplexity": sums.pop("checkpoint")})
    return pairs.finish(sums) | {"checkpoint_perplexity": theirs["perplexity"]}


def _measure(model: Any, exported: Any) -> Callable[..., Metrics]:
    """(params and state of both, batch) -> sums over the batch's targets; logits are [B,T,V]."""

    def measure(ours: tuple[Params, State], theirs: tuple[Params, State], batch: Batch) -> Metrics:
        read = {name: value for name, value in batch.items() if name not in ("targets", "weights")}
        p = jax.nn.log_softmax(model(ours[0], read, ours[1] or None)["logits"])
        q = jax.nn.log_softmax(exported(theirs[0], read, theirs[1] or None)["logits"])
        weight = batch["weights"]
        total = jnp.sum(weight)

        def mean(values: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jnp.sum(jnp.where(weight > 0, values, 0) * weight), total

        def nats(logs: jax.Array) -> jax.Array:
            return -jnp.take_along_axis(logs, batch["targets"][..., None], axis=-1)[..., 0]

        return {
            "kl": mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1)),
            "same_top1": mean(jnp.argmax(p, axis=-1) == jnp.argmax(q, axis=-1)),
            "perplexity": mean(nats(q)),
            "checkpoint": mean(nats(p)),
        }

    return jax.jit(measure)


def check_output(output: Path) -> None:
    """InputError if a directory cannot become an export: it holds something else."""
    if output.is_dir():
        if any(output.iterdir()) and not (output / RESULT).is_file():
            raise InputError(f"{output} is not empty and holds no export: name another directory, or empty it")
    elif output.exists():
        raise InputError(f"{output} is a file: name a directory")


@contextlib.contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """An empty directory that takes the place of `output` at the end, unless there was an error."""
    check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as place:
        new, old = Path(place, "new"), Path(place, "old")
        new.mkdir()
        yield new
        if output.exists():
            os.replace(output, old)
        os.replace(new, output)
