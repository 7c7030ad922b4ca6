"""Text made ready once: split, tokenised, kept on disk, and mapped into memory from there on."""

import contextlib
import dataclasses
import fcntl
import gzip
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxmodel.data.corpus import Corpus, TextData, fingerprint_of, sampled_checksum_of, token_dtype, write_stream
from jaxmodel.data.shards import is_prepared, open_shards
from jaxmodel.data.sources import Document, Documents, documents
from jaxmodel.data.tokenizer import ByteTokenizer, Tokenizer, pieces, train_bpe
from jaxmodel.errors import InputError

FORMAT = 1  # a new number abandons all that earlier versions have cached
HELDOUT = 0.05  # of the documents, where nothing else is said
PIECE = 1 << 20  # characters encoded at once: bounds the memory one long document takes
BATCH = 4 * PIECE
SAMPLE = 1 << 14  # characters of each piece that a tokenizer is trained on
Log = Callable[[str], None]


def gzip_bits_per_byte(data: bytes) -> float:
    """What `gzip -9` needs for each byte of `data`, in bits: the bar a language model has to clear.

    >>> gzip_bits_per_byte(bytes(1000))
    0.232
    """
    return 8 * len(gzip.compress(data, 9, mtime=0)) / len(data)


def prepare_text(
    options: Any, tokenizer: Tokenizer | None = None, cache: str | os.PathLike[str] | None = None, log: Log = print
) -> TextData:
    """Train and held-out tokens of the text that `options` name, from the cache if they are there.

    `options` is a `jaxmodel.options.Data`, or anything with its `path`, `pattern`, `text_field`, `heldout`,
    `tokenizer` ("byte", "bpe" or a tokenizer.json), `vocab_size` and `cache`. A `tokenizer` given here comes
    before the one they name; a "bpe" is trained on the train part alone. The cache is `cache`,
    `options.cache`, or ~/.cache/jaxmodel; several processes may share it, and what is damaged there is made
    anew. `log` gets lines of progress. Raises InputError for what is wrong with the text or the options.

    What `recipes.prepare` made of a text is found where `options.path` leads, and needs none of this; see `shards`.
    """
    if options.path is not None and is_prepared(options.path):
        return open_shards(options, tokenizer, log)
    source = documents(options.path, text_field=options.text_field, pattern=options.pattern)
    if options.heldout is None:
        options = dataclasses.replace(options, heldout=HELDOUT)
    tokenizer = tokenizer or named_tokenizer(options.tokenizer)

    def key_of(recipe: str) -> str:
        what = [FORMAT, source.listing(), options.heldout, recipe]
        return hashlib.blake2b(json.dumps(what).encode(), digest_size=12).hexdigest()

    key = key_of(tokenizer.to_json() if tokenizer else f"bpe {options.vocab_size}")
    folder = Path(cache or options.cache or _home()) / "text"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data = _load(folder / key, log)
        if data is not None:
            log(f"text: {source.title}, tokenised before: '{folder / key}'")
        else:
            with _locked(folder / f"{key}.lock"):
                data = _load(folder / key, log) or _build(source, tokenizer, options, folder / key, log)
            if tokenizer is None:
                # Whoever evaluates brings the tokenizer that was trained here: these are its tokens too.
                with contextlib.suppress(FileExistsError):
                    os.symlink(key, folder / key_of(data.tokenizer.to_json()))
    except OSError as error:
        raise InputError(
            f"data.cache: cannot keep tokens in '{folder}': {error.strerror}; set data.cache to another one"
        ) from error
    return data


def _home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxmodel"


def named_tokenizer(name: str) -> Tokenizer | None:
    """The tokenizer of that name; None for one that is still to be trained."""
    if name == "bpe":
        return None
    if name == "byte":
        return ByteTokenizer()
    path = Path(name).expanduser()
    if path.is_dir():  # of a tokenizer, of a checkpoint or an export, or of a run
        inside = [path / "tokenizer.json", *sorted(path.glob("checkpoints/*/tokenizer.json"))]
        path = next((file for file in inside if file.is_file()), path)
    if not path.is_file():
        raise InputError(f"data.tokenizer={name}: give byte, bpe, or the place of a tokenizer.json")
    return Tokenizer.from_json(path.read_text(encoding="utf-8", errors="replace"))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process of this machine through at a time, where the file system has locks.

    Without, all may do the same work at once; an entry is complete all the same, for it arrives by a rename.
    """
    with open(path, "w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(source: Documents, tokenizer: Tokenizer | None, options: Any, entry: Path, log: Log) -> TextData:
    log(f"text: reading {source.title}")
    for left in entry.parent.glob(f"{entry.name}-*"):  # by a process that was killed, unless it is recent
        if left.stat().st_mtime < time.time() - 24 * 3600:
            shutil.rmtree(left, ignore_errors=True)
    train, heldout = source.split(options.heldout)
    if tokenizer is None and options.heldout == 1:
        raise InputError("data.heldout=1 leaves no text to train a tokenizer on: give data.tokenizer")
    if tokenizer is None:
        tokenizer = _trained(train, options.vocab_size, log)
    with tempfile.TemporaryDirectory(prefix=f"{entry.name}-", dir=entry.parent, ignore_cleanup_errors=True) as name:
        new, old = Path(name, "new"), Path(name, "old")
        new.mkdir()
        (new / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        parts = {
            "train": _write(train, "train", tokenizer, new, log),
            "heldout": _write(heldout, "heldout", tokenizer, new, log),
        }
        for part, facts in parts.items():
            if not facts["num_bytes"] and (part, options.heldout) != ("train", 1):
                raise InputError(
                    f"data.path: {source.title} holds too little text to hold some of it out "
                    f"(nothing is left for {part}); give more text, or another data.heldout"
                )
        files = {path.name: [path.stat().st_size, sampled_checksum_of(path)] for path in sorted(new.iterdir())}
        (new / "meta.json").write_text(json.dumps({"parts": parts, "files": files}))
        data = _load(new, log=lambda line: None)  # mapped before it moves: what is mapped outlives its name
        assert data is not None, new
        with contextlib.suppress(FileNotFoundError):
            os.rename(entry, old)  # what is there is damaged, or another process's
        with contextlib.suppress(OSError):  # another process was quicker: its entry is as good
            os.rename(new, entry)
    return data


def _trained(train: Documents, vocab_size: int, log: Log) -> Tokenizer:
    """A BPE of the train part; see `train_on`."""
    num_chars = sum(len(document.text) for document in train)
    cut = (piece for document in train for piece in pieces(document.text, SAMPLE))
    return train_on(cut, num_chars, vocab_size, log)


def train_on(cut: Iterable[str], num_chars: int, vocab_size: int, log: Log) -> Tokenizer:
    """A BPE of evenly spread `pieces` of SAMPLE characters, of `num_chars` in all.

    Some thousand characters a token are enough.
    """
    started = time.monotonic()
    share = min(1.0, max(16 << 20, vocab_size << 12) / max(num_chars, 1))
    chosen = (piece for i, piece in enumerate(cut) if int((i + 1) * share) > int(i * share))
    tokenizer = train_bpe(chosen, vocab_size)
    few = "" if tokenizer.vocab_size == vocab_size else f" (not {vocab_size}: so little text has no more)"
    log(
        f"tokenizer: BPE of {tokenizer.vocab_size} tokens{few}, trained on {num_chars * share / 1e6:.1f} MB "
        f"in {time.monotonic() - started:.1f} s"
    )
    return tokenizer


def _write(part: Documents, name: str, tokenizer: Tokenizer, folder: Path, log: Log) -> dict[str, Any]:
    """Write one stream: `NAME.tokens` and `NAME.starts` (and the text itself, of the held-out part)."""
    started = said = time.monotonic()

    def told(num_bytes: int) -> None:
        nonlocal said
        if time.monotonic() > said + 10:
            said = time.monotonic()
            log(f"text: {num_bytes / 1e6:.0f} MB of {name} tokenised in {said - started:.0f} s")

    with contextlib.ExitStack() as stack:
        tokens_file = stack.enter_context(open(folder / f"{name}.tokens", "wb"))
        text_file = stack.enter_context(open(folder / f"{name}.txt", "wb")) if name == "heldout" else None
        starts, num_tokens, num_bytes = write_stream(_batches(part), tokenizer, tokens_file, text_file, told=told)
    starts.tofile(folder / f"{name}.starts")
    if num_bytes:
        log(
            f"text: {name}: {len(starts)} documents, {num_bytes / 1e6:.2f} MB, "
            f"{num_tokens / 1e6:.2f} M tokens ({num_bytes / num_tokens:.2f} bytes a token) "
            f"in {time.monotonic() - started:.1f} s"
        )
    return {"dtype": token_dtype(tokenizer).name, "num_bytes": num_bytes}


def _batches(part: Iterable[Document]) -> Iterator[list[tuple[bool, str]]]:
    """Pieces by the batch, each with whether it starts a document."""
    batch, size = [], 0
    for document in part:
        for i, piece in enumerate(pieces(document.text, PIECE)):
            batch.append((i == 0, piece))
            size += len(piece)
            if size >= BATCH:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _load(entry: Path, log: Log) -> TextData | None:
    """What an entry of the cache holds, or None if there is none or it is damaged."""
    try:
        meta = json.loads((entry / "meta.json").read_bytes())
        for name, (size, checksum) in meta["files"].items():
            if ((entry / name).stat().st_size, sampled_checksum_of(entry / name)) != (size, checksum):
                raise ValueError(f"{name} is not as it was written")
        train, heldout = (
            Corpus(
                np.memmap(entry / f"{name}.tokens", meta["parts"][name]["dtype"], "r"),
                np.fromfile(entry / f"{name}.starts", np.int64),
                meta["parts"][name]["num_bytes"],
            )
            for name in ("train", "heldout")
        )
        tokenizer = Tokenizer.from_json((entry / "tokenizer.json").read_text(encoding="utf-8"))
        text = np.memmap(entry / "heldout.txt", np.uint8, "r")
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        log(f"text: what was cached in '{entry}' is damaged ({error}) and is made anew")
        return None
    return TextData(train, heldout, tokenizer, fingerprint_of(meta["files"]), text)
