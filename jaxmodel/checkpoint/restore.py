"""From a step on disk to weights, or to a whole training state, on whatever mesh is asked for."""

from __future__ import annotations

import fnmatch
import itertools
import json
from collections.abc import Callable, Mapping
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
    step: Path, model: Model, partitioning: Partitioning | None = None, select: str = "*"
) -> tuple[Params, State]:
    """(params, model state) of a step, every weight of the type it was saved in.

    Args:
      step: the folder of the step; its files are not checked here (see `damage`).
      model: what the params are for.
      partitioning: where they go, whatever mesh they were saved on; by default, to the first device.
      select: a glob over paths ("stem/*"): nothing else is compared, read or returned, of the model state too.

    Raises:
      InputError: model and checkpoint have other weights (each is named), or the mesh does not divide them; or no
        weight is selected.
    """
    record = read_record(step)
    selected = weights.matching(model.layout, select)
    layout = _subtree(model.layout, lambda path: path in selected)
    state = _subtree(jax.eval_shape(model.start), lambda path: fnmatch.fnmatchcase(path, select))
    wanted = {"params": _abstract_params(step, record, model, layout, select), "model_state": state}
    _check(step, wanted, record, {path for path in record.arrays if _is_of(path, selected, select)})
    if partitioning is not None:
        partitioning.check(layout, wanted["params"])
        placed = partitioning.shardings(layout, wanted["params"])
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
        raise _misfit(step, [f"{path}: {there} in the checkpoint, {here} asked for" for path, there, here in pairs])
    return _read(step, record, jax.tree.map(lambda array: at(array, getattr(array, "sharding", None)), state))


def at(array: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array, to be placed as `sharding` says."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _subtree(tree: Any, keep: Callable[[str], bool]) -> Any:
    """A tree without the leaves whose path is not kept: dicts lose their names, other nodes have holes."""

    def pruned(tree: Any, holed: Any) -> Any:
        if not isinstance(tree, dict):
            return holed
        kept = {name: each for name, each in tree.items() if jax.tree.leaves(holed[name]) or not each}
        return {name: pruned(each, holed[name]) for name, each in kept.items()}

    def hole(path: Any, leaf: Any) -> Any:
        return leaf if keep(weights.path_name(path)) else None

    return pruned(tree, jax.tree_util.tree_map_with_path(hole, tree))


def _is_of(path: str, selected: set[str], select: str) -> bool:
    """Whether an array is of a selected weight (its field, where the weight has fields), or selected model state."""
    part, _, name = path.partition("/")
    if part == "params":
        return not selected.isdisjoint(itertools.accumulate(name.split("/"), "{}/{}".format))
    return part == "model_state" and fnmatch.fnmatchcase(name, select)


def _read(step: Path, record: Record, wanted: Any) -> Any:
    """The tree `wanted` of shapes, with arrays."""
    named = flatten(wanted)
    found: dict[str, jax.Array] = {}
    for item in sorted({item_of(path) for path in named}):
        stored = {record.stored[path]: path for path in named if item_of(path) == item}
        read = arrays.read(step, item, {name: named[path] for name, path in stored.items()})
        found |= {stored[name]: array for name, array in read.items()}
    return jax.tree.unflatten(jax.tree.structure(wanted), [found[path] for path in named])


def _abstract_params(step: Path, record: Record, model: Model, layout: Any, select: str) -> Params:
    """The selected params as they were saved, in the structure of `layout`, that part of the model's; as shapes."""
    dense = jax.eval_shape(model.init, jax.random.key(0))
    ours, theirs = (fnmatch.filter(paths, select) for paths in (describe_weights(model.layout, dense), record.weights))
    lines = [f"{path}: in the checkpoint only" for path in theirs if path not in ours]
    lines += [f"{path}: not in the checkpoint" for path in ours if path not in theirs]
    if lines:
        raise _misfit(step, lines, OTHER_WEIGHTS)
    params = weights.map_weights_with_path(lambda path, _: weights.abstract(record.weights[path]), layout)
    here, there = flatten(dense), flatten(jax.eval_shape(lambda tree: weights.densify(tree, layout), params))
    lines = [
        f"{path}: {list(there[path].shape)} in the checkpoint, {list(here[path].shape)} in the model"
        for path in there
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
