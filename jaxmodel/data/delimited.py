"""Delimited text (.csv, .tsv) as columns of text that know which line of which file each row came from."""

import csv
import dataclasses
import gzip
import hashlib
import io
import itertools
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmodel.config import closest
from jaxmodel.data.sources import decode, matches, near, place, unreadable, walk
from jaxmodel.errors import InputError

ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
DELIMITERS = {"tab": "\t", "semicolon": ";", "comma": ","}
SAMPLE = 20  # rows looked at to find the delimiter


def is_table(path: str | os.PathLike[str], pattern: str = "*") -> bool:
    """Whether a path names a table: a file called so, or a folder in which all that matches is called so."""
    root = place(path)
    if not root.is_dir():
        return root.name.lower().endswith(ENDINGS)
    names = [name for name, _ in walk(root, lambda name: matches(name, pattern), set())]
    return bool(names) and all(name.lower().endswith(ENDINGS) for name in names)


@dataclasses.dataclass(frozen=True, eq=False)
class Columns:
    """A table as text: `columns["age"]` is object[N] of str, without blanks at the ends.

    Attributes:
      title: what to call it in a message.
      flag: the flag that led here, for messages.
      columns: by name, in the order of the file.
      files: where the rows came from, `origins` int32[N, 2] being each row's file and line.
      unnamed: places (from 1) of columns whose name is empty, as an index is written; they are left out.
      digest: 16 hex digits, the same for the same contents.
    """

    title: str
    flag: str
    columns: Mapping[str, np.ndarray]
    files: tuple[str, ...]
    origins: np.ndarray
    unnamed: tuple[int, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, name: str) -> np.ndarray:
        """A column by name; InputError, which names the nearest, where there is none."""
        if name not in self.columns:
            meant = closest(name, self.columns)
            hint = f"did you mean {meant}?" if meant else f"it has {_few(list(self.columns))}"
            raise InputError(f"{self.flag}: {self.title} has no column {name}: {hint}")
        return self.columns[name]

    def take(self, rows: np.ndarray) -> "Columns":
        """Some of the rows: int64[M], or bool[N]."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return dataclasses.replace(self, columns=columns, origins=self.origins[rows])

    def where(self, row: int) -> str:
        """Which line of which file a row came from."""
        file, line = self.origins[row]
        return f"line {line} of '{self.files[file]}'"


class Format(NamedTuple):
    """How files are to be read.

    Attributes:
      header: whether the first line names the columns; they are called "0", "1", … if not.
      skip_rows: lines to skip at the top of each file.
      delimiter: "comma", "semicolon" or "tab"; None: found out.
    """

    header: bool = True
    skip_rows: int = 0
    delimiter: str | None = None


def read_table(
    path: str | os.PathLike[str], form: Format | None = None, *, pattern: str = "*", flag: str = "data.path"
) -> Columns:
    """The columns of a .csv or .tsv file, gzipped or not, or of all in a folder, which must have one header.

    Args:
      path: a file or folder; `package:NAME/FILE` is one that an installed Python package brings.
      form: how the files are to be read; by default as `Format()`.
      pattern: which files of a folder, as a glob.
      flag: what led here, for messages.

    Raises:
      InputError: a file that is missing, empty, binary or not UTF-8; a row with too few or too many fields; two
        columns of one name.
    """
    root, form = place(path, flag), form or Format()
    files = _files(root, pattern, flag)
    digest = hashlib.blake2b(digest_size=8)
    names: list[str] = []
    rows: list[list[str]] = []
    origins: list[tuple[int, int]] = []
    for i, file in enumerate(files):
        data = _contents(file, flag)
        digest.update(data)
        lines = _records(decode(data, f"'{file}'", flag), form, file, flag)
        first = next(lines, None)
        if first is None:
            raise InputError(f"{flag}: '{file}' holds no rows: give a table of at least one")
        if form.header:
            here = [name.strip() for name in first[1]]
        else:
            here, lines = [str(number) for number in range(len(first[1]))], itertools.chain([first], lines)
        if names and here != names:
            raise InputError(
                f"{flag}: '{file}' has other columns ({_few(here)}) than '{files[0]}' ({_few(names)}): "
                "give files of one kind, perhaps by data.pattern"
            )
        names = here
        for line, fields in lines:
            if len(fields) != len(names):
                raise InputError(
                    f"{flag}: line {line} of '{file}' has {len(fields)} fields, not {len(names)} as the first "
                    "line: mend it, or put quotes around a field that holds a delimiter"
                )
            rows.append(fields)
            origins.append((i, line))
    if not rows:
        raise InputError(f"{flag}: '{root}' holds a header and no rows: give a table of at least one")
    double = next((name for i, name in enumerate(names) if name and name in names[:i]), None)
    if double is not None:
        raise InputError(f"{flag}: '{files[0]}' has two columns called {double}: rename one of them")
    columns = {
        name: np.array([field.strip() for field in column], object)
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
        if name
    }
    digest.update("\0".join(names).encode())
    return Columns(
        f"'{os.fspath(path)}'",
        flag,
        columns,
        tuple(map(str, files)),
        np.array(origins, np.int32),
        tuple(i for i, name in enumerate(names, 1) if not name),
        digest.hexdigest(),
    )


def _files(root: Path, pattern: str, flag: str) -> list[Path]:
    if root.is_dir():

        def wanted(name: str) -> bool:
            return name.lower().endswith(ENDINGS) and matches(name, pattern)

        found = [path for _, path in walk(root, wanted, set())]
        if not found:
            which = "" if pattern == "*" else f" that match data.pattern={pattern}"
            raise InputError(f"{flag}: the folder '{root}' holds no tables ({', '.join(ENDINGS)}){which}")
        return found
    if not root.exists():
        hint = near(root, "give a .csv or .tsv file, or a folder of them")
        raise InputError(f"{flag}: '{root}' does not exist; {hint}")
    return [root]


def _contents(file: Path, flag: str) -> bytes:
    try:
        data = file.read_bytes()
        if file.name.lower().endswith(".gz"):
            data = gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{flag}: '{file}' is no gzip file, or a damaged one ({error}): fetch it again") from error
    except OSError as error:
        raise unreadable(file, error, flag) from error
    if not data.strip():
        raise InputError(f"{flag}: '{file}' is empty: give a table of at least one row")
    return data


def _records(text: str, form: Format, file: Path, flag: str) -> Iterator[tuple[int, list[str]]]:
    """The line where each row starts, and its fields; blank lines are no rows."""

    def lines() -> Iterator[str]:
        return itertools.islice(io.StringIO(text, newline=""), form.skip_rows, None)

    line = form.skip_rows + 1
    try:
        name = form.delimiter or _found_delimiter(lines)
        reader = csv.reader(lines(), delimiter=DELIMITERS[name], skipinitialspace=True, strict=True)
        for fields in reader:
            if fields:
                yield line, fields
            line = form.skip_rows + reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{flag}: line {line} of '{file}' cannot be read as fields ({error}): look for a quote that is left open"
        ) from error


def _found_delimiter(lines: Callable[[], Iterator[str]]) -> str:
    """The first of tab, semicolon and comma that cuts the first rows into equally many fields, more than one."""
    widths = {}
    for name, delimiter in DELIMITERS.items():
        rows = filter(None, csv.reader(lines(), delimiter=delimiter, skipinitialspace=True))
        widths[name] = [len(fields) for fields in itertools.islice(rows, SAMPLE)] or [0]
        if widths[name][0] > 1 and len(set(widths[name])) == 1:
            return name
    # Ragged, or a single column: what cuts the first row most often, so that the error is about that.
    return max(widths, key=lambda name: (widths[name][0], name == "comma"))


def _few(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
