"""Batches: gathered ahead in a thread for training, in order for evaluation, from anything with a length."""

import contextlib
import queue
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from jaxmodel.data.order import order
from jaxmodel.errors import InputError

Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Examples by number: `Windows`, `ArraySource`, or your own."""

    def __len__(self) -> int:
        """How many examples there are."""
        ...

    def gather(self, indices: np.ndarray) -> Batch:
        """The examples `indices` (int64[B]) as arrays [B, …]; `sequential` needs "weights" among them."""
        ...


class ArraySource:
    """Examples that are rows of arrays in memory (or mapped from disk).

    Adds `weights`, float32[B] of ones, unless the arrays bring their own. Raises InputError if the arrays
    differ in length or are empty.

    >>> ArraySource({"targets": np.arange(3) * 10}).gather(np.array([2, 0]))
    {'weights': array([1., 1.], dtype=float32), 'targets': array([20,  0])}
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1 or not all(lengths.values()):
            sizes = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "no array at all"
            raise InputError(f"data: the arrays need one length, of at least 1 example; they have: {sizes}")
        self.arrays = dict(arrays)
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def gather(self, indices: np.ndarray) -> Batch:
        weights = {"weights": np.ones(len(indices), np.float32)}
        return weights | {name: array[indices] for name, array in self.arrays.items()}


class Loader:
    """(step, batch) from `start_step` on, without end; the batches ahead are gathered in a thread.

    The batch of a step depends on `seed` and the step alone (see `order`): what starts at step k sees what a
    run that never stopped sees. `rows` is this process's share of the global batch of `batch_size`: the
    shares of all processes, in order, are that batch, however many they are.

    An error in the source is raised here, with the place it came from. Use it in a `with`, or `close` it.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        rows: slice | None = None,
        prefetch: int = 2,
    ):
        order(seed, start_step, batch_size, len(source))  # what is wrong with these is said at once
        self._ready: queue.Queue[Any] = queue.Queue(prefetch)
        self._stop = threading.Event()
        arguments = (source, batch_size, seed, start_step, rows or slice(None), self._ready, self._stop)
        self._thread = threading.Thread(target=_gather_ahead, args=arguments, name="loader", daemon=True)
        self._thread.start()
        weakref.finalize(self, self._stop.set)  # a forgotten loader takes its thread along

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        return self

    def __next__(self) -> tuple[int, Batch]:
        while not self._stop.is_set():  # by now and then looking up, it notices a close from another thread
            with contextlib.suppress(queue.Empty):
                item = self._ready.get(timeout=0.1)
                if isinstance(item, BaseException):
                    self.close()
                    raise item
                return item
        raise StopIteration

    def close(self) -> None:
        """Stop the thread, and end the iteration."""
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._ready.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _gather_ahead(
    source: Source,
    batch_size: int,
    seed: int,
    step: int,
    rows: slice,
    ready: queue.Queue[Any],
    stop: threading.Event,
) -> None:
    while not stop.is_set():
        try:
            item = step, source.gather(order(seed, step, batch_size, len(source))[rows])
        except BaseException as error:
            item = error
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                break
            except queue.Full:
                continue
        if isinstance(item, BaseException):
            return
        step += 1


def sequential(source: Source, batch_size: int, rows: slice | None = None) -> Iterator[Batch]:
    """Every example once, in order: for evaluation. `rows` as in `Loader`.

    The last batch is filled up with copies of the last example that count for nothing: `weights` 0 and, where
    there are any, `segments` 0.
    """
    for start in range(0, len(source), batch_size):
        indices = np.arange(start, start + batch_size, dtype=np.int64)[rows or slice(None)]
        batch = source.gather(np.minimum(indices, len(source) - 1))
        for name in ("weights", "segments") if "segments" in batch else ("weights",):
            batch[name][indices >= len(source)] = 0
        yield batch
