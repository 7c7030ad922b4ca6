"""From text to shards: cleaned, split, tokenised by several threads, and gone on with after any interruption."""

import concurrent.futures
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmodel.config import field, validate
from jaxmodel.data.corpus import token_dtype, write_stream
from jaxmodel.data.plan import EVERY, Cleaning, Plan, Units, plan_text
from jaxmodel.data.shards import INDEX, JOURNAL, PARTS, TOKENIZER, Index, Log, Shard, assemble, checksum_of, read_index
from jaxmodel.data.sources import Documents, documents, place
from jaxmodel.data.text import HELDOUT, PIECE, SAMPLE, named_tokenizer, train_on
from jaxmodel.data.tokenizer import Tokenizer, pieces
from jaxmodel.errors import InputError

LOCK = ".lock"
EARLY = {LOCK, TOKENIZER, f"{TOKENIZER}.part", f"{JOURNAL}.part"}  # written before there is a journal


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What is read, how it is cleaned and tokenised, and where it goes."""

    output: str = field(help="folder for the shards, their index and the tokenizer")
    input: str | None = field(
        None, "a text file, .jsonl or a folder of them; none: the Python standard library's sources"
    )
    pattern: str = field("*", "which files of a folder to read, as a glob: *.txt")
    text_field: str = field("text", "the field of a .jsonl line that holds the text")
    tokenizer: str = field(
        "bpe", "bpe is trained on the text; byte; or a tokenizer.json, or a run or an export that holds one"
    )
    vocab_size: int = field(2048, "tokens in a bpe vocabulary: 256 bytes, the separator, and merges", low=257)
    heldout: float = field(HELDOUT, "fraction of the documents kept for evaluation", low=0.0, high=0.5)
    normalize: str = field("none", "Unicode normalization of every document", choices=("none", "NFC", "NFKC"))
    dedupe: bool = field(False, "drop documents that another one before them equals, to the character")
    min_chars: int = field(0, "drop documents of fewer characters", low=0)
    shard_mb: float = field(32.0, "megabytes of text in a shard: what an interruption may cost", low=0.001)
    workers: int | None = field(None, "threads that tokenise, a shard each; none: one a core", low=1)

    def check(self) -> None:
        """Raise InputError if a field is out of bounds."""
        validate(self, "")
        if not self.heldout:
            raise InputError("heldout=0: give the fraction to hold out, above 0; training is watched with it")


def prepare(options: Preparation, log: Log = print) -> Index:
    """Write the text that `options` name into a folder that `data.path` takes, as `shards.py` lays it out.

    The same tokens in the same order as training on the text itself sees, if it is not cleaned. What an earlier call
    with the same options has left complete in the folder is kept. Raises InputError for what is wrong with the text,
    and for a folder that holds anything else.
    """
    options.check()
    source = documents(options.input, text_field=options.text_field, pattern=options.pattern)
    folder = Path(options.output).expanduser()
    root = None if options.input is None else place(options.input).resolve()
    if root is not None and root.is_dir() and folder.resolve().is_relative_to(root):
        raise InputError(f"output={folder} lies within input={options.input}: name a folder elsewhere")
    given = named_tokenizer(options.tokenizer)
    settings = _settings(options, source, given)
    try:
        with _claimed(folder):
            return _prepare(options, source, given, settings, folder, log)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"output={folder}: {error.strerror}: free some space and run the same command again, the shards that are "
            "complete are kept"
        ) from error


def _prepare(
    options: Preparation,
    source: Documents,
    tokenizer: Tokenizer | None,
    settings: Mapping[str, Any],
    folder: Path,
    log: Log,
) -> Index:
    before = _before(folder, settings)
    done = {shard.name: shard for shard in before.shards if shard.wrong(folder) is None}
    trained = folder / TOKENIZER
    whole = trained.is_file() and checksum_of(trained) == before.tokenizer
    if before.index is not None and whole and len(done) == len(before.shards):
        log(f"text: '{folder}' is prepared already: {len(done)} shards, all whole")
        return before.index

    plan = plan_text(source, Cleaning(options.normalize, options.dedupe, options.min_chars), options.heldout, log)
    if plan.notes:
        log(f"text: {plan.notes}")
    if tokenizer is None and whole:
        tokenizer = Tokenizer.from_json(trained.read_text(encoding="utf-8"))
    if tokenizer is None:
        cut, num_chars = plan.sample(SAMPLE)
        tokenizer = train_on(cut, num_chars, options.vocab_size, log)
    _write_whole(trained, tokenizer.to_json())
    if checksum_of(trained) != before.tokenizer:
        done = {}
    lines = [{"settings": settings}, {"tokenizer": checksum_of(trained)}, *map(dataclasses.asdict, done.values())]
    _write_whole(folder / JOURNAL, "".join(json.dumps(line) + "\n" for line in lines))

    work = [
        (part, f"{part}-{number:05}", units)
        for part in PARTS
        for number, units in enumerate(plan.parts[part].cut(int(options.shard_mb * 1e6)))
    ]
    made = done | _write_shards(options, plan, tokenizer, [row for row in work if row[1] not in done], folder, log)
    if _settings(options, source, None)["source"] != settings["source"]:
        raise InputError(
            f"input: {source.title} has changed while it was read: let it be, and prepare it into another folder"
        )
    parts = {part: [made[name] for of, name, _ in work if of == part] for part in PARTS}
    dtype = token_dtype(tokenizer).name
    data, files = assemble(folder, parts, dtype, tokenizer)
    index = Index(settings, checksum_of(trained), dtype, parts, plan.counts, files)
    _write_whole(folder / INDEX, index.to_json())
    (folder / JOURNAL).unlink()
    for part, corpus in (("train", data.train), ("heldout", data.heldout)):
        log(
            f"text: {part}: {len(corpus.starts)} documents, {corpus.num_bytes / 1e6:.2f} MB, "
            f"{len(corpus.tokens) / 1e6:.2f} M tokens ({corpus.num_bytes / len(corpus.tokens):.2f} bytes a token) "
            f"in {len(parts[part])} shards"
        )
    return index


def _write_shards(
    options: Preparation,
    plan: Plan,
    tokenizer: Tokenizer,
    work: Sequence[tuple[str, str, Units]],
    folder: Path,
    log: Log,
) -> dict[str, Shard]:
    """Write the shards by several threads (tokenizers work without the GIL); each is noted once it is on disk."""
    progress = Progress(sum(units.num_bytes for _, _, units in work), log)
    workers = options.workers or len(os.sched_getaffinity(0))
    made = {}
    with open(folder / JOURNAL, "a") as journal, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(_write_shard, plan, tokenizer, *row, folder, progress) for row in work]
        try:
            for future in concurrent.futures.as_completed(running):
                shard = future.result()
                made[shard.name] = shard
                journal.write(json.dumps(dataclasses.asdict(shard)) + "\n")
                journal.flush()
                os.fsync(journal.fileno())
        finally:  # an error, or Ctrl-C: the others stop at their next piece
            progress.stopped = True
            pool.shutdown(cancel_futures=True)
    return made


def _write_shard(
    plan: Plan, tokenizer: Tokenizer, part: str, name: str, units: Units, folder: Path, progress: "Progress"
) -> Shard:
    ends = [".tokens", ".starts"] + [".txt"] * (part == "heldout")
    paths = {end: folder / f"{name}{end}.part" for end in ends}
    with contextlib.ExitStack() as stack:
        files = {end: stack.enter_context(open(path, "wb")) for end, path in paths.items()}
        starts, tokens, num_bytes = write_stream(
            _batches(plan, units, progress), tokenizer, files[".tokens"], files.get(".txt"), last=units.last
        )
        files[".starts"].write(starts.tobytes())
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    marks = {end: [path.stat().st_size, checksum_of(path)] for end, path in paths.items()}
    for end, path in paths.items():
        os.rename(path, folder / f"{name}{end}")
    return Shard(name, len(starts), tokens, num_bytes, marks)


def _batches(plan: Plan, units: Units, progress: "Progress") -> Iterator[list[tuple[bool, str]]]:
    """Pieces by the batch, each with whether it starts a document."""
    batch, size = [], 0
    for first, text, num_bytes in plan.texts(units):
        for i, piece in enumerate(pieces(text, PIECE)):
            batch.append((first and not i, piece))
            size += len(piece)
            if size >= PIECE:
                yield batch
                batch, size = [], 0
        progress.add(num_bytes)
    if batch:
        yield batch


class Progress:
    """Lines about work that several threads share: how far, how fast, how long still."""

    def __init__(self, total: int, log: Log):
        self._total, self._log, self._done = total, log, 0
        self._started = self._said = time.monotonic()
        self._lock = threading.Lock()
        self.stopped = False

    def add(self, num_bytes: int) -> None:
        """Count what is done; raises CancelledError once `stopped`."""
        if self.stopped:
            raise concurrent.futures.CancelledError
        with self._lock:
            self._done += num_bytes
            now = time.monotonic()
            if now < self._said + EVERY:
                return
            self._said, speed = now, self._done / (now - self._started)
            left = (self._total - self._done) / speed
            self._log(
                f"text: {self._done / 1e6:.0f} of {self._total / 1e6:.0f} MB tokenised, {speed / 1e6:.1f} MB/s, "
                f"{left:.0f} s to go"
            )


@dataclasses.dataclass(frozen=True)
class _Before:
    """What an earlier call has left: its index, if it ended, the shards that it noted, and CRC-32 of its tokenizer."""

    index: Index | None = None
    shards: Sequence[Shard] = ()
    tokenizer: int | None = None


def _before(folder: Path, settings: Mapping[str, Any]) -> _Before:
    """What is in the folder; InputError if it is not of the same text and settings."""
    found, before = None, _Before()
    if (folder / JOURNAL).is_file():
        lines = []
        for line in (folder / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # the last one may have been cut short
                lines.append(json.loads(line))
        found = lines[0].get("settings") if lines else None
        tokenizer = next((line["tokenizer"] for line in lines if "tokenizer" in line), None)
        before = _Before(None, [Shard(**line) for line in lines if "files" in line], tokenizer)
    elif (folder / INDEX).is_file():
        index = read_index(folder, "output")
        shards = [each for part in PARTS for each in index.parts[part]]
        found, before = index.settings, _Before(index, shards, index.tokenizer)
    elif others := sorted({path.name for path in folder.iterdir()} - EARLY):
        raise InputError(f"output={folder} holds other files ({others[0]}): name an empty or a new folder")
    if found is None:
        return _Before()
    other = next((name for name in settings if name != "input" and found.get(name) != settings[name]), None)
    if other is None:
        return before
    if other == "source":
        why = f"text of {found.get('input')}, now it is {settings['input']}, or has changed since"
    else:
        why = f"{other}={found.get(other)}, now it is {other}={settings.get(other)}"
    raise InputError(f"output={folder} was prepared with {why}: name another output, or delete that one")


def _settings(options: Preparation, source: Documents, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """All that the tokens depend on."""
    settings = {
        item.name: getattr(options, item.name)
        for item in dataclasses.fields(options)
        if item.name not in ("input", "output", "workers")
    }
    settings["tokenizer_digest"] = tokenizer and _digest(tokenizer.to_json())
    return settings | {"source": _digest(json.dumps(source.listing())), "input": source.title}


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).hexdigest()


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole, or as it was."""
    part = path.with_name(f"{path.name}.part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Make the folder, and let no other process work in it meanwhile, where the file system has locks."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"output={folder} is a file, or lies below one: name a folder") from None
    with open(folder / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"output={folder}: another process prepares text in there: wait for it") from None
        except OSError:
            pass
        yield
