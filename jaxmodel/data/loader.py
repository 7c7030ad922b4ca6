"""Batches: gathered ahead in a thread for training, in order for evaluation, from anything with a length."""

import collections
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
AHEAD = 1 << 14  # examples whose order is found out at once
BLOCK = 4 << 20  # bytes of batches that are gathered at once


class Source(Protocol):
    """Examples by number: `Windows`, `ArraySource`, or your own."""

    def __len__(self) -> int:
        """How many examples there are."""
        ...

    def gather(self, indices: np.ndarray) -> Batch:
        """The examples `indices` (int64[B]) as new arrays [B, …]; `sequential` needs "weights" among them.

        Row i is what `indices[i]` alone makes it: batches are gathered several at once and cut apart.
        """
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

    Small batches are gathered by the block, and are views of it: a single one at first, then twice as many each
    time, up to 4 MiB; larger ones, each by itself. At most `prefetch` blocks wait, and one more is in the making.

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
        self._taken: collections.deque[tuple[int, Batch]] = collections.deque()
        blocks = _blocks(source, batch_size, seed, start_step, rows or slice(None), stop_after)
        arguments = (blocks, self._ready, self._stop)
        self._thread = threading.Thread(target=_gather_ahead, args=arguments, name="loader", daemon=True)
        self._thread.start()
        weakref.finalize(self, self._stop.set)  # a forgotten loader takes its thread along

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        return self

    def __next__(self) -> tuple[int, Batch]:
        while not self._stop.is_set():  # by now and then looking up, it notices a close from another thread
            with contextlib.suppress(IndexError):
                return self._taken.popleft()
            with contextlib.suppress(queue.Empty):
                block = self._ready.get(timeout=0.1)
                if isinstance(block, BaseException):
                    self.close()
                    raise block
                self._taken.extend(block)
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


def _blocks(
    source: Source, batch_size: int, seed: int, start: int, rows: slice, stop_after: int | None
) -> Iterator[list[tuple[int, Batch]]]:
    """The batches of a `Loader`, one after the other, as many at once as were gathered at once."""
    end = None if stop_after is None else -(-stop_after // batch_size)
    indices = _indices(batch_size, seed, start, len(source))
    step, size = start, 1
    while end is None or step < end:
        count = size if end is None else min(size, end - step)
        for batches in _gathered(source, [next(indices)[rows] for _ in range(count)]):
            block = list(enumerate(batches, step))
            step += len(block)
            num_bytes = sum(array.nbytes for array in batches[0].values())
            # Within `AHEAD` too: bytes alone would not bound the block of a process whose share is empty.
            size = max(min(2 * size, BLOCK // max(num_bytes, 1), AHEAD // batch_size), 1)
            if stop_after is not None and step * batch_size > stop_after:
                places = np.arange((step - 1) * batch_size, step * batch_size)
                _discount(batches[-1], places[rows] >= stop_after)
            yield block


def _indices(batch_size: int, seed: int, start: int, num_examples: int) -> Iterator[np.ndarray]:
    """The examples of each step's global batch, int64[batch_size], from step `start` on."""
    count = max(AHEAD // batch_size, 1)
    for step in itertools.count(start, count):
        ahead = stretch(seed, step * batch_size, count * batch_size, num_examples)
        yield from ahead.reshape(count, batch_size)


def _gathered(source: Source, indices: list[np.ndarray]) -> Iterator[list[Batch]]:
    """A batch for each of `indices` (int64[B]): all in one call, or, where that fails, one by one.

    So an error is raised at the batch that it belongs to, after those before it.
    """
    whole = None
    if len(indices) > 1:
        with contextlib.suppress(Exception):  # it comes again below
            whole = source.gather(np.concatenate(indices))
    if whole is None:
        yield from ([source.gather(each)] for each in indices)
    else:
        size = len(indices[0])
        cuts = [slice(i * size, (i + 1) * size) for i in range(len(indices))]
        yield [{name: array[cut] for name, array in whole.items()} for cut in cuts]


def _gather_ahead(blocks: Iterator[list[tuple[int, Batch]]], ready: queue.Queue[Any], stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            item = next(blocks)
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
