"""StableHLO through `jax.export`: a model's programs, with its weights beside them, in one directory.

    forward.stablehlo    (weights, batch) -> values: `tokens` and `mask`, any batch size and length
    packed.stablehlo     the same for packed documents: `tokens`, `segments` and `positions`
    prefill.stablehlo    (weights, batch, cache) -> (values, cache)
    decode.stablehlo     the same for one token a row
    weights.safetensors  {"params/…": array, "state/…": batch statistics}, packed as they are in memory
    model.json           what the programs take and give, the empty cache, the config, the types of the weights,
                         and the SHA-256 of every other file
    tokenizer.json       if the model has one (of tables: table.json)

Every program is lowered for all `PLATFORMS` at once and takes and gives flat dicts; `interop.loader` runs them. A
model without a cache has `forward` alone, and so has one whose cache waits for a source.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from safetensors import SafetensorError
from safetensors.numpy import save_file

import jaxmodel
from jaxmodel import config as configs
from jaxmodel import weights
from jaxmodel.checkpoint.migrations import stem_and_head
from jaxmodel.data.fitted import Fitted, texts_of
from jaxmodel.errors import InputError
from jaxmodel.interop import loader
from jaxmodel.interop.signature import (
    Array,
    Arrays,
    Cache,
    Inputs,
    cache_of,
    flat,
    inputs_of,
    limits_of,
    of_config,
    unflat,
)
from jaxmodel.model import Batch, Model, Opaque, Outputs, Params, State, written
from jaxmodel.models.inputs import check_batch
from jaxmodel.nn.stack import unstack, unstack_layout

PLATFORMS = ("cpu", "cuda", "tpu")
SCHEMA = 2
ABOUT, WEIGHTS, SUFFIX = "model.json", "weights.safetensors", ".stablehlo"
CACHED = ("prefill", "decode")
PACKED = ("segments", "positions")
MASKS = {"mask": "tokens", "decoder_mask": "decoder_tokens"}  # which may be left out, and what they are of


def values_of(out: Outputs) -> dict[str, jax.Array]:
    """The values that an export gives: all but `hidden` where that only feeds the head."""
    return {name: value for name, value in out.values.items() if name != "hidden" or "logits" not in out.values}


# Writing


def write(
    directory: Path,
    model: Model,
    params: Params,
    state: State = None,
    *,
    inputs: Inputs | None = None,
    fitted: Fitted | None = None,
    step: int = 0,
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write a model into a directory that is there, and empty.

    Args:
      directory: for the files named above.
      model: not bound to a mesh.
      params: weights of any type; unstacked here, if they are not.
      state: batch statistics, for models that have them.
      inputs: what a batch may hold; by default the config says so.
      fitted: tokenizer or table, goes along.
      step: updates made.
      info: what the checkpoint has to add.

    Raises:
      InputError: neither config nor caller say what the model reads, or its statistics are missing.
    """
    inputs = inputs_of(model) if inputs is None else {name: Array(*each) for name, each in inputs.items()}
    if jax.tree.leaves(jax.eval_shape(model.start)) and not state:
        raise InputError("this model keeps batch statistics: pass state=model.start(), or a checkpoint's")
    cache = cache_of(model)
    tree = {"params": unstack(params, cache.like), "state": state or {}}
    limits, least = limits_of(model), dict(of_config(model.config, "least") or {})
    arrays = {name: np.asarray(array) for name, array in flat(tree).items()}
    try:
        save_file(arrays, directory / WEIGHTS)
    except SafetensorError as error:  # its way to say that the disk is full
        raise InputError(f"{directory}: cannot write the weights ({error}): make room, or write elsewhere") from error
    for name, text in texts_of(fitted).items():
        (directory / name).write_text(text, encoding="utf-8")
    programs = {}
    for name, function, takes in _programs(model, tree, inputs, cache):
        exported = _export(function, tree, takes, cache.arrays if name in CACHED else {}, limits, least)
        (directory / (name + SUFFIX)).write_bytes(exported.serialize())
        programs[name] = {"inputs": _written(takes), "outputs": _written(_given(exported, name in CACHED))}
    about = {
        "schema": SCHEMA,
        "files": {file.name: _digest(file) for file in sorted(directory.iterdir())},
        "versions": {"jaxmodel": jaxmodel.__version__, "jax": jax.__version__},
        "platforms": PLATFORMS,
        "programs": programs,
        "cache": {name: each | {"fill": cache.fills[name]} for name, each in _written(cache.arrays).items()},
        "limits": limits,
        "least": least,
        "config": written(model.config),
        "layout": unstack_layout(model.layout, cache.like),
        "weights": weights.describe(tree),
        "step": step,
        "info": dict(info or {}),
    }
    (directory / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
    # Readable to whom the rest is: safetensors lets nobody else read what it writes.
    shutil.copymode(directory / ABOUT, directory / WEIGHTS)


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _programs(model: Model, tree: Any, inputs: Arrays, cache: Cache) -> list[tuple[str, Callable[..., Any], Arrays]]:
    """(name, function of flat dicts, what a batch holds) of every program that this model has."""
    like = jax.eval_shape(lambda: tree)

    def forward(arrays: Mapping[str, jax.Array], batch: Batch) -> Any:
        held = unflat(arrays, like)
        return values_of(model.apply(held["params"], batch, held["state"] or None))

    def step(arrays: Mapping[str, jax.Array], batch: Batch, before: Mapping[str, jax.Array]) -> Any:
        held = unflat(arrays, like)
        out = model.apply(held["params"], batch, unflat(flat(held["state"]) | dict(before), cache.like))
        after = flat(out.state)
        return values_of(out), {name: after[name] for name in before}

    plain = {name: each for name, each in inputs.items() if name not in PACKED}
    found: list[tuple[str, Callable[..., Any], Arrays]] = [("forward", forward, plain)]
    if "segments" in inputs:
        found.append(("packed", forward, {name: each for name, each in inputs.items() if name != "mask"}))
    if cache.arrays:
        one = {
            n: Array(a.dtype, tuple(1 if dim == "length" else dim for dim in a.shape))
            for n, a in plain.items()
            if "length" in a.shape  # images are read with the prompt
        }
        found += [("prefill", step, plain), ("decode", step, one)]
    return found


def _export(
    function: Callable[..., Any],
    tree: Any,
    takes: Arrays,
    cache: Arrays,
    limits: Mapping[str, int],
    least: Mapping[str, int],
) -> jax_export.Exported:
    """One program, lowered for every platform, its free dims within their limits."""
    free = {dim for array in (*takes.values(), *cache.values()) for dim in array.shape}
    bounds = [f"{dim} <= {limit}" for dim, limit in limits.items() if dim in free]
    bounds += [f"{dim} >= {limit}" for dim, limit in least.items() if dim in free]
    if {"length", "capacity"} <= free:
        bounds.append("length <= capacity")
    scope = jax_export.SymbolicScope(bounds)

    def symbolic(arrays: Arrays) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = {
            name: jax_export.symbolic_shape(", ".join(map(str, array.shape)), scope=scope)
            for name, array in arrays.items()
        }
        return {name: jax.ShapeDtypeStruct(shapes[name], array.dtype) for name, array in arrays.items()}

    args = [jax.eval_shape(lambda: flat(tree)), symbolic(takes), *([symbolic(cache)] if cache else [])]
    return jax_export.export(jax.jit(function), platforms=PLATFORMS)(*args)


def _given(exported: jax_export.Exported, cached: bool) -> Arrays:
    """The values that a program gives, without the cache."""
    given = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    values = given[0] if cached else given
    return {name: Array(each.dtype.name, tuple(each.shape)) for name, each in values.items()}


def _written(arrays: Arrays) -> dict[str, dict[str, Any]]:
    return {
        name: {"dtype": array.dtype, "shape": [d if isinstance(d, int) else str(d) for d in array.shape]}
        for name, array in arrays.items()
    }


# Reading


class Export(NamedTuple):
    """What a directory holds: `model.apply` calls the programs, and `params` and `state` are what it takes."""

    model: Model
    params: Params
    state: State
    about: Mapping[str, Any]


def is_export(directory: Path) -> bool:
    """Whether a directory is one that `write` filled."""
    return (directory / ABOUT).is_file() and (directory / f"forward{SUFFIX}").is_file()


def read_about(directory: Path) -> dict[str, Any]:
    """What an export's model.json says; InputError where it is damaged or of a newer version."""
    try:
        about = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
        schema, _ = about["schema"], about["files"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{directory} is a damaged export: {ABOUT}: {error}; export again") from error
    if schema > SCHEMA:
        raise InputError(f"{directory} was exported by jaxmodel {about['versions']['jaxmodel']}: upgrade to that")
    return about if schema > 1 else about | {"config": stem_and_head(about["config"])}


def read(directory: Path) -> Export:
    """An export as a model: it evaluates, predicts and generates like the one it was made from.

    Its params are unstacked, its state is a flat dict, and `apply` gives what the programs give (`logits`, no
    `hidden`). It cannot be trained or initialised.

    Raises:
      InputError: a file is missing or damaged, or was written by a newer version.
    """
    about = read_about(directory)
    for name, digest in about["files"].items():
        if not (directory / name).is_file() or _digest(directory / name) != digest:
            raise InputError(f"{directory} is a damaged export: {name} is not as it was written; export again")
    arrays, programs, cache = loader.load(directory)
    tree = unflat(arrays, weights.abstract(about["weights"]))
    state = flat(tree["state"])
    return Export(_model(about, programs, cache, state), tree["params"], state, about)


def _model(
    about: Mapping[str, Any],
    programs: Mapping[str, Callable[..., Any]],
    cache: Callable[..., dict[str, jax.Array]],
    statistics: dict[str, jax.Array],
) -> Model:
    """The programs of an export behind the usual functions."""
    limits, least = about["limits"], about.get("least", {})
    inputs = {
        name: (each["dtype"], each["shape"])
        for program in ("packed", "forward")
        if program in programs
        for name, each in about["programs"][program]["inputs"].items()
    }
    config = about["config"]
    config = Opaque(config["opaque"]) if "opaque" in config else configs.from_dict(config)

    def apply(
        params: Params, batch: Batch, state: State = None, *, key: jax.Array | None = None, train: bool = False
    ) -> Outputs:
        del key
        if train:
            raise InputError("an export runs, but does not train: train the checkpoint it was made from")
        state = state or {}
        if not statistics.keys() <= state.keys():
            raise InputError("this model keeps batch statistics: pass state=model.start(), or the export's own")
        kept = {name: state[name] for name in statistics}
        before = {name: state[name] for name in about["cache"] if name in state}
        check_batch(batch, inputs, needed=[name for name in inputs if name not in (*MASKS, *PACKED)])
        name = _choose(about["programs"], batch, bool(before))
        takes = _complete(batch, about["programs"][name]["inputs"], limits, least)
        held = flat({"params": params, "state": kept})
        if not before:
            return Outputs(programs[name](held, takes), kept)
        values, after = programs[name](held, takes, before)
        return Outputs(values, kept | after)

    def start(batch_size: int | None = None, length: int | None = None) -> State:
        if batch_size is None or length is None:
            return statistics
        if about["cache"]:
            _check_limit("capacity", length, limits)
        return statistics | cache(batch=batch_size, capacity=length)

    def init(key: jax.Array) -> Params:
        raise InputError("an export holds its weights and cannot make new ones: start from the checkpoint")

    return Model(init, apply, start, _tuples(about["layout"]), config)


def _choose(programs: Mapping[str, Any], batch: Batch, cached: bool) -> str:
    """The program for a batch."""
    if any(name in batch for name in PACKED):
        if cached or "packed" not in programs:
            raise InputError("segments and positions go with forward alone: give one sequence a row")
        return "packed"
    if not cached:
        return "forward"
    one = all(batch[name].shape[1] == 1 for name in programs["decode"]["inputs"] if name in batch)
    return "decode" if one else "prefill"


def _complete(
    batch: Batch, takes: Mapping[str, Any], limits: Mapping[str, int], least: Mapping[str, int]
) -> dict[str, jax.Array]:
    """The arrays that a program takes: a mask that is not given is true, and packed padding is segment 0."""
    found = {}
    for name, each in takes.items():
        if name in batch:
            found[name] = jnp.asarray(batch[name], each["dtype"])
        elif name not in MASKS:
            raise InputError(f"the batch lacks {name!r}: this export takes {', '.join(takes)}")
    for name, array in found.items():
        for dim, size in zip(takes[name]["shape"], array.shape, strict=True):
            _check_limit(dim, size, limits)
            if size < least.get(dim, 0):
                raise InputError(f"{dim} {size} is less than the {least[dim]} that this export takes")
    for mask in MASKS.keys() & takes.keys() - found.keys():
        alike = next(name for name in found if takes[name]["shape"] == takes[mask]["shape"])
        found[mask] = jnp.ones(found[alike].shape, bool)
    if "segments" in takes and "mask" in batch:
        found["segments"] = jnp.where(batch["mask"], found["segments"], 0)
    return found


def _check_limit(dim: str, size: int, limits: Mapping[str, int]) -> None:
    if size > limits.get(dim, size):
        raise InputError(f"a {dim} of {size} is more than the {limits[dim]} that this export takes")


def _tuples(layout: Any) -> Any:
    """A layout as JSON has it, with tuples for lists."""
    if isinstance(layout, dict):
        return {name: _tuples(each) for name, each in layout.items()}
    return tuple(map(_tuples, layout)) if isinstance(layout, list) else layout
