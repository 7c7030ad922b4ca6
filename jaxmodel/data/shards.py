"""Prepared folders: tokens in shards, the tokenizer, and an index of them all; `data/prepare.py` makes them.

DIR/
    index.json             settings, marks and all shards of both parts, written last: without it a folder is not ready
    tokenizer.json
    train-00000.tokens     uint16 or uint32: one after the other they are `<sep> doc <sep> doc … <sep>`
    train-00000.starts     int64: each document's separator, counted from the shard's first token
    heldout-00000.txt      the text itself, of the held-out part
    journal.jsonl          while it is being made: what is complete already
"""

import dataclasses
import errno
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmodel.data.corpus import Corpus, Files, Joined, TextData, fingerprint_of, sampled_checksum, sampled_checksum_of
from jaxmodel.data.sources import place
from jaxmodel.data.tokenizer import Tokenizer
from jaxmodel.errors import InputError

FORMAT = 1
INDEX = "index.json"
JOURNAL = "journal.jsonl"
TOKENIZER = "tokenizer.json"
PARTS = ("train", "heldout")
AGAIN = "run recipes.prepare again with the same flags, what is whole is kept"
ANEW = "delete the folder and prepare the text anew"
Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Shard:
    """What one shard holds; `files` are size and CRC-32 of each of its files, by the end of its name."""

    name: str
    documents: int
    tokens: int
    num_bytes: int
    files: Mapping[str, Sequence[int]]

    def wrong(self, folder: Path, sizes_only: bool = False) -> str | None:
        """The first of its files that is not as it was written, and how; None if all are."""
        for end, (size, checksum) in self.files.items():
            path = folder / f"{self.name}{end}"
            if not path.is_file():
                return f"'{path}' is missing"
            if path.stat().st_size != size:
                return f"'{path}' is damaged ({path.stat().st_size} bytes instead of {size})"
            if not sizes_only and checksum_of(path) != checksum:
                return f"'{path}' is damaged (its checksum is another)"
        return None


@dataclasses.dataclass(frozen=True)
class Index:
    """What a prepared folder holds, as `index.json` tells it.

    Attributes:
      settings: the flags that it was made with, and a mark of the text.
      tokenizer: CRC-32 of tokenizer.json.
      dtype: of the tokens.
      parts: the shards of "train" and "heldout", in their order.
      counts: documents that were read, and what became of some.
      files: as they are in the cache of `prepare_text`, had the text been prepared there; see `fingerprint_of`.
    """

    settings: Mapping[str, Any]
    tokenizer: int
    dtype: str
    parts: Mapping[str, Sequence[Shard]]
    counts: Mapping[str, int]
    files: Files

    def to_json(self) -> str:
        """`read_index` reads it back."""
        facts = {"format": FORMAT, "fingerprint": fingerprint_of(self.files)}
        for part, shards in self.parts.items():
            facts[part] = {
                name: sum(getattr(shard, name) for shard in shards) for name in ("documents", "tokens", "num_bytes")
            }
        return json.dumps(facts | dataclasses.asdict(self), indent=1)


def read_index(folder: Path, flag: str = "data.path") -> Index:
    """The index of a prepared folder; InputError where there is none, or none that can be read."""
    try:
        facts = json.loads((folder / INDEX).read_bytes())
        if facts["format"] != FORMAT:
            raise InputError(
                f"{flag}: '{folder}' was prepared in format {facts['format']}, this version reads {FORMAT}: "
                "prepare the text anew, into another folder"
            )
        parts = {part: [Shard(**shard) for shard in facts["parts"][part]] for part in PARTS}
        return Index(
            parts=parts,
            **{field.name: facts[field.name] for field in dataclasses.fields(Index) if field.name != "parts"},
        )
    except FileNotFoundError:
        raise InputError(f"{flag}: '{folder}' is only half prepared: {AGAIN}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{flag}: '{folder / INDEX}' is damaged: {ANEW}") from error


def is_prepared(path: str | Path) -> bool:
    """Whether there is a prepared folder, be it a half done one."""
    folder = place(path)
    return (folder / INDEX).is_file() or (folder / JOURNAL).is_file()


def open_shards(options: Any, tokenizer: Tokenizer | None = None, log: Log = print) -> TextData:
    """The tokens of the prepared folder `options.path`, mapped into memory, as `prepare_text` gives those of a text.

    Raises InputError for what is damaged, for options other than the folder was prepared with (one that is left at its
    default says nothing), and for another `tokenizer`.
    """
    folder = place(options.path)
    index = read_index(folder)
    _check_options(options, index.settings, folder)
    path = folder / TOKENIZER
    if not path.is_file() or checksum_of(path) != index.tokenizer:
        raise InputError(f"data.path: '{path}' is missing or damaged: {AGAIN}")
    own = Tokenizer.from_json(path.read_text(encoding="utf-8"))
    if tokenizer is not None and tokenizer.to_json() != own.to_json():
        raise InputError(
            f"data.path: '{folder}' was prepared with another tokenizer than the checkpoint's: prepare the text anew "
            "with --tokenizer=CHECKPOINT, or name the text itself"
        )
    _check_shards(index, folder, sizes_only=True)
    data, files = assemble(folder, index.parts, index.dtype, own)
    if files != {name: list(marks) for name, marks in index.files.items()}:
        _check_shards(index, folder)
        raise InputError(f"data.path: '{folder / INDEX}' is damaged: {ANEW}")
    log(
        f"text: '{folder}', prepared before: {len(index.parts['train'])} shards, {len(data.train.tokens) / 1e6:.2f} M "
        f"tokens to train on, tokenizer {index.settings['tokenizer']} of {own.vocab_size} tokens"
    )
    return data


def assemble(
    folder: Path, parts: Mapping[str, Sequence[Shard]], dtype: str, tokenizer: Tokenizer
) -> tuple[TextData, Files]:
    """The shards as one text, and the marks of its files as they are in the cache of `prepare_text`."""
    corpora, files = ({}, {TOKENIZER: [(folder / TOKENIZER).stat().st_size, sampled_checksum_of(folder / TOKENIZER)]})
    text = None
    for part, shards in parts.items():
        maps = [_mapped(folder / f"{shard.name}.tokens") for shard in shards]
        before = np.cumsum([0, *(shard.tokens for shard in shards)])
        starts = [
            np.fromfile(folder / f"{shard.name}.starts", np.int64) + begin
            for shard, begin in zip(shards, before[:-1], strict=True)
        ]
        starts = np.concatenate(starts)
        corpora[part] = Corpus(
            Joined([each.view(dtype) for each in maps]), starts, sum(shard.num_bytes for shard in shards)
        )
        files[f"{part}.tokens"] = _marks(Joined(maps))
        files[f"{part}.starts"] = _marks(starts.view(np.uint8))
        if part == "heldout":
            text = Joined([_mapped(folder / f"{shard.name}.txt") for shard in shards])
            files["heldout.txt"] = _marks(text)
    files = dict(sorted(files.items()))
    return TextData(corpora["train"], corpora["heldout"], tokenizer, fingerprint_of(files), text), files


def checksum_of(path: Path) -> int:
    """CRC-32 of all of a file."""
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.memmap(path, np.uint8, "r"))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise InputError(
            f"data.path: '{path.parent}' holds more shards than a process may open files: prepare the text with a "
            "larger --shard_mb, or raise ulimit -n"
        ) from error


def _marks(data: Any) -> list[int]:
    return [len(data), sampled_checksum(len(data), lambda start, length: data[start : start + length])]


def _check_shards(index: Index, folder: Path, sizes_only: bool = False) -> None:
    for shard in (shard for part in PARTS for shard in index.parts[part]):
        if why := shard.wrong(folder, sizes_only):
            raise InputError(f"data.path: {why}: {AGAIN}")


def _check_options(options: Any, settings: Mapping[str, Any], folder: Path) -> None:
    """InputError, which names both, for an option that contradicts what the folder was prepared with."""
    unsaid = {field.name: field.default for field in dataclasses.fields(options)}
    for name in ("tokenizer", "vocab_size", "heldout", "pattern", "text_field"):
        asked, made = getattr(options, name), settings[name]
        if name == "vocab_size" and settings["tokenizer"] != "bpe":
            continue
        if asked not in (unsaid[name], made):
            raise InputError(
                f"data.{name}={asked} contradicts data.path={options.path}, which was prepared with "
                f"{name}={made}: leave data.{name} out, or prepare the text anew"
            )
