"""Several processes: each answers for its own files, all agree on the step, and meshes may differ."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import jax

from jaxmodel import checkpoint
from jaxmodel.checkpoint import Checkpointer
from jaxmodel.loading import load
from jaxmodel.sharding import Partitioning, make_mesh
from tests.contract import built
from tests.test_checkpoint import equal, silent, state_of

ROOT = Path(__file__).parent.parent

# Loads what the test saved, knowing nothing but the path, and saves it again: steps 10, 20 and, failing, 30.
CHILD = """
import os, sys
import jax

port, index, source, target, log = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, int(index))

import jax.numpy as jnp
from jaxmodel.checkpoint import Checkpointer, manifest
from jaxmodel.errors import InputError
from jaxmodel.loading import load
from jaxmodel.sharding import Partitioning, make_mesh
from jaxmodel.train import TrainState
from jaxmodel.weights import partition

mesh = make_mesh({"data": 2, "fsdp": 2})

def say(line):  # not to stdout, where Gloo talks too
    with open(log, "a") as file:
        print(line, file=file)

loaded = load(source, mesh=mesh, log=say)
trainable, _ = partition(loaded.params, loaded.model.layout)
step = jax.device_put(jnp.int32(20), Partitioning(mesh).replicated())
state = TrainState(step, loaded.params, {"mean": jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(trainable)}, {})

checkpointer = Checkpointer(target, loaded.model, keep=1, log=say)
checkpointer.save(10, state)
checkpointer.save(20, state)
checkpointer.wait()

def refuse(step):
    raise OSError(28, os.strerror(28))

if index == "1":
    manifest.write_part = refuse
checkpointer.save(30, state)
try:
    checkpointer.wait()
except InputError as error:
    say(error)
restored = checkpointer.restore(jax.tree.map(jnp.copy, state))
say(f"restored {restored.step}")
checkpointer.close()
jax.distributed.shutdown()
"""


def test_two_processes_and_one_read_what_the_other_wrote(tmp_path):
    model, state = built("gpt"), state_of("gpt", "int4+lora")
    source, target = tmp_path / "source", tmp_path / "target"
    partitioning = Partitioning(make_mesh({"fsdp": 4, "tensor": 2}))
    params = jax.device_put(state.params, partitioning.shardings(model.layout, state.params))
    with Checkpointer(source, model) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, type(state)(state.step, params, state.opt_state, {}))
    # The second of the files in the manifest is looked at by the second process.
    listed = sorted(json.loads((source / "checkpoints" / "2" / "manifest.json").read_text())["files"])
    (source / "checkpoints" / "2" / listed[1]).unlink()

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    commands = ([sys.executable, "-c", CHILD, port, str(i), source, target, log] for i, log in enumerate(logs))
    children = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for command in commands]
    for child in children:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
    said = [log.read_text().splitlines() for log in logs]
    fell_back = f"{source}/checkpoints: step 2 is damaged: {listed[1]} is missing; using step 1"
    failed = f"{target}/checkpoints: step 30 could not be saved ({{}}); step 20 is still there. Make room, or name "
    failed += "another workdir that can be written"
    assert said[0] == [fell_back, failed.format("process 1 could not write its part"), "restored 20"]
    assert said[1] == [fell_back, failed.format("No space left on device"), "restored 20"]

    step = target / "checkpoints" / "20"
    assert [each.name for each in step.parent.iterdir()] == ["20"]  # one is kept, and nothing half written
    files = json.loads((step / "manifest.json").read_text())["files"]
    for process in (0, 1):
        assert any(f"ocdbt.process_{process}/" in name for name in files)
    assert not list(step.glob("manifest.*.json"))
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    loaded = load(target, mesh=mesh, log=silent)
    assert equal(loaded.params, state.params)
    wanted = Partitioning(mesh).shardings(model.layout, state.params)
    assert jax.tree.all(jax.tree.map(lambda array, where: array.sharding == where, loaded.params, wanted))
    found = checkpoint.restore_state(step, jax.eval_shape(lambda: state), model)
    assert equal(found.params, state.params) and found.step == 20
