"""Corpora: streams of tokens with their documents' places, how they are written, and the marks to know them by."""

import bisect
import dataclasses
import hashlib
import itertools
import json
import math
import zlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxmodel.data.tokenizer import Tokenizer

Files = Mapping[str, Sequence[int]]  # size and checksum of each file of a corpus, in the order of their names


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """One stream of tokens, `<sep> doc <sep> doc … <sep>`: the end of the last document is predicted too.

    tokens: uint16 or uint32 [N], often mapped from disk, as one file or as several (`Joined`). starts: int64[D],
    each document's separator (the last separator starts none). num_bytes: of the documents as UTF-8, separators not
    counted.
    """

    tokens: Any
    starts: np.ndarray
    num_bytes: int

    @property
    def num_targets(self) -> int:
        """How many tokens are predicted from the one before: all but the first."""
        return len(self.tokens) - 1

    def bits_per_byte(self, loss: float) -> float:
        """What a loss in nats a token comes to in bits a byte of text, which no choice of tokenizer flatters."""
        return loss * self.num_targets / (self.num_bytes * math.log(2))

    @classmethod
    def of(cls, ids: Sequence[np.ndarray], separator_id: int, num_bytes: int = 0) -> "Corpus":
        """A corpus in memory, of documents that are already ids.

        >>> Corpus.of([np.array([5, 6]), np.array([7])], separator_id=0).tokens
        array([0, 5, 6, 0, 7, 0], dtype=uint32)
        """
        lengths = np.array([len(document) + 1 for document in ids], np.int64)
        separator = np.array([separator_id], np.uint32)
        parts = [part for document in ids for part in (separator, np.asarray(document, np.uint32))]
        return cls(np.concatenate([*parts, separator]), np.cumsum(lengths) - lengths, num_bytes)


@dataclasses.dataclass(frozen=True, eq=False)
class TextData:
    """Text ready to train on. Two runs with the same `fingerprint` (16 hex digits) see the same tokens."""

    train: Corpus
    heldout: Corpus
    tokenizer: Tokenizer
    fingerprint: str
    heldout_utf8: Any  # uint8[heldout.num_bytes], mapped from disk as `Corpus.tokens`

    def heldout_bytes(self, limit: int | None = None) -> bytes:
        """The held-out documents themselves, end to end, as UTF-8; at most the first `limit` bytes."""
        return self.heldout_utf8[:limit].tobytes()


class Joined:
    """Arrays [N], its `parts`, of one dtype as if they lay end to end, none copied: a number or a slice is read."""

    def __init__(self, parts: Sequence[np.ndarray]):
        """Raises AssertionError without a part."""
        assert parts, "there is a shard of every part"
        self.parts = [np.asarray(part) for part in parts]  # a slice of a plain view is quicker than of a memmap
        self._ends = list(itertools.accumulate(map(len, parts)))
        self.dtype = self.parts[0].dtype

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, key: int | slice) -> Any:
        """A number, or the array of a slice without a step: a view where it lies in one part.

        >>> Joined([np.array([1, 2]), np.array([3, 4, 5])])[1:4]
        array([2, 3, 4])
        """
        if not isinstance(key, slice):
            at = range(len(self))[key]
            return self[at : at + 1][0]
        start, stop, _ = slice(key.start, key.stop).indices(len(self))
        found, i = [], bisect.bisect_right(self._ends, start)
        while start < stop:
            part, begin = self.parts[i], self._ends[i] - len(self.parts[i])
            found.append(part[start - begin : stop - begin])
            start, i = self._ends[i], i + 1
        return found[0] if len(found) == 1 else np.concatenate([self.parts[0][:0], *found])


def write_stream(
    batches: Iterable[Sequence[tuple[bool, str]]],
    tokenizer: Tokenizer,
    tokens_file: IO[bytes],
    text_file: IO[bytes] | None = None,
    *,
    last: bool = True,
    told: Callable[[int], None] = lambda num_bytes: None,
) -> tuple[np.ndarray, int, int]:
    """Write `<sep> doc <sep> doc …`, and with `last` the separator that ends it.

    Args:
      batches: pieces of text, each with whether it starts a document.
      text_file: gets the text itself, as UTF-8.
      told: is told after each batch how many bytes of text are written.

    Returns:
      where documents start, int64[D]; the number of tokens; the number of bytes of text.
    """
    dtype = token_dtype(tokenizer)
    separator = np.array([tokenizer.separator_id], dtype).tobytes()
    starts = array("q")
    num_tokens = num_bytes = 0
    for batch in batches:
        ids = tokenizer.encode_batch([piece for _, piece in batch])
        for (first, piece), piece_ids in zip(batch, ids, strict=True):
            if first:
                starts.append(num_tokens)
                tokens_file.write(separator)
                num_tokens += 1
            tokens_file.write(piece_ids.astype(dtype).tobytes())
            num_tokens += len(piece_ids)
            utf8 = piece.encode()
            num_bytes += len(utf8)
            if text_file:
                text_file.write(utf8)
        told(num_bytes)
    if last:
        tokens_file.write(separator)
    return np.frombuffer(starts, np.int64), num_tokens + last, num_bytes


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """The narrower of uint16 and uint32 that holds every id."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


def fingerprint_of(files: Files) -> str:
    """16 hex digits that say what is in the files of a corpus, however they are laid out on disk."""
    return hashlib.blake2b(json.dumps(files).encode(), digest_size=8).hexdigest()


def sampled_checksum(size: int, read: Callable[[int, int], Any]) -> int:
    """CRC-32 of `size` bytes, or of 64 evenly spread MiB of many: quick, whatever the size.

    `read` gives the bytes from a place on, of a number that it may fall short of only at the end.
    """
    piece, checksum = 1 << 20, 0
    for place in range(0, size, max(piece, size // 64)):
        checksum = zlib.crc32(read(place, piece), checksum)
    return checksum


def sampled_checksum_of(path: Path) -> int:
    """`sampled_checksum` of a file."""
    with open(path, "rb") as file:

        def read(place: int, length: int) -> bytes:
            file.seek(place)
            return file.read(length)

        return sampled_checksum(path.stat().st_size, read)
