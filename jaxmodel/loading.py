"""Anything that holds a model -> the model, its weights, and what else was there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from jaxmodel import checkpoint, weights
from jaxmodel import config as configs
from jaxmodel.checkpoint.manifest import MANIFEST, Log, damage, damage_of, log_to_stderr, standing, steps
from jaxmodel.checkpoint.record import RECORD
from jaxmodel.data.fitted import Fitted, read_fitted
from jaxmodel.data.table import Table
from jaxmodel.data.tokenizer import Tokenizer
from jaxmodel.errors import InputError
from jaxmodel.interop import stablehlo
from jaxmodel.model import Model, Params, State, sharded
from jaxmodel.models import pairs as _pairs  # noqa: F401 (they register the configs a checkpoint may name)
from jaxmodel.models import plain as _plain  # noqa: F401
from jaxmodel.options import DTYPES
from jaxmodel.sharding import RULES, Partitioning, Rules


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What was found at a path.

    Attributes:
      model: built again from its config, for the mesh that was asked for.
      params: of the types they were saved in; where a part was selected, that part alone.
      model_state: batch statistics, of that part too; {} for most models.
      fitted: what was fitted to its data, a tokenizer or a table; None where there is neither.
      step: updates made.
      info: what the writer of the checkpoint had to add.
    """

    model: Model
    params: Params
    model_state: State
    fitted: Fitted | None
    step: int
    info: Mapping[str, Any]

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of a model of text."""
        return self.fitted if isinstance(self.fitted, Tokenizer) else None

    @property
    def table(self) -> Table | None:
        """What turns a csv into arrays, and answers into words, for a model of tables or of images from one."""
        return self.fitted if isinstance(self.fitted, Table) else None


class Request(NamedTuple):
    """How it is to be loaded; the arguments of `load`."""

    mesh: Mesh | None
    rules: Rules
    model: Model | None
    log: Log
    select: str = "*"
    dtype: str | None = None


class Reader(NamedTuple):
    """One kind of thing that holds a model.

    Attributes:
      what: how to know it, for the message when nothing is found.
      recognise: whether a path is of this kind.
      read: loads it.
      config: the model's config as it is written there, the weights unread.
    """

    what: str
    recognise: Callable[[Path], bool]
    read: Callable[[Path, Request], Loaded]
    config: Callable[[Path], dict[str, Any]]


def load(
    path: str | Path,
    *,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    model: Model | None = None,
    select: str = "*",
    dtype: str | None = None,
    log: Log = log_to_stderr,
) -> Loaded:
    """Load whatever holds a model: a workdir, its checkpoints folder, one step, an export, or a Hugging Face directory.

    Nothing else need be known. Of a run, the step is taken that it ended with as its best; of any other, the newest of
    which every file is as it was written.

    Args:
      path: where it is.
      mesh: where the weights go, whatever mesh they were saved on; by default, to one device.
      rules: logical dims to mesh axes.
      model: to use instead of the one that a checkpoint describes: with the same weights, but more dropout, say; or
        where it describes none, for it was made from code alone (`from_function`, `from_linen`, `from_nnx`).
      select: a glob over the paths of weights and model state ("stem/*"): nothing else is read, or compared with the
        model. A part of large files is read, so they are held to their sizes, and not to their checksums.
      dtype: what plain weights are cast to ("bfloat16"); None: as they are.
      log: is told of steps that were passed over, and why.

    Raises:
      InputError: nothing is there, what is there is damaged, the model is needed or has other weights, or no weight is
        selected.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype={dtype}: choose one of {', '.join(DTYPES)}, or leave it out")
    return _reader(Path(path)).read(Path(path), Request(mesh, rules, model, log, select, dtype))


def config_of(path: str | Path) -> Any:
    """The config of the model that a path holds, without reading its weights; InputError as `load`."""
    path = Path(path)
    return _described(path, _reader(path).config(path))


def _reader(path: Path) -> Reader:
    """The reader of what is there; InputError where nothing holds a model."""
    for reader in READERS:
        if reader.recognise(path):
            return reader
    if not path.exists():
        raise InputError(f"{path}: there is no such folder")
    names = sorted(each.name + "/" * each.is_dir() for each in path.iterdir()) if path.is_dir() else ["a file"]
    there = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    kinds = "; ".join(reader.what for reader in READERS)
    raise InputError(f"{path} holds no model: looked for {kinds}; found {there or 'nothing'}")


def _described(path: Path, config: dict[str, Any]) -> Any:
    """The config from what was written; InputError where that is nothing but a name."""
    if "opaque" in config:
        raise InputError(
            f"{path}: the model ({config['opaque']}) was made from code, which no checkpoint "
            "holds: make it again and pass it, load(path, model=…)"
        )
    return configs.from_dict(config)


def _read_run(path: Path, request: Request) -> Loaded:
    folder = _steps_folder(path)
    step = standing(folder, request.log, contents=request.select == "*")
    if step is None:
        raise InputError(f"{path} holds no committed step: looked for {folder / 'STEP' / MANIFEST}")
    return _read_checked(folder / str(step), request)


def _run_config(path: Path) -> dict[str, Any]:
    """That of the newest step whose files have their sizes: every byte is looked at when it is loaded."""
    folder = _steps_folder(path)
    candidates = (folder / str(step) for step in reversed(steps(folder)))
    found = next((each for each in candidates if damage(each, contents=False) is None), None)
    if found is None:
        raise InputError(f"{path} holds no whole step: looked for {folder / 'STEP' / MANIFEST}")
    return checkpoint.read_record(found).config


def _steps_folder(run: Path) -> Path:
    return run / "checkpoints" if (run / "checkpoints").is_dir() else run


def _read_step(path: Path, request: Request) -> Loaded:
    reason = damage_of(path, contents=request.select == "*")
    if reason is not None:
        raise InputError(f"{path} is damaged: {reason}; load its workdir to get the newest good step")
    return _read_checked(path, request)


def _read_checked(path: Path, request: Request) -> Loaded:
    record = checkpoint.read_record(path)
    model = request.model
    if model is None:
        model = _described(path, record.config).build()
    partitioning = None
    if request.mesh is not None:
        partitioning = Partitioning(request.mesh, request.rules)
        model = sharded(model, request.mesh, request.rules)
    params, state = checkpoint.restore_weights(path, model, partitioning, request.select)
    if request.dtype is not None:
        params = weights.cast(params, request.dtype)
    return Loaded(model, params, state, read_fitted(path), record.step, record.info)


def _read_export(path: Path, request: Request) -> Loaded:
    if request.mesh is not None:
        raise InputError(f"{path} is an export, made for one device: load it without a mesh, or the checkpoint on one")
    if request.select != "*":
        raise InputError(f"{path} is an export, which is read whole: load it without select, or the checkpoint with it")
    if request.dtype is not None:
        raise InputError(f"{path} is an export, whose program has its types: load it without dtype")
    found = stablehlo.read(path)
    return Loaded(
        found.model,
        found.params,
        found.state,
        read_fitted(path),
        found.about["step"],
        {"format": "stablehlo", **found.about["info"]},
    )


def _is_huggingface(path: Path) -> bool:
    return _huggingface().is_directory(path)


def _huggingface_config(path: Path) -> dict[str, Any]:
    return configs.to_dict(_huggingface().describe(path).config)


def _huggingface():
    """Imported by who needs it: the tables of its families would be a twentieth of every import."""
    from jaxmodel.interop.huggingface import directory

    return directory


def _read_huggingface(path: Path, request: Request) -> Loaded:
    huggingface = _huggingface()
    if request.select != "*":
        raise InputError(f"{path} is a Hugging Face directory, which is read whole: load it without select")
    model = request.model or huggingface.describe(path).config.build()
    partitioning = None
    if request.mesh is not None:
        partitioning = Partitioning(request.mesh, request.rules)
        model = sharded(model, request.mesh, request.rules)
    params, state, tokenizer, info = huggingface.read(path, model, partitioning, request.dtype)
    return Loaded(model, params, state, tokenizer, 0, info)


def _is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir() or (path.name == "checkpoints" and path.is_dir()) or bool(steps(path))


def _is_step(path: Path) -> bool:
    return (path / RECORD).exists()


# Tried in order; another kind of thing that holds a model is another row.
READERS: list[Reader] = [
    Reader(
        "an export (forward.stablehlo)",
        stablehlo.is_export,
        _read_export,
        lambda path: stablehlo.read_about(path)["config"],
    ),
    Reader(f"a step ({RECORD})", _is_step, _read_step, lambda path: checkpoint.read_record(path).config),
    Reader("a workdir (checkpoints/)", _is_run, _read_run, _run_config),
    Reader("a Hugging Face directory (config.json)", _is_huggingface, _read_huggingface, _huggingface_config),
]
