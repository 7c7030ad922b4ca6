"""Batches: gathered ahead in a thread for training, in order for evaluation, from anything with a length."""

import contextlib
import itertools
import queue
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from jaxmodel.data.order import order, stretch
from jaxmodel.errors import InputError

Batch = dict[str, np.ndarray]
AHEAD = 4096  # examples whose order is found out at once


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
    """(step, batch) from `start_step` on; the batches ahead are gathered in a thread.

    The batch of a step depends on `seed` and the step alone (see `order`): what starts at step k sees what a
    run that never stopped sees. `rows` is this process's share of the global batch of `batch_size`: the
    shares of all processes, in order, are that batch, however many they are.

    It goes on without end, or until `stop_after` examples have been seen in all, those before `start_step`
    included: what the last batch holds beyond them counts for nothing, as in `sequential`. So E epochs of N
    examples (E*N) see each exactly E times.

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
        stop_after: int | None = None,
    ):
        order(seed, start_step, batch_size, len(source))  # what is wrong with these is said at once
        self._ready: queue.Queue[Any] = queue.Queue(prefetch)
        self._stop = threading.Event()
        batches = _batches(source, batch_size, seed, start_step, rows or slice(None), stop_after)
        arguments = (batches, self._ready, self._stop)
        self._thread = threading.Thread(target=_gather_ahead, args=arguments, name="loader", daemon=True)
        self._thread.start()
        weakref.finalize(self, self._stop.set)  # a forgotten loader takes its thread along

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        return self

    def __next__(self) -> tuple[int, Batch]:
        while not self._stop.is_set():  # by now and then looking up, it notices a close from another thread
            with contextlib.suppress(queue.Empty):
                # Waiting with a limit costs more than gathering a small batch: only where there is none.
                item = self._ready.get(block=self._ready.empty(), timeout=0.1)
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


def _batches(
    source: Source, batch_size: int, seed: int, start: int, rows: slice, stop_after: int | None
) -> Iterator[tuple[int, Batch]]:
    """The batches of a `Loader`, one after the other."""
    ahead = max(AHEAD // batch_size, 1)
    for step in itertools.count(start):
        places = np.arange(step * batch_size, (step + 1) * batch_size)
        if stop_after is not None and places[0] >= stop_after:
            return
        turn = (step - start) % ahead
        if not turn:
            indices = stretch(seed, step * batch_size, ahead * batch_size, len(source))
            batches = indices.reshape(ahead, batch_size)
        batch = source.gather(batches[turn][rows])
        if stop_after is not None and places[-1] >= stop_after:
            _discount(batch, places[rows] >= stop_after)
        yield step, batch


def _gather_ahead(
    batches: Iterator[tuple[int, Batch]], ready: queue.Queue[Any], stop: threading.Event
) -> None:
    while not stop.is_set():
        try:
            item = next(batches)
        except BaseException as error:  # StopIteration too: it ends the iteration of the loader
            item = error
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                break
            except queue.Full:
                continue
        if isinstance(item, BaseException):
            return


def sequential(source: Source, batch_size: int, rows: slice | None = None) -> Iterator[Batch]:
    """Every example once, in order: for evaluation. `rows` as in `Loader`.

    The last batch is filled up with copies of the last example that count for nothing: `weights` 0 and, where
    there are any, `segments` 0.
    """
    for start in range(0, len(source), batch_size):
        indices = np.arange(start, start + batch_size, dtype=np.int64)[rows or slice(None)]
        batch = source.gather(np.minimum(indices, len(source) - 1))
        _discount(batch, indices >= len(source))
        yield batch


def _discount(batch: Batch, rows: np.ndarray) -> None:
    """Make rows (bool[B]) count for nothing."""
    for name in ("weights", "segments") if "segments" in batch else ("weights",):
        batch[name][rows] = 0
