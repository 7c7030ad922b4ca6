"""Where else the numbers of a run may go: TensorBoard, Weights & Biases, trackio, each a hook of `loop.fit`."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxmodel.config import did_you_mean
from jaxmodel.errors import InputError

Log = Callable[[Mapping[str, float], int], None]  # ({"train/loss": …}, step)


class Writer:
    """A hook that hands finite numbers on as "split/name"; `close` it at the end."""

    def __init__(self, log: Log, close: Callable[[], None]):
        self._log, self.close = log, close

    def __call__(self, step: int, split: str, numbers: Mapping[str, float]) -> None:
        finite = {f"{split}/{name}": value for name, value in numbers.items() if math.isfinite(value)}
        if finite:
            self._log(finite, step)


def make_writer(name: str, workdir: Path, config: Mapping[str, Any]) -> Writer:
    """The writer of that name for a run in `workdir`; `config` is told to those that keep it.

    Raises:
      InputError: no such writer, or its package is not installed.
    """
    if name not in WRITERS:
        raise InputError(f"train.writers={name}: {did_you_mean(name, WRITERS)}")
    package, make = WRITERS[name]
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise InputError(
            f"train.writers={name} needs the package {package}: pip install {package}, or leave it out"
        ) from None
    return make(module, workdir, config)


def _tensorboard(module: Any, workdir: Path, config: Mapping[str, Any]) -> Writer:
    """Event files in `workdir`/tensorboard."""
    del config
    writer = module.SummaryWriter(str(workdir / "tensorboard"))

    def log(numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return Writer(log, writer.close)


def _tracked(module: Any, workdir: Path, config: Mapping[str, Any]) -> Writer:
    """A run called like its folder, in the project "jaxmodel"; trackio speaks as Weights & Biases does."""
    run = module.init(project="jaxmodel", name=workdir.name, config=dict(config))
    return Writer(lambda numbers, step: run.log(dict(numbers), step=step), run.finish)


# name -> (the package, which is imported when it is asked for, and how a run is begun)
WRITERS: dict[str, tuple[str, Callable[[Any, Path, Mapping[str, Any]], Writer]]] = {
    "tensorboard": ("tensorboardX", _tensorboard),
    "wandb": ("wandb", _tracked),
    "trackio": ("trackio", _tracked),
}
