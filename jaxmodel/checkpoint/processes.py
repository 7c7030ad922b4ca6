"""What several processes need in order to agree; with one process all of it is free."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

BARRIER_SECONDS = 1200


def index_and_count() -> tuple[int, int]:
    """Which process this is, and of how many."""
    import jax

    return jax.process_index(), jax.process_count()


def gathered(value: Any) -> list[Any]:
    """A JSON-able value of every process, by process; all must call it, from their main thread."""
    import jax

    if jax.process_count() == 1:
        return [value]
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.asarray(process_allgather(np.int32(len(mine))))
    rows = np.asarray(process_allgather(np.pad(mine, (0, lengths.max() - len(mine)))))
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


@contextlib.contextmanager
def joined(name: str) -> Iterator[None]:
    """Wait for all processes at the end of the block, also when it fails here; safe in any thread.

    The name must be new each time. Not a computation on the devices, which would have to keep its place among
    those of the training thread.
    """
    from jaxmodel.checkpoint import arrays

    try:
        yield
    finally:
        arrays.barrier(name, BARRIER_SECONDS)
