"""Which steps there are, and which of them are whole: a manifest with a checksum for every file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxmodel.checkpoint import processes
from jaxmodel.errors import InputError

MANIFEST = "manifest.json"
CHOSEN = "chosen.json"  # in the folder of steps: {"step": the one that stands for the run, …}
Log = Callable[[str], None]

# Of the files Orbax writes, these are a process's own; process 0 answers for all others.
_OWNED = re.compile(r"(?:ocdbt\.process_|array_metadatas/process_)(\d+)")


def log_to_stderr(line: str) -> None:
    """Where a line for the reader goes unless the caller says otherwise."""
    print(line, file=sys.stderr)


def steps_folder(workdir: str | Path) -> Path:
    """Where the steps of a run are kept."""
    return Path(workdir).absolute() / "checkpoints"


def steps(folder: Path) -> list[int]:
    """The committed steps in a folder of steps, damaged or not, oldest first; [] without such a folder."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(each.name) for each in found if each.name.isdecimal() and (each / MANIFEST).exists())


def latest(workdir: str | Path, log: Log = log_to_stderr) -> int | None:
    """The newest step of a run of which every file is as it was written; None where none was committed.

    All processes must call it: each reads its share of the files, and all come to the same answer.

    Args:
      workdir: of the run; the steps are in its `checkpoints` folder.
      log: is told of every newer step that is damaged or was never committed, and why.

    Raises:
      InputError: there are committed steps, and all are damaged; each is named with the reason.
    """
    return newest(steps_folder(workdir), log)


def newest(folder: Path, log: Log = log_to_stderr, *, contents: bool = True) -> int | None:
    """As `latest`, in a folder of steps; without `contents` it is enough that every file has its size."""
    committed, others = processes.gathered((steps(folder), _uncommitted(folder)))[0]
    skipped = {step: f"is not committed (it has no {MANIFEST})" for step in others}
    damaged = []
    for step in reversed(committed):
        reason = damage_of(folder / str(step), contents=contents)
        if reason is None:
            for other in sorted(each for each in skipped if each > step):
                log(f"{folder}: step {other} {skipped[other]}; using step {step}")
            return step
        skipped[step] = f"is damaged: {reason}"
        damaged.append(f"step {step}: {reason}")
    if damaged:
        raise InputError(
            f"{folder}: every step is damaged ({'; '.join(damaged)}): restore one from a copy, or start "
            "again in another workdir"
        )
    for step, reason in sorted(skipped.items()):
        log(f"{folder}: step {step} {reason}; there is no other")
    return None


def chosen(folder: Path) -> dict[str, Any] | None:
    """What was written of the step that was chosen to stand for a run; None where none was, or it is not there."""
    return _choice(folder)[0]


def _choice(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """What was written of the choice, or why what was written is of no use; (None, None) where nothing was."""
    try:
        found = json.loads((folder / CHOSEN).read_text())
        if found["step"] in steps(folder):
            return found, None
        return None, f"step {found['step']}, chosen by {CHOSEN}, is not there"
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, KeyError, TypeError):
        return None, f"{CHOSEN} cannot be read"


def standing(folder: Path, log: Log = log_to_stderr, *, contents: bool = True) -> int | None:
    """The step that a run is loaded from: the one that was chosen, if it is whole, and else as `newest`."""
    found, reason = processes.gathered(_choice(folder))[0]
    if found is not None:
        damaged = damage_of(folder / str(found["step"]), contents=contents)
        if damaged is None:
            return found["step"]
        reason = f"step {found['step']}, chosen by {CHOSEN}, is damaged: {damaged}"
    if reason is not None:
        log(f"{folder}: {reason}; looking for the newest")
    return newest(folder, log, contents=contents)


def choose(folder: Path, about: Mapping[str, Any]) -> None:
    """Have the step `about["step"]` stand for its run; whole or not at all."""
    write_text(folder / f"{CHOSEN}.part", json.dumps(dict(about), indent=1) + "\n")
    (folder / f"{CHOSEN}.part").rename(folder / CHOSEN)
    sync(folder)


def _uncommitted(folder: Path) -> list[int]:
    """Steps without a manifest, and those whose saving was cut short."""
    names = {each.name.partition(".saving")[0] for each in (folder.iterdir() if folder.is_dir() else ())}
    return sorted(int(name) for name in names if name.isdecimal() and not (folder / name / MANIFEST).exists())


def damage_of(step: Path, *, contents: bool = True) -> str | None:
    """As `damage`, the work shared out over the processes; all get the same answer."""
    index, count = processes.index_and_count()
    reasons = processes.gathered(damage(step, contents=contents, share=(index, count)))
    return next((reason for reason in reasons if reason is not None), None)


def damage(step: Path, *, contents: bool = True, share: tuple[int, int] = (0, 1)) -> str | None:
    """What is wrong with the files of a step, in words; None when all are as they were written.

    Args:
      step: the folder of the step.
      contents: compare checksums; else sizes alone, which costs no reading.
      share: (index, count): look at every `count`-th file, from `index` on.
    """
    try:
        files = _entries(step / MANIFEST)
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    names = sorted(files)[share[0] :: share[1]]
    for name in names:
        size = (step / name).stat().st_size if (step / name).is_file() else None
        if size is None:
            return f"{name} is missing"
        if size != files[name][0]:
            return f"{name} has {size:,} bytes of {files[name][0]:,}"
    if contents:
        found = _checksums(step / name for name in names)
        for name, checksum in zip(names, found, strict=True):
            if checksum != files[name][1]:
                return f"{name} does not match its checksum"
    return None


def write_part(step: Path) -> None:
    """Write down the checksums of the files of this process, once they are on disk to stay."""
    index, _ = processes.index_and_count()
    names = sorted(path.relative_to(step).as_posix() for path in step.rglob("*") if path.is_file())
    names = [name for name in names if _owner(name) == index]
    checksums = _checksums((step / name for name in names), sync_too=True)
    entries = {
        name: {"bytes": (step / name).stat().st_size, "sha256": checksum}
        for name, checksum in zip(names, checksums, strict=True)
    }
    for folder in {(step / name).parent for name in names}:
        sync(folder)
    write_text(_part(step, index), json.dumps({"files": entries}))


def merge_parts(step: Path) -> None:
    """The manifest from the parts of all processes, in one move: now the step is whole."""
    _, count = processes.index_and_count()
    entries: dict[str, dict[str, int | str]] = {}
    for index in range(count):
        if not _part(step, index).exists():
            raise OSError(f"process {index} could not write its part")
        entries |= json.loads(_part(step, index).read_text())["files"]
    write_text(step / "manifest.part", json.dumps({"files": entries}, indent=1, sort_keys=True))
    os.replace(step / "manifest.part", step / MANIFEST)
    for index in range(count):
        _part(step, index).unlink()
    sync(step)


def _part(step: Path, index: int) -> Path:
    return step / f"manifest.{index}.json"


def _owner(name: str) -> int:
    owned = _OWNED.search(name)
    return int(owned[1]) if owned else 0


def _entries(manifest: Path) -> dict[str, tuple[int, str]]:
    files = json.loads(manifest.read_text())["files"]
    return {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}


def _checksums(paths: Iterable[Path], sync_too: bool = False) -> list[str]:
    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        return list(pool.map(lambda path: _checksum(path, sync_too), paths))


def _checksum(path: Path, sync_too: bool) -> str:
    with path.open("rb") as file:
        if sync_too:
            os.fsync(file.fileno())  # older steps are deleted on the strength of this one
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file, on disk to stay when this returns."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Have the names in a folder on disk to stay."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
