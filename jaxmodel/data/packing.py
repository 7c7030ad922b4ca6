"""Packing: a stream of documents cut into windows of one length that know where each document begins."""

import numpy as np

from jaxmodel.data.corpus import Corpus, Joined
from jaxmodel.errors import InputError


class Windows:
    """The windows of a corpus: window i predicts tokens i*T+1 to i*T+T of the stream from those before.

    Concatenate, then split: nothing is padded, and nothing lost but the tail that fills no window. With
    `partial` that is a window too, padded, so that every token is predicted exactly once: for evaluation.

    Raises InputError if there is not one window.
    """

    def __init__(self, corpus: Corpus, length: int, partial: bool = False):
        if length < 1:
            raise InputError(f"data.length={length}: give the number of tokens in a sequence, 1 or more")
        if corpus.num_targets < length and not partial:
            raise InputError(
                f"data.length={length}: the text has only {corpus.num_targets} tokens, "
                "less than one sequence; give a shorter data.length, or more text"
            )
        self.corpus, self.length, self.partial = corpus, length, partial
        parts = corpus.tokens.parts if isinstance(corpus.tokens, Joined) else [np.asarray(corpus.tokens)]
        sizes = np.array([len(part) for part in parts])
        self._begins = np.cumsum(sizes) - sizes
        self._streams = [_sliding(part, length + 1) for part in parts]
        self._ends = self._begins + [len(streams) for streams in self._streams]

    def __len__(self) -> int:
        full, rest = divmod(self.corpus.num_targets, self.length)
        return full + (self.partial and rest > 0)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The windows `indices` (int64[B]) as one batch, every array [B, T].

        tokens, targets: int32, and in the last window padded with the separator. weights: float32, 0 where
        there is no target. segments: int32, documents counted from 1 within the window, 0 = padding.
        positions: int32, from 0 at each document's separator, and at the window's start.
        """
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"windows {indices.min()} to {indices.max()} of {len(self)}")
        first, last = np.asarray(indices, np.int64) * self.length, self.corpus.num_targets
        stream, (runs, lengths) = self._stream(first), self._runs(first)
        columns = runs % self.length
        # A run's number, less that of the first in its row.
        segments = np.arange(1, len(runs) + 1) - np.searchsorted(runs, runs - columns)
        shape = len(first), self.length
        since = np.repeat(columns.astype(np.int32), lengths).reshape(shape)
        batch = {
            "tokens": stream[:, :-1],
            "targets": stream[:, 1:],
            "weights": np.ones(shape, np.float32),
            "segments": np.repeat(segments.astype(np.int32), lengths).reshape(shape),
            "positions": np.subtract(np.arange(self.length, dtype=np.int32), since, out=since),
        }
        if len(first) and first.max() + self.length > last:
            padding = first[:, None] + np.arange(self.length) >= last
            for name in ("weights", "segments", "positions"):
                batch[name][padding] = 0
        return batch

    def _stream(self, first: np.ndarray) -> np.ndarray:
        """The tokens from each of `first` (int64[B]) on, int32[B, T+1], filled up with the separator."""
        stream = np.empty((len(first), self.length + 1), np.int32)
        part = np.searchsorted(self._begins, first, "right") - 1
        whole = first < self._ends[part]
        for i in np.unique(part[whole]):
            rows = np.flatnonzero(whole & (part == i))
            stream[rows] = self._streams[i][first[rows] - self._begins[i]]
        for row in np.flatnonzero(~whole):  # from one part into the next, or beyond the last
            piece = self.corpus.tokens[first[row] : first[row] + self.length + 1]
            stream[row, : len(piece)] = piece
            stream[row, len(piece) :] = self.corpus.tokens[self.corpus.num_targets]
        return stream

    def _runs(self, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where one document goes on within one of the windows at `first` (int64[B]): begins and lengths, int64[R].

        Places in all windows laid end to end, in order.
        """
        low = np.searchsorted(self.corpus.starts, first, "right")
        counts = np.searchsorted(self.corpus.starts, first + self.length) - low
        heads = np.arange(len(first)) * self.length
        # The starts of all rows in one list: low[row], low[row] + 1, … low[row] + counts[row] - 1.
        which = np.arange(counts.sum()) + np.repeat(low - (np.cumsum(counts) - counts), counts)
        starts = self.corpus.starts[which] + np.repeat(heads - first, counts)
        runs = np.sort(np.concatenate([heads, starts]), kind="stable")  # which merges what is in order
        return runs, np.diff(runs, append=len(first) * self.length)


def _sliding(tokens: np.ndarray, length: int) -> np.ndarray:
    """What lies in `tokens` [N] from each place on, [N-length+1, length], without a copy; none if that is too short."""
    if len(tokens) < length:
        return np.empty((0, length), tokens.dtype)
    return np.lib.stride_tricks.sliding_window_view(tokens, length)
