"""The loader: resumable, the same for any number of processes, loud in failure, quick to stop."""

import gc
import itertools
import threading
import time
import traceback

import numpy as np
import pytest

from jaxmodel.data import loader as loader_module
from jaxmodel.data.loader import ArraySource, Loader, sequential
from jaxmodel.data.order import order
from jaxmodel.data.packing import Windows
from jaxmodel.data.text import Corpus
from jaxmodel.errors import InputError


@pytest.fixture
def source():
    return ArraySource({"features": np.arange(23, dtype=np.float32)[:, None], "targets": np.arange(23)})


@pytest.fixture
def windows():
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 99, rng.integers(1, 40)) for _ in range(30)]
    return Windows(Corpus.of(documents, separator_id=0), 8, partial=True)


def take(loader, count):
    with loader:
        return list(itertools.islice(loader, count))


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def loaders():
    return [thread for thread in threading.enumerate() if thread.name == "loader"]


def test_batches_are_what_the_order_says(source):
    for step, batch in take(Loader(source, 6, seed=3), 10):
        assert same(batch, source.gather(order(3, step, 6, 23)))


@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_resumed_equals_never_stopped(windows, stop):
    whole = take(Loader(windows, 4, seed=1), 9)
    resumed = take(Loader(windows, 4, seed=1, start_step=stop), 9 - stop)
    assert [step for step, _ in resumed] == list(range(stop, 9))
    for (_, one), (_, other) in zip(whole[stop:], resumed, strict=True):
        assert same(one, other)


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_the_shares_of_all_processes_are_the_global_batch(windows, num_processes):
    share = 8 // num_processes
    rows = [slice(i * share, (i + 1) * share) for i in range(num_processes)]
    shares = [take(Loader(windows, 8, seed=2, rows=mine), 5) for mine in rows]
    for (step, whole), *parts in zip(take(Loader(windows, 8, seed=2), 5), *shares, strict=True):
        assert {number for number, _ in parts} == {step}
        for name, values in whole.items():
            np.testing.assert_array_equal(np.concatenate([batch[name] for _, batch in parts]), values)


@pytest.mark.parametrize(("batch_size", "epochs"), [(4, 1), (23, 2), (6, 3), (100, 2)])
def test_epochs_end_exactly_with_every_example_seen_as_often(source, batch_size, epochs):
    with Loader(source, batch_size, seed=4, stop_after=epochs * 23) as loader:
        batches = list(loader)
    assert [step for step, _ in batches] == list(range(-(-epochs * 23 // batch_size)))
    assert {len(batch["targets"]) for _, batch in batches} == {batch_size}
    targets, weights = (np.concatenate([batch[name] for _, batch in batches]) for name in ("targets", "weights"))
    assert set(weights) <= {0, 1}
    np.testing.assert_array_equal(np.bincount(targets[weights > 0]), np.full(23, epochs))
    assert not loaders()


def test_an_end_is_the_same_for_a_resumed_run_and_for_several_processes(windows):
    stop = 2 * len(windows) + 3
    whole = take(Loader(windows, 8, seed=1, stop_after=stop), None)
    assert same(whole[1][1], take(Loader(windows, 8, seed=1), 2)[1][1])  # before its end nothing changes
    assert not whole[-1][1]["segments"][-1].any()
    resumed = take(Loader(windows, 8, seed=1, start_step=3, stop_after=stop), None)
    assert [step for step, _ in resumed] == [step for step, _ in whole[3:]]
    parts = [take(Loader(windows, 8, 1, rows=rows, stop_after=stop), None) for rows in (slice(4), slice(4, 8))]
    for (_, batch), (_, one), (_, other) in zip(whole, *parts, strict=True):
        assert same(batch, {name: np.concatenate([one[name], other[name]]) for name in batch})
    for (_, batch), (_, one) in zip(whole[3:], resumed, strict=True):
        assert same(batch, one)
    assert take(Loader(windows, 8, seed=1, start_step=len(whole), stop_after=stop), None) == []


class Counting(ArraySource):
    """Remembers how many examples were asked for at once."""

    def __init__(self, arrays):
        super().__init__(arrays)
        self.counts = []

    def gather(self, indices):
        self.counts.append(len(indices))
        return super().gather(indices)


@pytest.mark.parametrize("rows", [slice(None), slice(1, 3), slice(0, 0)])
@pytest.mark.parametrize("ahead", [3, 64, 1 << 14])
def test_batches_do_not_depend_on_how_many_are_gathered_at_once(source, monkeypatch, ahead, rows):
    monkeypatch.setattr(loader_module, "AHEAD", ahead)
    for step, batch in take(Loader(source, 6, seed=3, start_step=5, rows=rows), 90):
        assert same(batch, source.gather(order(3, step, 6, 23)[rows]))


def test_a_batch_is_its_own_to_change(source):
    batches = take(Loader(source, 6, seed=3), 40)
    for _, batch in batches:
        assert not np.any(batch["targets"] < 0)
        batch["targets"][:] = -1


def test_the_first_batch_is_gathered_alone_and_no_block_is_larger_than_its_bound(monkeypatch):
    source = Counting({"features": np.zeros((50, 256), np.float32)})
    monkeypatch.setattr(loader_module, "BLOCK", 20 * 1028)  # of the features, and a weight
    take(Loader(source, 3, seed=0), 60)
    assert source.counts[:6] == [3, 6, 12, 18, 18, 18]
    monkeypatch.setattr(loader_module, "BLOCK", 1)
    source.counts.clear()
    take(Loader(source, 3, seed=0), 9)
    assert set(source.counts) == {3}  # a batch that is too large for a block comes by itself


def test_no_block_reaches_beyond_the_end(source):
    source = Counting(source.arrays)
    take(Loader(source, 4, seed=0, stop_after=38), None)
    assert source.counts == [4, 8, 16, 12]


class Failing(ArraySource):
    def gather(self, indices):
        raise OSError("the disk is gone")


def test_an_error_comes_out_with_the_place_it_came_from(source):
    loader = Loader(Failing(source.arrays), 4, seed=0)
    with pytest.raises(OSError, match="the disk is gone") as caught:
        next(loader)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert frames[-1].line == 'raise OSError("the disk is gone")'
    assert list(loader) == []
    assert not loaders()


@pytest.mark.parametrize("due", [0, 1, 5, 6, 20])
def test_an_error_comes_at_the_batch_that_it_belongs_to(due):
    class Gap(ArraySource):
        def gather(self, indices):
            if bad in indices:
                raise OSError("the disk is gone")
            return super().gather(indices)

    source = Gap({"targets": np.arange(1000)})
    bad = order(0, due, 4, 1000)[2]
    with Loader(source, 4, seed=0) as loader:
        for step in range(due):
            assert next(loader)[0] == step
        with pytest.raises(OSError, match="the disk is gone"):
            next(loader)
        assert list(loader) == []


def test_close_stops_a_thread_that_is_waiting_to_hand_over(source):
    loader = Loader(source, 4, seed=0, prefetch=1)
    next(loader)
    started = time.monotonic()
    loader.close()
    assert time.monotonic() - started < 1
    assert not loaders()
    assert list(loader) == []
    loader.close()


def test_close_from_another_thread_ends_the_wait(source):
    release = threading.Event()

    class Stuck(ArraySource):
        def gather(self, indices):
            release.wait(10)
            return super().gather(indices)

    loader = Loader(Stuck(source.arrays), 4, seed=0)
    closer = threading.Timer(0.2, lambda: loader.close())
    closer.start()
    assert list(loader) == []
    release.set()
    closer.join(5)
    assert not loaders()


def test_a_forgotten_loader_stops_too(source):
    loader = Loader(source, 4, seed=0)
    next(loader)
    del loader
    gc.collect()
    for thread in loaders():
        thread.join(2)
    assert not loaders()


def test_no_more_than_asked_for_is_gathered_ahead(source):
    source = Counting(source.arrays)
    with Loader(source, 4, seed=0, prefetch=2) as loader:
        next(loader)
        deadline = time.monotonic() + 5
        while len(source.counts) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(source.counts) == 4  # the block taken, two in the queue, one in hand


def test_a_bad_request_fails_at_once(source):
    with pytest.raises(ValueError, match="batch_size=0"):
        Loader(source, 0, seed=0)
    assert not loaders()


@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
def test_sequential_gives_every_example_once(source, batch_size):
    batches = list(sequential(source, batch_size))
    assert {len(batch["targets"]) for batch in batches} == {batch_size}
    targets, weights = (np.concatenate([batch[name] for batch in batches]) for name in ("targets", "weights"))
    np.testing.assert_array_equal(targets[weights > 0], np.arange(23))
    np.testing.assert_array_equal(weights, np.arange(len(weights)) < 23)


def test_sequential_pads_windows_with_rows_that_count_for_nothing(windows):
    batches = list(sequential(windows, 7))
    stream = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    real = stream["weights"] > 0
    np.testing.assert_array_equal(stream["targets"][real], windows.corpus.tokens[1:])
    np.testing.assert_array_equal(stream["segments"] > 0, real)


@pytest.mark.parametrize("num_processes", [2, 4])
def test_sequential_shares_are_the_global_batch(windows, num_processes):
    share = 8 // num_processes
    shares = [list(sequential(windows, 8, slice(i * share, (i + 1) * share))) for i in range(num_processes)]
    for whole, *parts in zip(sequential(windows, 8), *shares, strict=True):
        assert same(whole, {name: np.concatenate([part[name] for part in parts]) for name in whole})


def test_arrays_keep_their_own_weights():
    source = ArraySource({"targets": np.arange(4), "weights": np.array([1, 0, 2, 1], np.float32)})
    np.testing.assert_array_equal(source.gather(np.array([2, 1]))["weights"], [2, 0])
    assert [batch["weights"].tolist() for batch in sequential(source, 3)] == [[1, 0, 2], [1, 0, 0]]
    np.testing.assert_array_equal(source.arrays["weights"], [1, 0, 2, 1])  # padding wrote into copies


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.zeros(3), "targets": np.zeros(4)}, "one length.*images 3, targets 4"),
        ({"images": np.zeros(0)}, "at least 1 example.*images 0"),
        ({}, "no array at all"),
    ],
)
def test_words_of_the_errors(arrays, words):
    with pytest.raises(InputError, match=words):
        ArraySource(arrays)
