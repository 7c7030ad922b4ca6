"""What can happen to a checkpoint: killed while saving, cut short, deleted, one byte changed, a full disk."""

import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel import checkpoint
from jaxmodel.checkpoint import Checkpointer
from jaxmodel.errors import InputError, Retryable
from jaxmodel.loading import load
from jaxmodel.model import Model, from_function
from jaxmodel.train import TrainState
from tests.test_checkpoint import equal, restored, saved, tiny

ROOT = Path(__file__).parent.parent


def long(size: int) -> tuple[Model, TrainState]:
    """A model of one array of noise, and a training state of it."""
    model = from_function(lambda key: {"a": jnp.zeros(size)}, lambda params, batch: batch)
    noise = np.random.default_rng(0).normal(size=size).astype(np.float32)
    return model, TrainState(jnp.int32(0), {"a": jnp.asarray(noise)}, (), {})


def largest(step: Path, pattern: str) -> Path:
    return max(step.glob(pattern), key=lambda path: path.stat().st_size)


def data_file(step: Path) -> Path:
    return largest(step, "weights/ocdbt.process_0/d/*")


def truncate(step: Path) -> str:
    path = data_file(step)
    size = path.stat().st_size
    os.truncate(path, size - 1)
    return rf"{re.escape(path.relative_to(step).as_posix())} has {size - 1:,} bytes of {size:,}"


def delete(step: Path) -> str:
    path = largest(step, "training/ocdbt.process_0/d/*")
    path.unlink()
    return rf"{path.relative_to(step).as_posix()} is missing"


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_data(step: Path) -> str:
    flip(data_file(step))
    return rf"{data_file(step).relative_to(step).as_posix()} does not match its checksum"


def flip_record(step: Path) -> str:
    flip(step / "model.json")
    return r"model\.json does not match its checksum"


def garble_manifest(step: Path) -> str:
    (step / "manifest.json").write_bytes(b'{"files": \xff')
    return r"manifest\.json cannot be read"


DAMAGE = [truncate, delete, flip_data, flip_record, garble_manifest]


@pytest.mark.parametrize("harm", DAMAGE)
def test_a_damaged_step_is_named_and_the_one_before_is_used(tmp_path, harm):
    folder = saved(tmp_path, 100, 200)
    reason = harm(folder / "200")
    lines = []
    assert checkpoint.latest(tmp_path, lines.append) == 100
    words = rf"^{re.escape(str(folder))}: step 200 is damaged: {reason}; using step 100$"
    assert len(lines) == 1 and re.match(words, lines[0])
    assert equal(restored(tmp_path, log=lines.append), tiny(100)[1])
    with pytest.raises(InputError, match=rf"200 is damaged: {reason}; load its workdir to get the newest good"):
        load(folder / "200", model=tiny()[0])


@pytest.mark.parametrize("step, harm", [(100, flip_data), (150, lambda step: r"it has no manifest\.json")])
def test_a_step_that_is_not_good_is_not_chosen(tmp_path, step, harm):
    folder = saved(tmp_path, 100, 200)
    reason = harm(folder / str(step))
    model, state = tiny(300)
    with (
        Checkpointer(tmp_path, model) as checkpointer,
        pytest.raises(InputError, match=rf"cannot choose step {step}: {reason}; the newest stands"),
    ):
        checkpointer.choose(step, state)
    assert checkpoint.steps(folder) == [100, 200] and checkpoint.chosen(tmp_path) is None


def test_the_step_that_was_chosen_stands_for_the_run(tmp_path):
    folder, lines = saved(tmp_path, 100, 200), []
    model = tiny()[0]
    with Checkpointer(tmp_path, model) as checkpointer:
        state = checkpointer.choose(100, tiny(300)[1], {"monitor": "loss"})
        assert equal(state, tiny(100)[1]) and checkpoint.steps(folder) == [100, 200]
        assert load(tmp_path, model=model, log=lines.append).step == 100
        assert load(folder, model=model, log=lines.append).step == 100
        assert checkpoint.chosen(tmp_path) == {"step": 100, "monitor": "loss"}
        goes_on = restored(tmp_path, log=lines.append)
        assert equal(goes_on, tiny(200)[1]) and not lines
        flip_data(folder / "100")
        assert load(tmp_path, model=model, log=lines.append).step == 200
        assert len(lines) == 1 and "step 100, chosen by chosen.json, is damaged" in lines[0]
        checkpointer.save(300, tiny(300)[1])
    assert checkpoint.chosen(tmp_path) is None and load(tmp_path, model=model).step == 300
    unread = "chosen.json cannot be read"
    for text, reason in {
        "{": unread,
        "[]": unread,
        '{"step": 150}': "step 150, chosen by chosen.json, is not there",
    }.items():
        (folder / "chosen.json").write_text(text)
        lines.clear()
        assert load(tmp_path, model=model, log=lines.append).step == 300
        assert lines == [f"{folder}: {reason}; looking for the newest"] and checkpoint.chosen(tmp_path) is None


@pytest.mark.parametrize("protected, kept", [((100,), [100, 400]), ((), [400])])
def test_a_protected_step_stays_until_a_newer_one_is_there(tmp_path, protected, kept):
    """What was the best stays while the step that is better is on its way, whatever is being committed meanwhile."""
    with Checkpointer(tmp_path, tiny()[0], keep=1) as checkpointer:
        for step, best in ((100, (100,)), (200, (100,)), (300, (100,))):
            checkpointer.protect(best)
            checkpointer.save(step, tiny(step)[1])
        checkpointer.protect(protected)
        assert checkpoint.steps(tmp_path / "checkpoints") == [100, 300]
        checkpointer.save(400, tiny(400)[1])
    assert checkpoint.steps(tmp_path / "checkpoints") == kept


def test_the_flipped_bit_would_have_been_loaded_silently(tmp_path):
    """Why there are checksums: Orbax notices nothing."""
    model, state = long(10_000)
    with Checkpointer(tmp_path, model) as checkpointer:
        checkpointer.save(1, state)
    step = tmp_path / "checkpoints" / "1"
    flip_data(step)
    found = checkpoint.restore_state(step, state, model)
    assert np.sum(np.asarray(found.params["a"]) != np.asarray(state.params["a"])) == 1


def test_a_step_without_manifest_is_not_committed(tmp_path):
    folder = saved(tmp_path, 100, 200)
    (folder / "200" / "manifest.json").unlink()
    lines = []
    assert checkpoint.latest(tmp_path, lines.append) == 100 and checkpoint.steps(folder) == [100]
    assert lines == [f"{folder}: step 200 is not committed (it has no manifest.json); using step 100"]
    (folder / "100" / "manifest.json").unlink()
    assert checkpoint.latest(tmp_path, lines.append) is None
    assert lines[1:] == [
        f"{folder}: step {step} is not committed (it has no manifest.json); there is no other" for step in (100, 200)
    ]


def test_when_every_step_is_damaged_all_are_named(tmp_path):
    folder = saved(tmp_path, 100, 200)
    first, second = delete(folder / "100"), flip_record(folder / "200")
    words = rf"every step is damaged \(step 200: {second}; step 100: {first}\): restore one from a copy, or start"
    for call in (checkpoint.latest, restored, load):
        with pytest.raises(InputError, match=words):
            call(tmp_path)


def test_a_damaged_step_is_replaced_when_the_run_comes_there_again(tmp_path):
    folder = saved(tmp_path, 100, 200)
    flip_record(folder / "200")
    saved(tmp_path, 200)
    assert checkpoint.damage(folder / "200") is None and equal(restored(tmp_path), tiny(200)[1])


# Killed

# It stops itself at the moment it is to be killed at, all its threads with it.
CHILD = """
import os, signal, sys
import numpy as np
from jaxmodel import checkpoint
from jaxmodel.checkpoint import manifest
from jaxmodel.model import from_function
from jaxmodel.train import TrainState

assert "orbax" not in sys.modules, "Orbax is imported when it is needed"
workdir, when = sys.argv[1:]

def state(step, size):
    return TrainState(np.int32(step), {"a": np.full(size, step, np.float32)}, (), {})

def stop(*_):
    os.kill(os.getpid(), signal.SIGSTOP)

checkpointer = checkpoint.Checkpointer(workdir, from_function(lambda key: {"a": np.zeros(3)}, lambda p, b: b))
checkpointer.save(1, state(1, 3))
checkpointer.wait()
if when == "before the manifest":
    manifest.write_part = stop
    checkpointer.save(2, state(2, 3))
else:
    checkpointer.save(2, state(2, 20_000_000))
    stop()
checkpointer.wait()
"""


@pytest.mark.parametrize(
    "when, left", [("while Orbax writes", "2.saving.orbax-checkpoint-tmp"), ("before the manifest", "2.saving")]
)
def test_killed_in_the_middle_of_a_save(tmp_path, when, left):
    child = subprocess.Popen([sys.executable, "-c", CHILD, tmp_path, when], cwd=ROOT)
    assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
    child.kill()
    assert child.wait() == -signal.SIGKILL

    folder = tmp_path / "checkpoints"
    assert {each.name for each in folder.iterdir()} == {"1", left}
    lines = []
    assert checkpoint.latest(tmp_path, lines.append) == 1
    assert lines == [f"{folder}: step 2 is not committed (it has no manifest.json); using step 1"]
    model, state = long(3)
    with Checkpointer(tmp_path, model, log=lines.append) as checkpointer:
        state = checkpointer.restore(state)
        assert state.step == 1 and np.array_equal(state.params["a"], np.ones(3))
        checkpointer.save(3, state)
    assert {each.name for each in folder.iterdir()} == {"1", "3"}  # what was left behind is gone


# Full, or closed


def test_a_disk_that_takes_no_more_is_told_and_what_was_there_stays(tmp_path):
    model, state = long(100_000)
    folder = tmp_path / "checkpoints"
    with Checkpointer(tmp_path, model) as checkpointer:
        checkpointer.save(1, state)
        checkpointer.wait()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the system refuses every byte beyond
        try:
            checkpointer.save(2, state)
            with pytest.raises(InputError) as caught:
                checkpointer.save(3, state)  # the error of a save shows at the next
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert str(caught.value) == (
            f"{folder}: step 2 could not be saved (File too large); step 1 is still there. Make room, or "
            "name another workdir that can be written"
        )
        assert [each.name for each in folder.iterdir()] == ["1"]  # nor does half a step take up room
        assert checkpoint.latest(tmp_path) == 1
        checkpointer.save(4, state)
        checkpointer.wait()
        assert checkpoint.latest(tmp_path) == 4


# Many arrays, so that some are still being written when the first one fails; then two mishaps of someone else.
FULL = """
import asyncio, logging, resource, sys
import numpy as np
from jaxmodel.checkpoint import Checkpointer
from jaxmodel.errors import InputError
from jaxmodel.model import from_function
from jaxmodel.train import TrainState

def zeros(key):
    return {str(i): np.zeros(5000, np.float32) for i in range(100)}

with Checkpointer(sys.argv[1], from_function(zeros, lambda p, b: b)) as checkpointer:
    for size in (100, 4000, 20_000, 100_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            checkpointer.save(1, TrainState(np.int32(1), zeros(None), (), {}))
            checkpointer.wait()
        except InputError as error:
            print(error, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
# What asyncio says, on busy machines alone, of a write that ended after the task which waited for it.
late = "Future exception was never retrieved; future: ... at local file 1.saving.orbax-checkpoint-tmp/weights"
logging.getLogger("asyncio").error(late)
print("others:", file=sys.stderr, flush=True)

class Mishap:
    def __del__(self):
        closed.call_soon_threadsafe(print)

closed = asyncio.new_event_loop()
closed.close()
Mishap()
logging.getLogger("asyncio").error("a task of someone else")
"""


def test_a_full_disk_is_told_in_one_line_and_nothing_else_is_said(tmp_path):
    """Nor is what others have to say swallowed: Python that finds a loop closed, tasks that are not Orbax's."""
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and all("step 1 could not be saved (File too large)" in line for line in lines)
    ours, _, others = done.stderr.partition("others:\n")
    assert ours == ""
    assert "Exception ignored in: <function Mishap.__del__" in others and "Event loop is closed" in others
    assert "a task of someone else" in others


def test_a_manifest_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    folder = saved(tmp_path, 1)

    def full(descriptor):
        raise OSError(28, os.strerror(28))

    with Checkpointer(tmp_path, tiny()[0]) as checkpointer:
        monkeypatch.setattr(os, "fsync", full)
        checkpointer.save(2, tiny(2)[1])
        with pytest.raises(InputError, match=r"step 2 could not be saved \(No space left on device\); step 1 is still"):
            checkpointer.wait()
        assert [each.name for each in folder.iterdir()] == ["1"]


def test_a_choice_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    saved(tmp_path, 1)

    def full(descriptor):
        raise OSError(28, os.strerror(28))

    with Checkpointer(tmp_path, tiny()[0]) as checkpointer:
        monkeypatch.setattr(os, "fsync", full)
        words = r"chosen\.json could not be written \(No space left on device\): make room; the step .* is 1, and"
        with pytest.raises(InputError, match=words):
            checkpointer.choose(1, tiny(2)[1])
        assert checkpoint.chosen(tmp_path) is None


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    words = r"step 1 could not be saved \(File exists\); no step is there yet\. Make room, or name another"
    with Checkpointer(tmp_path, tiny()[0]) as checkpointer, pytest.raises(InputError, match=words):
        checkpointer.save(1, tiny(1)[1])


def test_a_bug_is_not_blamed_on_the_disk(tmp_path):
    model, state = tiny(1)
    state.params["a"].delete()
    with Checkpointer(tmp_path, model) as checkpointer, pytest.raises(RuntimeError, match="deleted"):
        checkpointer.save(1, state)


@pytest.mark.parametrize("error", [TimeoutError("at a barrier"), RuntimeError("DEADLINE_EXCEEDED: at a barrier")])
def test_a_lost_process_is_for_the_scheduler(tmp_path, monkeypatch, error):
    def lost(step):
        raise error

    with Checkpointer(tmp_path, tiny()[0]) as checkpointer:
        monkeypatch.setattr("jaxmodel.checkpoint.manifest.write_part", lost)
        checkpointer.save(1, tiny(1)[1])
        with pytest.raises(Retryable, match="step 1 is not saved: another process is lost"):
            checkpointer.wait()
