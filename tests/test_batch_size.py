"""The batch that memory holds: searched in few looks, true to the arrays there are, and found alike on a mesh."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmodel import batch_size
from jaxmodel.batch_size import bytes_needed, find_batch_size, largest, memory_of_a_device
from jaxmodel.errors import InputError
from jaxmodel.model import from_function
from jaxmodel.sharding import Partitioning, make_mesh
from jaxmodel.tasks import Result, language_model
from jaxmodel.train import make_state, make_step
from tests.bigram import batch_of, bigram

KEY = jax.random.key(0)
WIDE = 250_000  # numbers in a row, so that rows are all that counts
ROW = 4 * WIDE
MODEL = from_function(lambda key: {"w": jnp.ones(())}, lambda params, batch: batch)
OPTIMIZER = optax.sgd(0.1)
WIDE_ROWS = {"x": np.zeros((1, WIDE), np.float32)}


def loss(params, batch, state, key, train):
    """Reads every number once, and keeps none."""
    return Result(params["w"] * jnp.sum(batch["x"]), jnp.ones(()), {}, {})


@pytest.mark.parametrize(
    ("needs", "how", "found"),
    [
        (lambda size: size, {"limit": 100}, 64),
        (lambda size: size, {"limit": 64}, 64),
        (lambda size: 50 + size, {"limit": 100, "multiple": 6}, 48),
        (lambda size: max(90, size), {"limit": 100}, 64),  # what a small batch hides behind
        (lambda size: 0, {"limit": 100, "most": 1000}, 512),
        (lambda size: float("inf") if size > 8 else 1, {"limit": 100}, 8),
        (lambda size: size, {"limit": 1}, 1),
    ],
)
def test_the_largest_that_fits_is_found_in_few_looks(needs, how, found):
    looks = []
    assert largest(lambda size: looks.append(size) or needs(size), **how) == found
    assert len(looks) <= 5


def test_what_does_not_fit_at_all_is_said_so():
    with pytest.raises(InputError, match=r"batch of 4 needs 3 GB of memory, and 2 GB may .*model\.execution\.remat"):
        largest(lambda size: 3e9, limit=2 * 10**9, multiple=4)
    with pytest.raises(InputError, match=r"must be a multiple of 8, and there are 5 examples"):
        largest(lambda size: 0, limit=1, multiple=8, most=5)


def test_rows_are_counted_as_large_as_they_are():
    state, step = make_state(MODEL, OPTIMIZER, KEY), make_step(MODEL, loss, OPTIMIZER)
    found = find_batch_size(step, state, WIDE_ROWS, limit=9 * ROW)
    assert found.size == 8 and 8 * ROW <= found.needs <= found.limit == 9 * ROW
    assert find_batch_size(step, state, WIDE_ROWS, limit=8 * ROW - 1).size == 4  # the state needs some too
    assert find_batch_size(step, state, WIDE_ROWS, limit=25 * ROW, multiple=3).size == 24
    assert not state.params["w"].is_deleted() and state.step == 0


def test_on_a_mesh_a_device_holds_its_own_rows():
    partitioning = Partitioning(make_mesh({"data": 4, "tensor": 2}))
    state = make_state(MODEL, OPTIMIZER, KEY, partitioning=partitioning)
    step = make_step(MODEL, loss, OPTIMIZER, partitioning=partitioning)
    found = find_batch_size(step, state, WIDE_ROWS, limit=9 * ROW, multiple=4, partitioning=partitioning)
    assert found.size == 32 and 8 * ROW <= found.needs <= 9 * ROW


def test_a_step_needs_its_state_once_and_its_gradients():
    """Donated, the state that comes in is the memory of the one that goes out."""
    model = bigram()
    optimizer = optax.adam(0.1)
    state, step = make_state(model, optimizer, KEY), make_step(model, language_model(model), optimizer)
    bytes_of = lambda tree: sum(array.nbytes for array in jax.tree.leaves(tree))  # noqa: E731
    needed = bytes_needed(step.lower(state, batch_of(), KEY).compile())  # type: ignore[attr-defined]
    assert needed >= bytes_of(state) + bytes_of(batch_of())
    rows = find_batch_size(step, state, batch_of(), limit=100_000).size
    assert rows > 1 and bytes_of(state) + bytes_of(batch_of(rows=rows)) < 100_000


def test_a_compiler_that_looks_itself_is_heard():
    class Step:
        def lower(self, state, batch, key):
            self.size = batch["x"].shape[0]
            return self

        def compile(self):
            if self.size > 16:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm")
            return self

        def memory_analysis(self):
            names = ("argument", "output", "alias", "temp")
            return types.SimpleNamespace(**{f"{name}_size_in_bytes": self.size for name in names})

    assert find_batch_size(Step(), None, WIDE_ROWS, limit=1000).size == 16  # type: ignore[arg-type]


@pytest.mark.parametrize(("bound", "free"), [("max\n", 8_000 * 1024), ("4096000\n", 4_096_000), (None, 8_000 * 1024)])
def test_devices_on_cpu_share_what_is_free(monkeypatch, tmp_path, bound, free):
    (tmp_path / "meminfo").write_text("MemTotal:  16000 kB\nMemFree:  10 kB\nMemAvailable:  8000 kB\n")
    if bound is not None:
        (tmp_path / "memory.max").write_text(bound)
    monkeypatch.setattr(batch_size, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(batch_size, "CONTAINER", tmp_path / "memory.max")
    assert memory_of_a_device() == free // len(jax.local_devices())


def test_a_device_that_knows_its_memory_is_asked(monkeypatch):
    devices = [types.SimpleNamespace(memory_stats=lambda size=size: {"bytes_limit": size}) for size in (80, 70)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert memory_of_a_device() == 70


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_where_nothing_says_how_much_memory_there_is_a_number_is_asked_for(monkeypatch, tmp_path, platform):
    """The host's memory is not that of an accelerator."""
    device = types.SimpleNamespace(memory_stats=lambda: None, platform=platform)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    if platform == "cpu":
        monkeypatch.setattr(batch_size, "MEMINFO", tmp_path / "meminfo")
        monkeypatch.setattr("os.sysconf_names", {})
    with pytest.raises(InputError, match=rf"train\.batch_size=auto: this {platform} does not say .*: give a nu"):
        memory_of_a_device()
