"""Saving while training goes on: a step appears under its name only when it is whole."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax

from jaxmodel.checkpoint import arrays, manifest, processes
from jaxmodel.checkpoint.record import RECORD, compare_config, flatten, item_of, read_record, write_record
from jaxmodel.checkpoint.restore import at, restore_state
from jaxmodel.data.fitted import Fitted, texts_of
from jaxmodel.errors import InputError, Retryable
from jaxmodel.model import Model
from jaxmodel.train import TrainState

S = TypeVar("S", bound=TrainState)

_attempts = itertools.count()  # names barriers: all processes save the same steps in the same order
_LEFTOVER = re.compile(r"\d+\.(saving|deleting)(\..*)?")


class Checkpointer:
    """Saves and restores the training state of one run. All processes make one, and call it alike.

    A step is written under another name. Once Orbax has finished, every process adds the checksums of its own
    files, the manifest is written, and the folder gets its name: until then nothing older is touched.

    Use it in a `with`, or `close` it: a save that nobody waits for is lost when the interpreter ends.
    """

    def __init__(
        self,
        workdir: str | Path,
        model: Model,
        *,
        keep: int = 2,
        fitted: Fitted | None = None,
        info: Mapping[str, Any] | None = None,
        log: manifest.Log = manifest.log_to_stderr,
    ):
        """Checkpoints of `model` in `workdir`/checkpoints.

        Args:
          workdir: of the run; made when first needed.
          model: what is trained.
          keep: how many of the newest steps stay.
          fitted: tokenizer or table, saved along, so that a checkpoint can be used without being told of it.
          info: whatever else describes the run, JSON-able.
          log: is told of damaged steps.

        Raises:
          InputError: `keep` is below 1.
        """
        if keep < 1:
            raise InputError(f"checkpoint.keep={keep}: must be at least 1")
        self.workdir, self.model, self.keep, self.log = workdir, model, keep, log
        self.info = dict(info or {})
        self._texts = texts_of(fitted)
        self._folder = manifest.steps_folder(workdir)
        self._protected: frozenset[int] = frozenset()
        self._writer: arrays.Writer | None = None
        self._thread: threading.Thread | None = None
        self._error: tuple[int, Exception] | None = None
        self._failed = 0

    def save(self, step: int, state: Any, info: Mapping[str, Any] | None = None) -> None:
        """Save a state; returns once the arrays are copied and may be donated. Waits for the save before.

        Args:
          step: updates made.
          state: a `TrainState`; its params and `model_state` are kept apart from the rest.
          info: more to write down, for this step.

        Raises:
          InputError: this save or the one before failed: the disk is full, or the folder cannot be written.
        """
        self.wait()
        state = state.exchanged(self.model.layout)
        items: dict[str, dict[str, Any]] = {item: {} for item in arrays.ITEMS}
        for path, array in flatten(state).items():
            items[item_of(path)][path] = array
        texts = self._texts | {RECORD: write_record(step, state, self.model, self.info | dict(info or {}))}
        # What a save that failed still writes must not meet the next one, which all processes try as often.
        again = f".{self._failed}" if self._failed else ""
        saving = self._folder / f"{step}.saving{again}"
        try:
            if _first():
                self._folder.mkdir(parents=True, exist_ok=True)
                self._sweep()
            self._writer = self._writer or arrays.Writer()
            self._writer.start(saving, items)
        except Exception as error:
            self._fail(step, error)
        name = f"{saving} {next(_attempts)}"
        self._thread = threading.Thread(target=self._commit, args=(step, saving, texts, name), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return when all that was saved is committed.

        Raises:
          InputError: it could not be; says why, and which step is the newest that is there.
          Retryable: another process was waited for in vain.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            (step, error), self._error = self._error, None
            self._fail(step, error)

    def restore(self, state: S) -> S:
        """The newest good step of the run, arranged like `state`; or `state` itself where there is none.

        `state` is used up when there is a step: its memory is freed before the arrays are read.

        Raises:
          InputError: every step is damaged, or of another model, or of other shapes and types than `state`.
        """
        self.wait()
        step = manifest.latest(self.workdir, self.log)
        return state if step is None else self._restored(step, state)

    def protect(self, steps: Sequence[int]) -> None:
        """Steps to keep, however old: the best ones. Holds until it is said again; waits for the save before."""
        self.wait()
        self._protected = frozenset(steps)

    def choose(self, step: int, state: S, info: Mapping[str, Any] | None = None) -> S:
        """The state of `step`, which stands for the run until another is saved: `load` takes it, not the newest.

        Nothing is deleted; `state` is used up.

        Args:
          step: one that was saved.
          state: what the result is arranged like.
          info: what to write down of the choice, JSON-able.

        Raises:
          InputError: the step is damaged or not there; then the newest still stands for the run.
        """
        self.wait()
        if (reason := manifest.damage_of(self._folder / str(step))) is not None:
            raise InputError(
                f"{self._folder}: cannot choose step {step}: {reason}; the newest stands for the run. Restore it from "
                "a copy, or use the newest"
            )
        with processes.joined(f"{self._folder} chose {step} {next(_attempts)}"):
            if _first():
                try:
                    manifest.choose(self._folder, {"step": step, **dict(info or {})})
                except OSError as error:
                    raise InputError(
                        f"{self._folder}: {manifest.CHOSEN} could not be written ({_reason(error)}): make room; the "
                        f"step to stand for the run is {step}, and the same command goes on from here"
                    ) from error
            return self._restored(step, state)

    def _restored(self, step: int, state: S) -> S:
        """The state of a good step, arranged like `state`, which is used up."""
        folder = self._folder / str(step)
        compare_config(read_record(folder), self.model.config, self.workdir)
        layout = self.model.layout
        shapes = jax.tree.map(lambda array: at(array, array.sharding), state.exchanged(layout))
        for array in jax.tree.leaves(state):
            array.delete()
        return restore_state(folder, shapes, self.model).exchanged(layout)

    def close(self) -> None:
        """Wait, and let go of threads."""
        self.wait()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _commit(self, step: int, saving: Path, texts: Mapping[str, str], name: str) -> None:
        """In a thread: from what Orbax writes to a step that counts."""
        try:
            assert self._writer is not None
            self._writer.finish()
            with processes.joined(f"{name} committed"):
                with processes.joined(f"{name} hashed"):
                    if _first():
                        for file, text in texts.items():
                            manifest.write_text(saving / file, text)
                    manifest.write_part(saving)
                if _first():
                    manifest.merge_parts(saving)
                    self._publish(step, saving)
        except Exception as error:
            self._error = step, error
            if _first():  # what was written of it may be what fills the disk
                self._sweep()

    def _publish(self, step: int, saving: Path) -> None:
        """Give a whole step its name, then delete what is older than the newest `keep`."""
        final = self._folder / str(step)
        if final.exists():
            final.rename(self._folder / f"{step}.deleting")
        saving.rename(final)
        (self._folder / manifest.CHOSEN).unlink(missing_ok=True)  # the run goes on
        manifest.sync(self._folder)
        # Steps above this one, damaged or they would have been restored, are no reason to delete good ones.
        older = [each for each in manifest.steps(self._folder) if each < step]
        whole = [each for each in older if manifest.damage(self._folder / str(each), contents=False) is None]
        for each in set(older) - set(whole[max(len(whole) - self.keep + 1, 0) :]) - self._protected:
            (self._folder / str(each)).rename(self._folder / f"{each}.deleting")
        self._sweep()

    def _sweep(self) -> None:
        """Delete what is half written or half deleted; what will not go shows when its name is needed."""
        for each in self._folder.glob("*.*"):
            if _LEFTOVER.fullmatch(each.name):
                shutil.rmtree(each, ignore_errors=True)

    def _fail(self, step: int, error: Exception) -> NoReturn:
        """Raise the error of a save, as one line where it came from a disk, a folder or another process."""
        self._failed += 1
        if isinstance(error, TimeoutError) or re.match("DEADLINE_EXCEEDED|UNAVAILABLE", str(error)):
            raise Retryable(f"{self._folder}: step {step} is not saved: another process is lost") from error
        storage = isinstance(error, ValueError) and re.match("[A-Z_]+: ", str(error))  # as Orbax reports it
        if not (storage or isinstance(error, OSError)):
            raise error
        found = manifest.steps(self._folder)
        good = f"step {found[-1]} is still there" if found else "no step is there yet"
        raise InputError(
            f"{self._folder}: step {step} could not be saved ({_reason(error)}); {good}. "
            "Make room, or name another workdir that can be written"
        ) from error


def _first() -> bool:
    return jax.process_index() == 0


def _reason(error: Exception) -> str:
    """Why, in a few words: the system's own if they are anywhere in the message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    system = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(system[1])) if system else str(error).partition("\n")[0][:200]
