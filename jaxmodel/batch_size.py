"""How large a batch may be: the step is compiled, not run, and XLA says what memory it takes."""

from __future__ import annotations

import bisect
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxmodel.checkpoint.processes import gathered
from jaxmodel.errors import InputError
from jaxmodel.sharding import Partitioning
from jaxmodel.train import Step, TrainState

SHARE = 0.9  # of a device's memory; the rest is for the next batch, and for room that is lost between arrays
MOST = 2**16
MEMINFO = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup/memory.max")


class BatchSize(NamedTuple):
    """Rows of a batch, over all devices; bytes that its step needs on a device, and that it may use there."""

    size: int
    needs: int
    limit: int


def find_batch_size(
    step: Step,
    state: TrainState,
    batch: Mapping[str, Any],
    *,
    multiple: int = 1,
    most: int = MOST,
    limit: int | None = None,
    partitioning: Partitioning | None = None,
) -> BatchSize:
    """The largest `multiple` times a power of two whose training step fits into 90% of a device's memory.

    The step is compiled for at most five sizes; nothing is run, and the state is not used up. All processes must call
    it, and get the same answer.

    Args:
      step: from `make_step`.
      state: where training begins; arrays, or shapes with their shardings.
      batch: an example with any number of rows; its shapes and types are all that matters.
      multiple: what must divide it: `accumulate` times the devices that share the batch.
      most: where to stop, as at the number of training examples.
      limit: bytes of a device to use; by default 90% of `memory_of_a_device()`.
      partitioning: of a sharded model.

    Raises:
      InputError: not even `multiple` fits, or there is no limit to be found.
    """
    limit = int(SHARE * memory_of_a_device()) if limit is None else limit

    def shapes(size: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct(
                (size, *x.shape[1:]), x.dtype, sharding=partitioning and partitioning.batch(x.ndim)
            )
            for name, x in batch.items()
        }

    @functools.cache
    def needs(size: int) -> float:
        lowered = step.lower(state, shapes(size), jax.random.key(0))  # type: ignore[attr-defined]
        try:
            return bytes_needed(lowered.compile())
        except jax.errors.JaxRuntimeError as error:  # some compilers look themselves
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return float("inf")

    size = largest(needs, limit, multiple, most)
    return BatchSize(size, int(needs(size)), limit)


def largest(needs: Callable[[int], float], limit: int, multiple: int = 1, most: int = MOST) -> int:
    """The largest `multiple` * 2^k, up to `most`, that needs at most `limit` bytes; `needs` must not fall.

    >>> largest(lambda size: 100 + 3 * size, limit=300, multiple=6)
    48

    Raises:
      InputError: not even `multiple` does, or it is above `most`.
    """
    if multiple > most:
        raise InputError(
            f"train.batch_size=auto: must be a multiple of {multiple}, and there are {most} examples: lower "
            "train.accumulate, or use fewer devices"
        )
    sizes = [multiple << k for k in range((most // multiple).bit_length())]
    fitting = bisect.bisect_right(sizes, limit, key=needs)
    if not fitting:
        raise InputError(
            f"train.batch_size=auto: a batch of {multiple} needs {needs(multiple) / 1e9:.3g} GB of memory, and "
            f"{limit / 1e9:.3g} GB may be used: set model.execution.remat=true, take a smaller model, or use more "
            "devices"
        )
    return sizes[fitting - 1]


def bytes_needed(compiled: jax.stages.Compiled) -> int:
    """What a compiled function holds at once on a device: arguments, results and what lies between."""
    found: Any = compiled.memory_analysis()
    return (
        found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes + found.temp_size_in_bytes
    )


def memory_of_a_device() -> int:
    """Bytes that each device may use; on CPU its share of what is free on the host, or in its container.

    The least of all processes: each must call it.

    Raises:
      InputError: a device does not say what it has.
    """
    devices = jax.local_devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    known = [limit for limit in limits if limit]
    if known or devices[0].platform != "cpu":
        mine = min(known, default=None)
    else:
        mine = (_host_memory() or 0) // len(devices) or None
    found = gathered(mine)
    if None in found:
        raise InputError(
            f"train.batch_size=auto: this {devices[0].platform} does not say how much memory it has: "
            "give a number, as in train.batch_size=16"
        )
    return min(found)


def _host_memory() -> int | None:
    """Bytes free on this host, in the container if it is one; None on a system that does not say."""
    free = None
    if MEMINFO.exists():
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    elif "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):  # not on Windows
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    bound = CONTAINER.read_text().strip() if CONTAINER.exists() else "max"
    return free if free is None or bound == "max" else min(free, int(bound))
