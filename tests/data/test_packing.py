"""Windows: the stream comes back exactly, every token is predicted once, segments agree with a slow loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmodel.data.corpus import Corpus, Joined
from jaxmodel.data.packing import Windows
from jaxmodel.errors import InputError

SEPARATOR = 0
corpora = st.lists(st.integers(0, 9), min_size=1, max_size=8).map(
    lambda lengths: Corpus.of([1 + np.arange(length) + 10 * i for i, length in enumerate(lengths)], SEPARATOR)
)


def slow(corpus, length, window):
    """One window, position by position; None where there is nothing to predict."""
    tokens, starts = corpus.tokens.tolist(), set(corpus.starts.tolist())
    rows, segment, position = [], 1, -1
    for place in range(window * length, (window + 1) * length):
        if place + 1 >= len(tokens):
            rows.append((None, None, 0.0, 0, 0))
            continue
        if place in starts:
            segment, position = segment + (place > window * length), -1
        position += 1
        rows.append((tokens[place], tokens[place + 1], 1.0, segment, position))
    return rows


@given(corpora, st.integers(1, 12), st.randoms(use_true_random=False))
def test_windows_agree_with_a_slow_loop(corpus, length, random):
    windows = Windows(corpus, length, partial=True)
    indices = [random.randrange(len(windows)) for _ in range(5)]
    batch = windows.gather(np.array(indices))
    names = ("tokens", "targets", "weights", "segments", "positions")
    assert set(batch) == set(names)
    for row, index in enumerate(indices):
        for column, expected in enumerate(slow(corpus, length, index)):
            found = tuple(batch[name][row, column].item() for name in names)
            if expected[0] is None:
                expected = (SEPARATOR, SEPARATOR, *expected[2:])
            assert found == expected, (index, column)


@given(corpora, st.integers(1, 12), st.lists(st.integers(0, 70), max_size=6))
def test_windows_of_several_files_are_those_of_one(corpus, length, cuts):
    parts = np.split(corpus.tokens, sorted(min(cut, len(corpus.tokens)) for cut in cuts))
    several = Windows(Corpus(Joined(parts), corpus.starts, 0), length, partial=True)
    one = Windows(corpus, length, partial=True)
    indices = np.arange(len(one))[::-1]
    found = several.gather(indices)
    for name, values in one.gather(indices).items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@given(corpora, st.integers(1, 12))
def test_every_token_is_predicted_exactly_once(corpus, length):
    windows = Windows(corpus, length, partial=True)
    batch = windows.gather(np.arange(len(windows)))
    real = batch["weights"] > 0
    np.testing.assert_array_equal(batch["targets"][real], corpus.tokens[1:])
    np.testing.assert_array_equal(batch["tokens"][real], corpus.tokens[:-1])
    assert real.sum() == corpus.num_targets
    np.testing.assert_array_equal(batch["segments"] > 0, real)


def test_a_worked_example():
    corpus = Corpus.of([np.array([5, 6]), np.array([7]), np.array([8, 9])], SEPARATOR)  # 0 5 6 0 7 0 8 9 0
    batch = Windows(corpus, 5, partial=True).gather(np.array([0, 1]))
    expected = {
        "tokens": [[0, 5, 6, 0, 7], [0, 8, 9, 0, 0]],
        "targets": [[5, 6, 0, 7, 0], [8, 9, 0, 0, 0]],
        "weights": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]],
        "segments": [[1, 1, 1, 2, 2], [1, 1, 1, 0, 0]],
        "positions": [[0, 1, 2, 0, 1], [0, 1, 2, 0, 0]],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(batch[name], values, err_msg=name)
        assert batch[name].dtype == (np.float32 if name == "weights" else np.int32)


@pytest.mark.parametrize(("num_targets", "full", "partial"), [(8, 2, 2), (9, 2, 3), (11, 2, 3), (12, 3, 3), (4, 1, 1)])
def test_how_many_windows(num_targets, full, partial):
    corpus = Corpus.of([np.arange(num_targets - 1)], SEPARATOR)
    assert corpus.num_targets == num_targets
    assert len(Windows(corpus, 4)) == full
    assert len(Windows(corpus, 4, partial=True)) == partial


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_large_ids_survive(dtype, tmp_path):
    top = np.iinfo(dtype).max if dtype == np.uint16 else 2**31 - 1
    np.array([0, top, 3, 0], dtype).tofile(tmp_path / "tokens")
    corpus = Corpus(np.memmap(tmp_path / "tokens", dtype, "r"), np.array([0]), 0)
    np.testing.assert_array_equal(Windows(corpus, 3).gather(np.array([0]))["targets"], [[top, 3, 0]])


def test_a_window_that_is_not_there_is_refused():
    windows = Windows(Corpus.of([np.arange(10)], SEPARATOR), 4)
    for index in (-1, len(windows)):
        with pytest.raises(IndexError, match=f"of {len(windows)}"):
            windows.gather(np.array([index]))


def test_words_of_the_errors():
    corpus = Corpus.of([np.arange(10)], SEPARATOR)
    with pytest.raises(InputError, match=r"data\.length=100: the text has only 11 tokens.*shorter data\.length"):
        Windows(corpus, 100)
    with pytest.raises(InputError, match=r"data\.length=0: give the number of tokens"):
        Windows(corpus, 0)
