"""Evaluation by several processes: each gives its own rows, and all find the numbers of one."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmodel.data.loader import ArraySource, sequential
from jaxmodel.evaluate import evaluate
from jaxmodel.model import from_function, sharded
from jaxmodel.sharding import Partitioning, make_mesh
from jaxmodel.tasks import TASKS
from jaxmodel.train import put

ROOT = Path(__file__).parent.parent
TASK = TASKS["binary"]

CHILD = """
import json, sys
import jax

port, index, log = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, int(index))

from tests.test_evaluate_processes import measured

with open(log, "w") as file:  # not to stdout, where Gloo talks too
    json.dump(measured({"data": 4}, slice(4 * int(index), 4 * int(index) + 4)), file)
jax.distributed.shutdown()
"""


def measured(mesh, rows=None):
    """What is found of 21 examples in batches of eight, of which this process gives `rows`."""
    rng = np.random.default_rng(0)
    data = {"features": rng.normal(size=(21, 4)).astype(np.float32), "targets": rng.integers(0, 2, 21).astype(np.int32)}
    model = from_function(
        lambda key: {"w": jax.random.normal(key, (4, 1))},
        lambda params, batch: {"logits": batch["features"] @ params["w"]},
    )
    partitioning = Partitioning(make_mesh(mesh))
    model = sharded(model, partitioning.mesh)
    return evaluate(
        TASK.loss(model),
        model.init(jax.random.key(0)),
        sequential(ArraySource(data), 8, rows),
        put=lambda batch: put(batch, partitioning),
        collect=TASK.collect,
    )


def test_two_processes_find_the_numbers_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    logs = [tmp_path / "0.json", tmp_path / "1.json"]
    commands = ([sys.executable, "-c", CHILD, port, str(i), log] for i, log in enumerate(logs))
    children = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for command in commands]
    for child in children:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
    wanted = measured({"data": 8})
    assert set(wanted) == set(TASK.metrics)
    for log in logs:
        assert json.loads(log.read_text()) == pytest.approx(wanted, rel=1e-6)
