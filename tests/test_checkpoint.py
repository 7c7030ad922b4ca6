"""Checkpoints: what is saved comes back bit for bit, on any mesh, and what does not fit is named."""

import dataclasses
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmodel
from jaxmodel import checkpoint, weights
from jaxmodel.checkpoint import Checkpointer
from jaxmodel.config import replace
from jaxmodel.errors import InputError
from jaxmodel.loop import fit
from jaxmodel.model import Model, chain, from_function
from jaxmodel.optim import make_optimizer
from jaxmodel.options import Optimizer
from jaxmodel.sharding import Partitioning, make_mesh
from jaxmodel.tasks import classification
from jaxmodel.train import TrainState, make_state, make_step
from tests.contract import CONTRACT, GPT, batch_of, built, params_of, same

KEY = jax.random.key(3)


def silent(line: str) -> None:
    raise AssertionError(f"nothing should have been said: {line}")


def tiny(step: int = 0, columns: int = 3) -> tuple[Model, TrainState]:
    """A model of two arrays, and a training state of it that says which step it is of."""
    model = from_function(
        lambda key: {"a": jnp.zeros((2, columns)), "b": jnp.zeros(2)}, lambda params, batch: batch
    )._replace(start=lambda batch_size=None, length=None: {"mean": jnp.zeros(2)})
    params: Any = {"a": jnp.arange(2.0 * columns).reshape(2, columns) + step, "b": jnp.ones(2)}
    mean, square = {"a": params["a"] / 3, "b": None}, {"a": None, "b": params["b"]}
    average = optax.ScaleByAdamState(jnp.int32(step), mu=mean, nu=square)  # type: ignore[arg-type]
    state = TrainState(jnp.int32(step), params, (average, optax.EmptyState()), {"mean": jnp.full(2, 0.1)})
    return model, jax.tree.map(jnp.copy, state)


def saved(workdir: Path, *steps: int, keep: int = 9) -> Path:
    """Tiny checkpoints in a workdir; returns the folder of steps."""
    with Checkpointer(workdir, tiny()[0], keep=keep) as checkpointer:
        for step in steps:
            checkpointer.save(step, tiny(step)[1])
    return workdir / "checkpoints"


def restored(workdir: Path, log=silent) -> TrainState:
    model, state = tiny()
    return Checkpointer(workdir, model, log=log).restore(state)


def equal(a: Any, b: Any) -> bool:
    """Whether two trees are of one structure and bitwise equal, dtypes too."""
    types = [[x.dtype for x in jax.tree.leaves(tree)] for tree in (a, b)]
    return jax.tree.structure(a) == jax.tree.structure(b) and types[0] == types[1] and same(a, b)


def filled(shapes: Any, seed: int = 0) -> Any:
    """Arrays of random bytes in place of shapes: nothing is compiled to make them."""
    rng = np.random.default_rng(seed)

    def fill(each: Any) -> jax.Array:
        if jnp.issubdtype(each.dtype, jnp.floating):
            return jnp.asarray(rng.normal(size=each.shape).astype(each.dtype))
        return jnp.asarray(rng.integers(0, 100, each.shape).astype(each.dtype))

    return jax.tree.map(fill, shapes)


def state_of(name: str, kind: str) -> TrainState:
    """A training state of a contract model with some kind of weights, of random bytes."""
    model = built(name)

    def make() -> TrainState:
        params = model.init(jax.random.key(0))
        if "int" in kind:
            params = weights.quantize(params, model.layout, kind.partition("+")[0], symmetric=False)
        if "lora" in kind:
            params = weights.lora(params, model.layout, rank=2, alpha=3.0, key=jax.random.key(1))
        trainable, _ = weights.partition(params, model.layout)
        return TrainState(jnp.int32(0), params, {"mean": trainable}, model.start())

    return filled(jax.eval_shape(make))


# Saved and restored


def test_a_state_with_holes_and_named_tuples_comes_back(tmp_path):
    saved(tmp_path, 4)
    state = restored(tmp_path)
    assert equal(state, tiny(4)[1])
    assert type(state.opt_state[0]) is optax.ScaleByAdamState and state.opt_state[0].mu["b"] is None


@pytest.mark.parametrize(
    "name, kind", [(name, "dense") for name in CONTRACT] + [("gpt", "int8"), ("mixture", "int4+lora")]
)
def test_every_model_and_type_of_weight_comes_back(tmp_path, name, kind):
    model, state = built(name), state_of(name, kind)
    with Checkpointer(tmp_path, model) as checkpointer:
        checkpointer.save(7, state)
        assert equal(checkpointer.restore(jax.tree.map(jnp.copy, state)), state)
    found = checkpoint.restore_weights(tmp_path / "checkpoints" / "7", model)
    assert equal(found, (state.params, state.model_state))


def test_random_keys_come_back(tmp_path):
    model, state = tiny()
    state = dataclasses.replace(state, opt_state={"key": jax.random.key(11)})
    with Checkpointer(tmp_path, model) as checkpointer:
        checkpointer.save(1, state)
        found = checkpointer.restore(dataclasses.replace(tiny()[1], opt_state={"key": jax.random.key(0)}))
    assert jax.random.key_data(found.opt_state["key"])[1] == 11
    assert found.opt_state["key"].dtype == jax.random.key(0).dtype


def test_restoring_uses_up_the_state_it_is_given(tmp_path):
    saved(tmp_path, 4)
    model, state = tiny()
    Checkpointer(tmp_path, model).restore(state)
    assert all(array.is_deleted() for array in jax.tree.leaves(state))


def test_without_a_checkpoint_the_state_is_the_given_one(tmp_path):
    model, state = tiny()
    assert Checkpointer(tmp_path, model, log=silent).restore(state) is state
    assert list(tmp_path.iterdir()) == []


# Law 3
def test_resumed_is_never_stopped(tmp_path):
    model = built("nnx")  # dropout and batch statistics: a step depends on all parts of the state
    optimizer = make_optimizer(Optimizer(learning_rate=0.01, warmup=2), 6, model.layout)
    step = make_step(model, classification(model), optimizer)

    def run(steps: int, folder: str) -> tuple[TrainState, list]:
        told = []
        with Checkpointer(tmp_path / folder, model) as checkpointer:
            state = checkpointer.restore(make_state(model, optimizer, params=params_of("nnx")))
            state = fit(
                state,
                step,
                ((k, batch_of("nnx", k)) for k in itertools.count(int(state.step))),
                key=KEY,
                steps=steps,
                hooks=[lambda *numbers: told.append(numbers)],
                log_every=1,
                checkpointer=checkpointer,
                save_every=1,
            )
        return state, told

    through, told = run(6, "through")
    _, first = run(3, "stopped")
    resumed, last = run(6, "stopped")
    assert equal(resumed, through)
    assert first + last == told and len(last) == 3


def test_the_step_after_a_save_may_reuse_the_memory(tmp_path):
    model = from_function(lambda key: {"a": jnp.zeros(2)}, lambda params, batch: batch)
    ruin = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0)
    values = np.arange(2_000_000, dtype=np.float32)
    state = TrainState(jnp.int32(1), {"a": jnp.asarray(values)}, (), {})
    ruined = ruin(jax.tree.map(jnp.copy, state))  # compiled before it counts
    with Checkpointer(tmp_path, model) as checkpointer:
        checkpointer.save(1, state)
        ruined = ruin(state)
        jax.block_until_ready(ruined)
        checkpointer.wait()
        assert np.array_equal(checkpointer.restore(ruined).params["a"], values)


# Law 2
@pytest.mark.parametrize("kind", ["dense", "int4+lora"])
def test_saved_on_one_mesh_restored_on_another(tmp_path, kind):
    model, state = built("gpt"), state_of("gpt", kind)

    def placed(sizes: dict[str, int]) -> TrainState:
        """The state on a mesh of the first devices."""
        partitioning = Partitioning(make_mesh(sizes, jax.devices()[: math.prod(sizes.values())]))
        each: Any = partitioning.shardings(model.layout, state.params)
        whole: Any = partitioning.replicated()
        kept, _ = weights.partition(each, model.layout)
        return jax.device_put(jax.tree.map(np.array, state), TrainState(whole, each, {"mean": kept}, {}))

    with Checkpointer(tmp_path, model) as checkpointer:
        checkpointer.save(5, placed({"fsdp": 4, "tensor": 2}))
        for sizes in ({"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 4}, {"data": 1}):
            wanted = [array.sharding for array in jax.tree.leaves(placed(sizes))]
            found = checkpointer.restore(placed(sizes))
            assert equal(found, state)
            assert [array.sharding for array in jax.tree.leaves(found)] == wanted


def test_shapes_will_do_for_what_is_wanted(tmp_path):
    step = saved(tmp_path, 2) / "2"
    model, state = tiny()
    shapes = jax.eval_shape(lambda: state)
    assert equal(checkpoint.restore_state(step, shapes, model), tiny(2)[1])


# What else is there


def test_a_checkpoint_describes_itself(tmp_path):
    model = built("gpt")
    state = state_of("gpt", "int4+lora")
    with Checkpointer(tmp_path, model, info={"task": "language_model", "seed": 1}) as checkpointer:
        checkpointer.save(3, state, {"seed": 2, "sizes": (4, 5)})
    record = checkpoint.read_record(tmp_path / "checkpoints" / "3")
    assert record.step == 3 and record.info == {"task": "language_model", "seed": 2, "sizes": [4, 5]}
    assert record.config["type"] == "Transformer" and record.config["attention"]["num_heads"] == 8
    assert record.versions == {"schema": checkpoint.SCHEMA, "jaxmodel": jaxmodel.__version__, "jax": jax.__version__}
    assert record.arrays["step"] == "int32[]"
    assert record.arrays["params/stack/0/block/attention/query/base/values"] == "uint8[2,16,32]"
    assert record.weights["stack/0/block/attention/query"]["leaf"] == "LowRank"
    with pytest.raises(TypeError):
        checkpointer.save(4, state, {"key": object()})


def test_the_manifest_names_every_file_with_its_sha256(tmp_path):
    import hashlib

    step = saved(tmp_path, 1) / "1"
    files = json.loads((step / "manifest.json").read_text())["files"]
    there = {path.relative_to(step).as_posix() for path in step.rglob("*") if path.is_file()}
    assert there - set(files) == {"manifest.json"} and set(files) <= there
    for name, entry in files.items():
        data = (step / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_orbax_stays_behind_one_door():
    library = Path(jaxmodel.__file__).parent
    users = {
        path.relative_to(library).as_posix() for path in library.rglob("*.py") if "import orbax" in path.read_text()
    }
    assert users == {"checkpoint/arrays.py"}


# Which steps stay


@pytest.mark.parametrize("keep, left", [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_the_newest_steps_are_kept(tmp_path, keep, left):
    folder = saved(tmp_path, 1, 2, 3, 4, keep=keep)
    assert sorted(each.name for each in folder.iterdir()) == list(map(str, left))


def test_a_damaged_step_is_not_counted_among_those_kept(tmp_path):
    folder = saved(tmp_path, 1, 2, 3)
    (folder / "3" / "model.json").write_text("{}")
    saved(tmp_path, 4, keep=2)
    assert checkpoint.steps(folder) == [2, 4]


def test_damaged_steps_ahead_do_not_push_out_a_good_one(tmp_path):
    folder = saved(tmp_path, 2, 8, 9)
    for step in ("8", "9"):
        (folder / step / "model.json").unlink()
    saved(tmp_path, 4, keep=1)
    assert checkpoint.steps(folder) == [4, 8, 9]
    lines = []
    assert checkpoint.latest(tmp_path, lines.append) == 4 and len(lines) == 2


def test_saving_a_step_again_replaces_it(tmp_path):
    folder = saved(tmp_path, 1, 2)
    with Checkpointer(tmp_path, tiny()[0]) as checkpointer:
        checkpointer.save(2, tiny(22)[1])
    assert sorted(each.name for each in folder.iterdir()) == ["1", "2"]
    assert equal(restored(tmp_path), tiny(22)[1])


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"checkpoint\.keep=0: must be at least 1"):
        Checkpointer(tmp_path, tiny()[0], keep=0)


# What does not fit


def test_arrays_that_do_not_fit_are_named(tmp_path):
    step = saved(tmp_path, 1) / "1"
    model, state = tiny(1, columns=4)
    state = TrainState(state.step, state.params, {"new": jnp.zeros(1)}, {"mean": jnp.zeros(2, jnp.bfloat16)})
    with pytest.raises(InputError) as caught:
        checkpoint.restore_state(step, state, model)
    message = str(caught.value)
    assert message.startswith(f"{step} does not fit what is asked for (")
    assert "opt_state/0/count: in the checkpoint only" in message
    assert "opt_state/new: not in the checkpoint" in message
    assert "params/a: float32[2,3] in the checkpoint, float32[2,4] asked for" in message
    assert "model_state/mean: float32[2] in the checkpoint, bfloat16[2] asked for" in message
    assert message.endswith("go on with the settings it was saved with, or start in another workdir")


def test_many_differences_are_counted(tmp_path):
    model = built("gpt")
    with Checkpointer(tmp_path, model) as checkpointer:
        checkpointer.save(1, state_of("gpt", "dense"))
    with pytest.raises(InputError, match=r"; and \d+ more\): go on"):
        checkpoint.restore_state(tmp_path / "checkpoints" / "1", tiny()[1], tiny()[0])


def test_other_settings_of_the_same_arrays_are_named(tmp_path):
    model = built("function")

    def adapted(alpha: float) -> TrainState:
        def make() -> TrainState:
            params = model.init(KEY)
            params = weights.lora(params, model.layout, rank=2, alpha=alpha, key=KEY, select="up")
            return TrainState(jnp.int32(1), params, (), {})

        return filled(jax.eval_shape(make))

    words = "up: LowRank(scale=2.0, table=False) in the checkpoint, LowRank(scale=1.0, table=False) asked for"
    with Checkpointer(tmp_path, model) as checkpointer:
        checkpointer.save(1, adapted(alpha=4))
        with pytest.raises(InputError, match=re.escape(words)):
            checkpointer.restore(adapted(alpha=2))


def test_weights_of_another_model_are_named(tmp_path):
    step = saved(tmp_path, 1) / "1"
    other = from_function(lambda key: {"a": jnp.zeros((2, 3)), "c": jnp.zeros(1)}, lambda params, batch: batch)
    with pytest.raises(InputError, match=r"\(b: in the checkpoint only; c: not in the checkpoint\)"):
        checkpoint.restore_weights(step, other)
    with pytest.raises(InputError, match=r"a: \[2, 3\] in the checkpoint, \[2, 4\] in the model"):
        checkpoint.restore_weights(step, tiny(columns=4)[0])


def test_a_workdir_of_another_model_is_refused_and_one_that_runs_otherwise_is_not(tmp_path):
    checkpoint.check_config(tmp_path, GPT)  # nothing there, nothing to differ from
    with Checkpointer(tmp_path, built("gpt")) as checkpointer:
        checkpointer.save(1, state_of("gpt", "dense"))
    checkpoint.check_config(tmp_path, replace(GPT, {"execution.remat": True, "execution.dtype": "bfloat16"}))
    asked = replace(GPT, {"num_layers": 6, "mlp.bias": False})
    words = (
        f"{tmp_path} holds another model (model.num_layers: 2 in the checkpoint, 6 asked for; "
        f"model.mlp.bias: true in the checkpoint, false asked for): ask for that model to go on, "
        f"or name another --workdir (with --init_from={tmp_path} to start from these weights)"
    )
    with pytest.raises(InputError, match=f"^{re.escape(words)}$"):
        checkpoint.check_config(tmp_path, asked)
    with pytest.raises(InputError, match=r"holds another model \(model: Transformer in the checkpoint, ConvNet asked"):
        Checkpointer(tmp_path, built("conv")).restore(tiny()[1])


def test_a_model_made_from_code_is_compared_by_its_arrays_alone(tmp_path):
    model, state = tiny(1)
    whole = chain(first=model, second=built("gpt"))
    assert checkpoint.read_record(saved(tmp_path, 1) / "1").config == {"opaque": "function"}
    checkpoint.check_config(tmp_path, whole.config)
    with pytest.raises(InputError, match="does not fit what is asked for"):
        Checkpointer(tmp_path, whole).restore(TrainState(state.step, {"first": {}}, (), {}))
