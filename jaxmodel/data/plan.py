"""The plan of a preparation: a first reading, which finds what is wrong, what is kept, and where everything lies."""

import codecs
import dataclasses
import hashlib
import itertools
import time
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmodel.data.sources import Documents, cut_between, jsonl_text, line_break, score, split_at, stream, unreadable
from jaxmodel.data.text import PIECE
from jaxmodel.data.tokenizer import stream_pieces
from jaxmodel.errors import InputError

EVERY = 5.0  # seconds between lines of progress
END = np.iinfo(np.int64).max
Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """What becomes of a document, whatever the others are (but for copies); see `prepare.Preparation`.

    Pieces of a text are cut where no normalization form joins across.
    """

    normalize: str = "none"
    dedupe: bool = False
    min_chars: int = 0

    def clean(self, text: str) -> str:
        """The text, or a piece of it, normalized."""
        form: Any = self.normalize
        return text if form == "none" else unicodedata.normalize(form, text)


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """Pieces of documents, in order.

    Attributes:
      rows: int64[N, 6]: number of the file, first and last byte there (of the line, in a .jsonl), first and last
        character therein, number of the document.
      firsts: bool[N], which of them start a document.
      last: whether nothing comes after.
    """

    rows: np.ndarray
    firsts: np.ndarray
    last: bool = True

    @property
    def num_bytes(self) -> int:
        return int((self.rows[:, 2] - self.rows[:, 1]).sum())

    def cut(self, size: int) -> "Iterator[Units]":
        """In runs of about `size` bytes, the same whenever the rows are."""
        lengths = self.rows[:, 2] - self.rows[:, 1]
        which = (np.cumsum(lengths) - lengths) // size
        edges = [*np.flatnonzero(np.diff(which, prepend=-1)).tolist(), len(which)]
        for start, stop in itertools.pairwise(edges):
            yield Units(self.rows[start:stop], self.firsts[start:stop], stop == len(which))


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Where the text of either part lies. `counts`: documents read, kept, and what became of some."""

    source: Documents
    cleaning: Cleaning
    parts: Mapping[str, Units]
    counts: Mapping[str, int]
    num_chars: int  # of the train part

    @property
    def notes(self) -> str:
        """What cleaning did, in words; nothing if it did nothing."""
        words = {
            "blank": "without text dropped",
            "short": f"of fewer than {self.cleaning.min_chars} characters dropped",
            "duplicates": "dropped as copies",
            "normalized": f"changed by {self.cleaning.normalize}",
        }
        told = [f"{self.counts[name]} {what}" for name, what in words.items() if self.counts[name]]
        return f"of {self.counts['documents']} documents: {', '.join(told)}" if told else ""

    def texts(self, units: Units) -> Iterator[tuple[bool, str, int]]:
        """Of each unit whether it starts a document, its cleaned text, and its bytes on disk."""
        rows = zip(units.rows.tolist(), units.firsts.tolist(), strict=True)
        for number, group in itertools.groupby(rows, key=lambda row: row[0][0]):
            path = self.source.files[number][1]
            with open(path, "rb") as file:
                for (_, start, stop, begin, end, _), first in group:
                    file.seek(start)
                    text = self._text(file.read(stop - start), path)[begin:end]
                    yield first, self.cleaning.clean(text), stop - start

    def _text(self, data: bytes, path: Path) -> str:
        try:
            return jsonl_text(data, path, 0, self.source.text_field) if path.suffix == ".jsonl" else data.decode()
        except (InputError, UnicodeDecodeError) as error:
            raise InputError(
                f"input: '{path}' has changed while it was read: let it be, and prepare it into another folder"
            ) from error

    def sample(self, size: int) -> tuple[Iterator[str], int]:
        """The train part's `pieces` of `size` characters, and the number of its characters."""

        def cut() -> Iterator[str]:
            for text in self._documents():
                yield from stream_pieces(text, size)

        return cut(), self.num_chars

    def _documents(self) -> Iterator[Iterable[str]]:
        """The train part's documents, each as its pieces; each is to be read before the next one."""
        following = self.texts(self.parts["train"])
        held = next(following, None)

        def rest() -> Iterator[str]:
            nonlocal held
            while held is not None:
                yield held[1]
                held = next(following, None)
                if held is not None and held[0]:
                    return

        while held is not None:
            yield rest()


def plan_text(source: Documents, cleaning: Cleaning, heldout: float, log: Log = print) -> Plan:
    """Read all once, and split what is kept as `Documents.split` does.

    Raises InputError for what is wrong with the text, and where nothing is left for one of the parts.
    """
    found = _Found(cleaning)
    said = time.monotonic()
    for number, (file_name, path) in enumerate(source.files):
        for name, rows in _documents_of(file_name, path, source.text_field):
            found.add(number, name, rows)
            if time.monotonic() > said + EVERY:
                said = time.monotonic()
                log(f"text: {found.num_bytes / 1e6:.0f} MB read")
    kept = found.kept()
    if not kept.any():
        what = "text" if kept.size == found.counts["blank"] else "document that is kept"
        raise InputError(f"data.path: {source.title} holds no {what}; give a file or folder that does")
    rows = np.frombuffer(found.rows, np.int64).reshape(-1, 6)
    rows = rows[kept[rows[:, 5]]]
    chars = np.frombuffer(found.chars, np.int64)
    if kept.sum() == 1:
        parts = _cut_in_two(source, rows, int(found.raw_chars[int(kept.argmax())]), 1 - heldout)
        num_chars = 0
    else:
        scores = np.frombuffer(found.scores, np.float64)
        threshold = split_at(scores[kept], heldout)
        held = scores < threshold
        parts = {"train": rows[~held[rows[:, 5]]], "heldout": rows[held[rows[:, 5]]]}
        num_chars = int(chars[kept & ~held].sum())
    units = {part: Units(each, np.diff(each[:, 5], prepend=-1) != 0) for part, each in parts.items()}
    plan = Plan(source, cleaning, units, found.counts, num_chars)
    if kept.sum() > 1:
        return plan
    for part in units:
        if not any(text.strip() for _, text, _ in plan.texts(units[part])):
            raise InputError(
                f"data.path: {source.title} holds too little text to hold some of it out "
                f"(nothing is left for {part}); give more text, or another data.heldout"
            )
    num_chars = sum(len(text) for _, text, _ in plan.texts(units["train"]))
    return dataclasses.replace(plan, num_chars=num_chars)


class _Found:
    """What the first reading finds, in flat arrays: some hundred bytes a document, however long it is."""

    def __init__(self, cleaning: Cleaning):
        self._cleaning = cleaning
        self.rows, self.chars, self.raw_chars, self.scores = array("q"), array("q"), array("q"), array("d")
        self._digests, self._dropped = bytearray(), array("b")
        self.counts = {name: 0 for name in ("documents", "blank", "short", "duplicates", "normalized")}
        self.num_bytes = 0

    def add(self, number: int, name: str, rows: Iterable[tuple[int, int, str]]) -> None:
        """A document of file `number`: pieces of it, each with its first and last byte there."""
        cleaning, document, before = self._cleaning, len(self.scores), len(self.rows)
        digest, raw, chars, blank, changed = hashlib.blake2b(digest_size=16), 0, 0, True, False
        for start, stop, text in rows:
            self.rows.extend((number, start, stop, 0, END, document))
            self.num_bytes += stop - start
            raw += len(text)
            cleaned = cleaning.clean(text)
            changed |= cleaned != text
            chars += len(cleaned)
            blank = blank and not cleaned.strip()
            if cleaning.dedupe:
                digest.update(cleaned.encode())
        why = "blank" if blank else "short" if chars < cleaning.min_chars else None
        self.counts["documents"] += 1
        if why:
            self.counts[why] += 1
            del self.rows[before:]
        else:
            self.counts["normalized"] += changed
        self._dropped.append(why is not None)
        self.chars.append(chars)
        self.raw_chars.append(raw)
        self.scores.append(score(name))
        if cleaning.dedupe:
            self._digests += digest.digest()

    def kept(self) -> np.ndarray:
        """Which documents are kept, bool[N]: of those that are equal, the first."""
        kept = ~np.frombuffer(self._dropped, bool)
        if self._cleaning.dedupe and kept.any():
            candidates = np.flatnonzero(kept)
            digests = np.frombuffer(self._digests, "V16").view("S16")[candidates]
            first = candidates[np.unique(digests, return_index=True)[1]]
            kept = np.zeros(len(kept), bool)
            kept[first] = True
            self.counts["duplicates"] = len(candidates) - len(first)
        return kept


def _documents_of(name: str, path: Path, text_field: str) -> Iterator[tuple[str, Iterator[tuple[int, int, str]]]]:
    """The documents of one file: their names, and their pieces, each with its first and last byte in the file."""
    if path.suffix != ".jsonl":
        yield name, _pieces_of(path)
        return
    at = 0
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    text = jsonl_text(line, path, number, text_field)
                    yield f"{name}:{number}", iter([(at, at + len(line), text)])
                at += len(line)
    except OSError as error:
        raise unreadable(path, error) from error


def _pieces_of(path: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int, str]]:
    """The `pieces` of a text file, or of its bytes from `start` to `stop`."""
    at = start or _mark(path)
    for piece in stream_pieces(stream(path, start, stop), PIECE):
        size = len(piece.encode())
        yield at, at + size, piece
        at += size


def _mark(path: Path) -> int:
    """The bytes of the byte order mark of UTF-8, if there is one."""
    try:
        with open(path, "rb") as file:
            return 3 * (file.read(3) == codecs.BOM_UTF8)
    except OSError as error:
        raise unreadable(path, error) from error


def _cut_in_two(source: Documents, rows: np.ndarray, num_chars: int, fraction: float) -> dict[str, np.ndarray]:
    """The rows of a single document on either side of where `Documents.split` cuts it."""
    number, start, stop, *_ = rows[0].tolist()
    path = source.files[number][1]
    if path.suffix == ".jsonl":
        with open(path, "rb") as file:
            file.seek(start)
            text = jsonl_text(file.read(stop - start), path, 0, source.text_field)
        at = line_break(text, fraction)
        both = [(number, start, stop, 0, at, 0)], [(number, start, stop, at, END, 0)]
    else:
        cut = _byte_of_cut(path, num_chars, fraction)
        spans = (start, cut), (cut, int(rows[-1, 2]))
        both = [[(number, a, b, 0, END, 0) for a, b, _ in _pieces_of(path, *span)] for span in spans]
    return {part: np.array(each, np.int64) for part, each in zip(("train", "heldout"), both, strict=True)}


def _byte_of_cut(path: Path, num_chars: int, fraction: float) -> int:
    """What `line_break` says of a text, in bytes, without all of it in memory."""
    low, place = cut_between(num_chars, fraction)
    first, fallback, found = 0, 0, None  # the first character of a piece
    for start, _, piece in _pieces_of(path):
        at = piece.rfind("\n", max(low - first, 0), max(place - first, 0))
        if at >= 0:
            found = start + len(piece[: at + 1].encode())
        if first <= place:
            fallback = start + len(piece[: place - first].encode())
        first += len(piece)
    return fallback if found is None else found
