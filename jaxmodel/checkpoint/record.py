"""What a checkpoint says of itself: model.json, written and read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import jaxmodel
from jaxmodel import config as configs
from jaxmodel import weights
from jaxmodel.checkpoint import manifest
from jaxmodel.checkpoint.migrations import SCHEMA, migrate
from jaxmodel.errors import InputError
from jaxmodel.model import Model, opaque, written

RECORD = "model.json"


@dataclasses.dataclass(frozen=True)
class Record:
    """What model.json holds, brought to today's schema.

    Attributes:
      step: updates made; the data position too, since the batch of a step depends on seed and step alone.
      config: the model's config as `config.to_dict` gives it, or {"opaque": name} for a model made from code.
      weights: what `weights.describe` says of each weight, by its path in the params.
      arrays: "float32[2,16]" for every array of the training state, by its path in the state.
      stored: the path each array has on disk, by its path in the state.
      info: what the writer of the checkpoint had to add: data, optimizer, task.
      versions: of the schema, jaxmodel and jax that wrote it.
    """

    step: int
    config: dict[str, Any]
    weights: dict[str, Any]
    arrays: dict[str, str]
    stored: dict[str, str]
    info: dict[str, Any]
    versions: dict[str, Any]


def flatten(state: Any) -> dict[str, Any]:
    """The arrays of a state by path: "params/head", "opt_state/mean/head", "step"; holes are left out."""
    found = jax.tree_util.tree_flatten_with_path(state)[0]
    named = {weights.path_name(path): array for path, array in found}
    assert len(named) == len(found), "two arrays share a path: a key of a dict contains a slash"
    return named


def item_of(path: str) -> str:
    """The part of a checkpoint that an array belongs to."""
    return "weights" if path.startswith(("params/", "model_state/")) else "training"


def signature(array: Any) -> str:
    """An array's dtype and shape in one word: "float32[2,16]"."""
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def describe_weights(layout: Any, params: Any) -> dict[str, Any]:
    """What `weights.describe` says of each weight, by its path in the layout."""
    found: dict[str, Any] = {}
    weights.map_weights_with_path(
        lambda path, _, weight: found.update({path: weights.describe(weight)}), layout, params
    )
    return found


def write_record(step: int, state: Any, model: Model, info: Mapping[str, Any]) -> str:
    """The text of model.json; raises TypeError when `info` is not JSON-able."""
    data = {
        "versions": {"schema": SCHEMA, "jaxmodel": jaxmodel.__version__, "jax": jax.__version__},
        "step": step,
        "config": written(model.config),
        "info": dict(info),
        "weights": describe_weights(model.layout, state.params),
        "arrays": {path: signature(array) for path, array in flatten(state).items()},
    }
    return json.dumps(data, indent=1)


def read_record(step: Path) -> Record:
    """What a step's model.json says, in today's schema.

    Raises:
      InputError: there is no model.json, or it is of a schema newer than this version knows.
    """
    try:
        data = json.loads((step / RECORD).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{step / RECORD} cannot be read: {error}") from error
    versions = data["versions"]
    if versions["schema"] > SCHEMA:
        raise InputError(
            f"{step} was written by jaxmodel {versions['jaxmodel']} in schema {versions['schema']}; "
            f"jaxmodel {jaxmodel.__version__} reads up to {SCHEMA}: upgrade jaxmodel"
        )
    data, today = migrate(data, versions["schema"])
    prefix = "params/"
    return Record(
        step=data["step"],
        config=data["config"],
        weights={today(prefix + path).removeprefix(prefix): each for path, each in data["weights"].items()},
        arrays={today(path): each for path, each in data["arrays"].items()},
        stored={today(path): path for path in data["arrays"]},
        info=data["info"],
        versions=versions,
    )


def info_of(workdir: str | Path, step: int) -> dict[str, Any]:
    """What was added to a step of a run; {} where there is no such step."""
    folder = manifest.steps_folder(workdir) / str(step)
    return read_record(folder).info if folder.exists() else {}


def chosen(workdir: str | Path) -> dict[str, Any] | None:
    """What is written of the step that a run ended with, its `step` among it; None for a run that did not."""
    return manifest.chosen(manifest.steps_folder(workdir))


def check_config(workdir: str | Path, config: Any) -> None:
    """InputError when a run's newest step is of another model than `config`, showing where they differ.

    How a model runs (`execution`) may differ. A model made from code alone cannot be compared.
    """
    folder = manifest.steps_folder(workdir)
    if found := manifest.steps(folder):
        compare_config(read_record(folder / str(found[-1])), config, workdir)


def compare_config(record: Record, config: Any, workdir: str | Path) -> None:
    """As `check_config`, with a record at hand."""
    if "opaque" in record.config or opaque(config):
        return
    found = configs.difference(configs.from_dict(record.config), config, ("in the checkpoint", "asked for"), "model")
    lines = [line for line in found if ".execution." not in line]
    if lines:
        raise InputError(
            f"{workdir} holds another model ({'; '.join(lines)}): ask for that model to go on, "
            f"or name another --workdir (with --init_from={workdir} to start from these weights)"
        )
