"""Packing: a stream of documents cut into windows of one length that know where each document begins."""

import numpy as np

from jaxmodel.data.text import Corpus
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
        stream = np.full((len(first), self.length + 1), self.corpus.tokens[last], np.int32)
        for row, begin in zip(stream, first.tolist(), strict=True):  # a window lies in one piece
            piece = self.corpus.tokens[begin : begin + self.length + 1]
            row[: len(piece)] = piece

        starts = np.zeros((len(first), self.length), np.int32)  # where a document begins within its window
        starts[self._starts(first)] = 1
        starts[:, :1] = 1
        runs = np.flatnonzero(starts)  # each at one position after the other, over all rows laid end to end
        since = np.repeat(runs, np.diff(runs, append=starts.size))
        batch = {
            "tokens": stream[:, :-1],
            "targets": stream[:, 1:],
            "weights": np.ones(starts.shape, np.float32),
            "segments": np.cumsum(starts, axis=1, dtype=np.int32),
            "positions": (np.arange(starts.size) - since).astype(np.int32).reshape(starts.shape),
        }
        if len(first) and first.max() + self.length > last:
            padding = first[:, None] + np.arange(self.length) >= last
            for name in ("weights", "segments", "positions"):
                batch[name][padding] = 0
        return batch

    def _starts(self, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the documents' starts in the windows at `first` (int64[B])."""
        low, high = np.searchsorted(self.corpus.starts, [first, first + self.length])
        counts = high - low
        rows = np.repeat(np.arange(len(first)), counts)
        # The starts of all rows in one list: low[row], low[row] + 1, … high[row] - 1.
        which = np.arange(len(rows)) + np.repeat(low - (np.cumsum(counts) - counts), counts)
        return rows, self.corpus.starts[which] - first[rows]
