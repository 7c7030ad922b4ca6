"""From a step on disk to weights, or to a whole training state, on whatever mesh is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxmodel import weights
from jaxmodel.checkpoint import arrays
from jaxmodel.checkpoint.record import Record, describe_weights, flatten, item_of, read_record, signature
from jaxmodel.errors import InputError
from jaxmodel.model import Model, Params, State
from jaxmodel.sharding import Partitioning

SHOWN = 8  # differences named in one message
OTHER_WEIGHTS = "ask for a model whose weights have the shapes they were saved in, or start from fresh ones"
OTHER_STATE = "go on with the settings it was saved with, or start in another workdir"


def restore_weights(
    step: Path, model: Model, partitioning: Partitioning | None = None
) -> tuple[Params, State]:
    """(params, model state) of a step, every weight of the type it was saved in.

    Args:
      step: the folder of the step; its files are not checked here (see `damage`).
      model: what the params are for.
      partitioning: where they go, whatever mesh they were saved on; by default, to the first device.

    Raises:
      InputError: model and checkpoint have other weights (each is named), or the mesh does not divide them.
    """
    record = read_record(step)
    wanted = {"params": _abstract_params(step, record, model), "model_state": jax.eval_shape(model.start)}
    _check(step, wanted, record, {path for path in record.arrays if item_of(path) == "weights"})
    if partitioning is not None:
        partitioning.check(model.layout, wanted["params"])
        placed = partitioning.shardings(model.layout, wanted["params"])
        everywhere = jax.tree.map(lambda _: partitioning.replicated(), wanted["model_state"])
        wanted = jax.tree.map(at, wanted, {"params": placed, "model_state": everywhere})
    found = _read(step, record, wanted)
    return found["params"], found["model_state"]


def restore_state(step: Path, state: Any, model: Model) -> Any:
    """A training state like `state`, with the values of a step.

    Args:
      step: the folder of the step; its files are not checked here (see `damage`).
      state: arrays, or shapes, in the shardings that are wanted; the values do not matter.
      model: what is trained.

    Raises:
      InputError: the checkpoint has other arrays or types of weights than `state`; each is named.
    """
    record = read_record(step)
    _check(step, state, record, set(record.arrays))
    described = json.loads(json.dumps(describe_weights(model.layout, state.params)))
    types = [path for path, each in described.items() if each != record.weights[path]]
    if types:
        pairs = ((path, _settings(record.weights[path]), _settings(described[path])) for path in types)
        raise _misfit(
            step, [f"{path}: {there} in the checkpoint, {here} asked for" for path, there, here in pairs]
        )
    return _read(step, record, jax.tree.map(lambda array: at(array, getattr(array, "sharding", None)), state))


def at(array: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array, to be placed as `sharding` says."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _read(step: Path, record: Record, wanted: Any) -> Any:
    """The tree `wanted` of shapes, with arrays."""
    named = flatten(wanted)
    found: dict[str, jax.Array] = {}
    for item in sorted({item_of(path) for path in named}):
        stored = {record.stored[path]: path for path in named if item_of(path) == item}
        read = arrays.read(step, item, {name: named[path] for name, path in stored.items()})
        found |= {stored[name]: array for name, array in read.items()}
    return jax.tree.unflatten(jax.tree.structure(wanted), [found[path] for path in named])


def _abstract_params(step: Path, record: Record, model: Model) -> Params:
    """The params as they were saved, in the structure of the model's layout; as shapes."""
    dense = jax.eval_shape(model.init, jax.random.key(0))
    shapes = describe_weights(model.layout, dense)
    lines = [f"{path}: in the checkpoint only" for path in record.weights if path not in shapes]
    lines += [f"{path}: not in the checkpoint" for path in shapes if path not in record.weights]
    if lines:
        raise _misfit(step, lines, OTHER_WEIGHTS)
    params = weights.map_weights_with_path(
        lambda path, _: weights.abstract(record.weights[path]), model.layout
    )
    here, there = (
        flatten(dense),
        flatten(jax.eval_shape(lambda tree: weights.densify(tree, model.layout), params)),
    )
    lines = [
        f"{path}: {list(there[path].shape)} in the checkpoint, {list(here[path].shape)} in the model"
        for path in here
        if here[path].shape != there[path].shape
    ]
    if lines:
        raise _misfit(step, lines, OTHER_WEIGHTS)
    return params


def _check(step: Path, asked: Any, record: Record, selected: set[str]) -> None:
    """InputError where the arrays asked for and those selected of the checkpoint differ."""
    here = {path: signature(array) for path, array in flatten(asked).items()}
    there = {path: record.arrays[path] for path in sorted(selected)}
    lines = [f"{path}: in the checkpoint only" for path in there if path not in here]
    lines += [f"{path}: not in the checkpoint" for path in here if path not in there]
    both = [path for path in here if path in there and here[path] != there[path]]
    lines += [f"{path}: {there[path]} in the checkpoint, {here[path]} asked for" for path in both]
    if lines:
        raise _misfit(step, lines)


def _misfit(step: Path, lines: list[str], remedy: str = OTHER_STATE) -> InputError:
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return InputError(f"{step} does not fit what is asked for ({'; '.join(lines[:SHOWN])}{more}): {remedy}")


def _settings(description: Mapping[str, Any]) -> str:
    """A weight's type and settings, those of what it is wrapped around too: "LowRank(scale=2.0, base=…)"."""
    if "leaf" not in description:
        return "an array"
    inner = {name: each for name, each in description["fields"].items() if each and "leaf" in each}
    inside = [f"{name}={value}" for name, value in description["static"].items()]
    inside += [f"{name}={_settings(each)}" for name, each in inner.items()]
    return f"{description['leaf']}({', '.join(inside)})"
