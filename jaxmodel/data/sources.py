"""Where text comes from: a file, a folder, a .jsonl or Python's own sources, as documents in fixed order."""

import codecs
import dataclasses
import difflib
import fnmatch
import hashlib
import importlib.util
import json
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmodel.errors import InputError

PACKAGE = "package:"
UTF16 = (b"\xff\xfe", b"\xfe\xff")  # its byte order marks
DISTRIBUTIONS = {"sklearn": "scikit-learn", "skimage": "scikit-image"}  # that are not called as their package
OTHERWISE = "give a text file, a folder, a .jsonl, or nothing for the built-in text"
NOT_BUILT_IN = {"test", "tests", "site-packages", "dist-packages", "__pycache__"}


class Document(NamedTuple):
    """A text and its name, the same on every machine: the relative path, with `:line` within a .jsonl."""

    name: str
    text: str


@dataclasses.dataclass(frozen=True)
class Documents:
    """Documents in a fixed order, read anew by every iteration; see `documents` for the errors.

    Documents without text are left out. One document at a time is in memory.
    """

    title: str  # what to call them in a message
    files: tuple[tuple[str, Path], ...]  # name and place
    text_field: str = "text"
    scores: tuple[float, float] = (0.0, 1.0)  # only documents whose name's hash falls in here
    span: tuple[float, float] = (0.0, 1.0)  # only this part of each

    def __iter__(self) -> Iterator[Document]:
        low, high = self.scores
        for file_name, path in self.files:
            for name, read in _entries(file_name, path, self.text_field):
                if low <= score(name) < high:
                    text = _part(read(), self.span)
                    if text.strip():
                        yield Document(name, text)

    def split(self, heldout: float) -> "tuple[Documents, Documents]":
        """Train and held-out documents, neither empty below 1: about `heldout` of all, by the hash of their names.

        A single document is cut at a line break instead, and its tail held out. Reads everything once, so
        that what is wrong with it is said before any long work. At 1 all is held out, and nothing is for training.
        Raises InputError if there is no text.
        """
        if not 0 < heldout <= 1:
            raise InputError(f"data.heldout={heldout}: give the fraction to hold out, above 0 and at most 1")
        scores = np.fromiter((score(document.name) for document in self), np.float64)
        if scores.size == 0:
            raise InputError(f"data.path: {self.title} holds no text; give a file or folder that does")
        if heldout == 1:
            return dataclasses.replace(self, scores=(1.0, 1.0)), self
        if scores.size == 1:
            cut = 1 - heldout
            return dataclasses.replace(self, span=(0.0, cut)), dataclasses.replace(self, span=(cut, 1.0))
        threshold = split_at(scores, heldout)
        return (dataclasses.replace(self, scores=(threshold, 1.0)), dataclasses.replace(self, scores=(0.0, threshold)))

    def listing(self) -> list[Any]:
        """What changes when the documents do, without reading them: places, sizes and times of change."""
        stats = ((os.path.abspath(path), path.stat()) for _, path in self.files)
        return [self.text_field, [(place, stat.st_size, stat.st_mtime_ns) for place, stat in stats]]


def documents(path: str | os.PathLike[str] | None = None, *, text_field: str = "text", pattern: str = "*") -> Documents:
    """The documents at `path`.

    A `.jsonl` is a document a line, its text in `text_field`; any other file is one document; a folder is
    all its files, sorted, without hidden ones and those whose name and relative path do not match `pattern`.
    None is the built-in text: the sources of Python's own standard library, without its tests.

    Raises InputError, here or while reading, for what is missing, empty, binary, not UTF-8, or not the JSON
    that was promised.
    """
    if path is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        files = tuple(walk(root, lambda name: name.endswith(".py"), NOT_BUILT_IN))
        title = f"the standard library of Python {sys.version_info.major}.{sys.version_info.minor}"
        if not files:
            raise InputError(f"data.path: {title} came without its sources; give a text file or folder")
        return Documents(title, files)

    root = place(path)
    if root.is_dir():
        files = tuple(walk(root, lambda name: matches(name, pattern), set()))
        if not files:
            what = "no text" if pattern == "*" else f"no text in files that match data.pattern={pattern}"
            raise InputError(f"data.path: the folder '{root}' holds {what}; give a file or folder that does")
        return Documents(f"'{root}'", files, text_field)
    if not root.exists():
        raise InputError(f"data.path: '{root}' does not exist; {near(root, OTHERWISE)}")
    if not root.is_file():
        raise InputError(f"data.path: '{root}' is a pipe or a device; save it to a file first, it is read twice")
    return Documents(f"'{root}'", ((root.name, root),), text_field)


def place(path: str | os.PathLike[str], flag: str = "data.path") -> Path:
    """Where a path leads; `package:NAME/FILE` is a file or folder inside an installed Python package.

    The package is found without importing it. Raises InputError, in the name of `flag`, if it is not installed
    (and says what to install), or holds no such file.
    """
    text = os.fspath(path)
    if not text.startswith(PACKAGE):
        return Path(text).expanduser()
    name, _, inner = text.removeprefix(PACKAGE).partition("/")
    if not name.isidentifier():
        raise InputError(f"{flag}={text}: write {PACKAGE}NAME/FILE, with the NAME that Python imports")
    spec = importlib.util.find_spec(name)  # a top level: nothing is imported
    if spec is None:
        raise InputError(
            f"{flag}={text}: the package {name} is not installed: pip install {DISTRIBUTIONS.get(name, name)}"
        )
    folders = list(spec.submodule_search_locations or ())
    found = next((each for folder in folders if (each := Path(folder, inner)).exists()), None)
    if found is None:
        hint = near(Path(folders[0], inner), f"look into {folders[0]}") if folders else "it is a single module"
        raise InputError(f"{flag}={text}: the package {name} holds no {inner}; {hint}")
    return found


def walk(root: Path, wanted: Callable[[str], bool], skipped: set[str]) -> Iterator[tuple[str, Path]]:
    """Non-empty, visible files below `root` in the order of their names."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in skipped]
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            name = path.relative_to(root).as_posix()
            if wanted(name) and path.is_file() and path.stat().st_size:
                found.append((name, path))
    return iter(sorted(found))


def matches(name: str, pattern: str) -> bool:
    """Whether a relative path, or its last part, is of a glob."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name.rpartition("/")[2], pattern)


def near(path: Path, otherwise: str) -> str:
    """The end of an error about a path that leads nowhere: its neighbour of a similar name, or `otherwise`."""
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    if close:
        return f"did you mean '{path.parent / close[0]}'?"
    return otherwise


def split_at(scores: np.ndarray, heldout: float) -> float:
    """The score, of two and more, below which documents are held out: the lowest is, the highest is not."""
    scores = np.sort(scores)
    return float(np.clip(heldout, scores[1], scores[-1]))


def score(name: str) -> float:
    """A hash of `name` in [0, 1), the same on every machine (Python's own is salted)."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=6).digest()) / 2**48


def _part(text: str, span: tuple[float, float]) -> str:
    return text[line_break(text, span[0]) : line_break(text, span[1])]


def line_break(text: str, fraction: float) -> int:
    """Where to cut `text`: after the last line break before `fraction`, unless that doubles what follows."""
    if fraction in (0, 1):
        return int(fraction) * len(text)
    low, place = cut_between(len(text), fraction)
    return text.rfind("\n", low, place) + 1 or place


def cut_between(length: int, fraction: float) -> tuple[int, int]:
    """Of a text of `length` characters, where the line break after which to cut is looked for, backwards."""
    place = min(max(round(length * fraction), 1), length - 1)
    return max(2 * place - length, 0), place


def _entries(name: str, path: Path, text_field: str) -> Iterator[tuple[str, Callable[[], str]]]:
    """The documents of one file: their names, and how to read each."""
    if path.suffix != ".jsonl":
        yield name, lambda: decode(_read(path), f"'{path}'")
        return
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield (
                        f"{name}:{number}",
                        lambda line=line, number=number: jsonl_text(line, path, number, text_field),
                    )
    except OSError as error:
        raise unreadable(path, error) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError, flag: str = "data.path") -> InputError:
    """The error to raise where the system does not let a file be read."""
    return InputError(f"{flag}: cannot read '{path}': {error.strerror}; see to its permissions")


def decode(data: bytes, where: str, flag: str = "data.path", at: int = 0) -> str:
    """UTF-8, without a byte order mark; `where`, the flag that led there and the place of `data` are for the error."""
    if not at and data.startswith(UTF16):
        raise InputError(f"{flag}: {where} is UTF-16, not UTF-8; convert it: iconv -f utf-16 -t utf-8")
    if (zero := data.find(b"\0")) >= 0:
        raise InputError(
            f"{flag}: {where} is binary, not text (byte {at + zero} is zero); "
            "leave it out, in a folder with a data.pattern such as *.txt"
        )
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{flag}: {where} is not UTF-8 (byte {at + error.start} is 0x{data[error.start]:02x}); "
            "convert it, perhaps with iconv -f latin1 -t utf-8, or leave it out with data.pattern"
        ) from error


def stream(path: Path, start: int = 0, stop: int | None = None, block: int = 1 << 20) -> Iterator[str]:
    """A text file, or its bytes from `start` to `stop`, in blocks: what `decode` says of the whole, errors too."""
    where, decoder = f"'{path}'", codecs.getincrementaldecoder("utf-8")()
    try:
        with open(path, "rb") as file:
            file.seek(start)
            at, end = start, path.stat().st_size if stop is None else stop
            while at < end:
                data = file.read(min(block, end - at))
                if not data:
                    break  # it has been cut meanwhile
                pending = decoder.getstate()[0]
                if (not at and data.startswith(UTF16)) or b"\0" in data:
                    decode(data, where, at=at)
                try:
                    text = decoder.decode(data, at + len(data) >= end)
                except UnicodeDecodeError:
                    decode(pending + data, where, at=at - len(pending))
                    raise
                yield text if at else text.removeprefix("\ufeff")
                at += len(data)
    except OSError as error:
        raise unreadable(path, error) from error


def jsonl_text(line: bytes, path: Path, number: int, text_field: str) -> str:
    """The text that a line of a .jsonl holds; InputError, which names the line, if there is none."""
    where = f"line {number} of '{path}'"
    try:
        record = json.loads(decode(line, where))
    except json.JSONDecodeError as error:
        raise InputError(f"data.path: {where} is not JSON ({error.msg}); give an object a line") from error
    if not isinstance(record, dict):
        raise InputError(f"data.path: {where} is a {type(record).__name__}; give a JSON object a line")
    if text_field not in record:
        fields = ", ".join(sorted(record)) or "none"
        raise InputError(f"data.path: {where} has no field '{text_field}'; set data.text_field (it has: {fields})")
    text = record[text_field]
    if not isinstance(text, str):
        kind = type(text).__name__
        raise InputError(f"data.path: the field '{text_field}' in {where} is a {kind}; give a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, UTF-8 cannot
        raise InputError(
            f"data.path: the field '{text_field}' in {where} holds half a surrogate pair "
            f"(character {error.start}); write the whole character"
        ) from error
    return text
