"""The one door to Orbax: named arrays to a folder in the background, and back onto any mesh."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

Arrays = Mapping[str, jax.Array]
ITEMS = ("weights", "training")


@functools.cache
def _orbax() -> Any:
    """Orbax, imported when first needed: it costs half a second."""
    import orbax.checkpoint

    _quieten()
    return orbax.checkpoint


def _quieten() -> None:
    """Keep from stderr what Orbax says of a failed save on its way to us, a traceback each: it is raised here, too.

    It logs what its threads raise; asyncio logs the tasks that it left when the first one failed, and the writes
    that those waited for, known by the folder they wrote to; and when such writes end late, TensorStore's threads
    find the event loop closed, and nobody can catch that.
    """
    orbax = f"{os.sep}orbax{os.sep}"
    unfinished = ".orbax-checkpoint-tmp"
    logging.getLogger("absl").addFilter(lambda line: orbax not in line.pathname)
    logging.getLogger("asyncio").addFilter(
        lambda line: orbax not in line.getMessage() and unfinished not in line.getMessage()
    )
    before = sys.unraisablehook

    def hook(found: Any) -> None:
        if not _of_a_closed_loop(found):
            before(found)

    sys.unraisablehook = hook


def _of_a_closed_loop(found: Any) -> bool:
    """Whether native code, and no Python, told a closed event loop that something had ended."""
    if found.object is not None or not isinstance(found.exc_value, RuntimeError) or found.exc_traceback is None:
        return False
    code = found.exc_traceback.tb_frame.f_code  # the outermost frame
    return code is asyncio.BaseEventLoop.call_soon_threadsafe.__code__ and "closed" in str(found.exc_value)


def _handler() -> Any:
    ocp = _orbax()
    # Weights hardly compress (8%), and trying takes three times the CPU time of writing them.
    handlers = {item: ocp.PyTreeCheckpointHandler(use_compression=False) for item in ITEMS}
    return ocp.CompositeCheckpointHandler(**handlers)


class Writer:
    """Writes in the background, one folder at a time; all processes take part."""

    def __init__(self) -> None:
        self._orbax = _orbax().AsyncCheckpointer(_handler())

    def start(self, folder: Path, items: Mapping[str, Arrays]) -> None:
        """Begin to write; the arrays may be donated or deleted as soon as this returns."""
        save = _orbax().args.PyTreeSave
        composite = _orbax().args.Composite(**{item: save(dict(arrays)) for item, arrays in items.items()})
        self._orbax.save(folder, args=composite)

    def finish(self) -> None:
        """Return when `folder` is there with all its files; raises what went wrong in any thread."""
        self._orbax.wait_until_finished()

    def close(self) -> None:
        """Let go of threads."""
        self._orbax.close()


def read(folder: Path, item: str, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """The arrays of an item, each in the sharding that is wanted of it (by default, the first device).

    Names, shapes and dtypes must be those that were saved: the caller checks, Orbax reports misleadingly. What is
    not wanted is not read.
    """
    ocp = _orbax()
    home = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    arguments = {
        name: ocp.ArrayRestoreArgs(sharding=each.sharding or home, global_shape=each.shape, dtype=each.dtype)
        for name, each in wanted.items()
    }
    restore = ocp.args.PyTreeRestore(dict(wanted), restore_args=arguments, partial_restore=True)
    with ocp.Checkpointer(_handler()) as reader:
        return reader.restore(folder.absolute(), args=ocp.args.Composite(**{item: restore}))[item]


def barrier(name: str, seconds: int) -> None:
    """Wait until every process has come here; at most so long."""
    _orbax().multihost.get_barrier_sync_fn()(key=name, timeout_ms=seconds * 1000)
