"""Loading a llama of 1 GB from its directory, beside safetensors' own reading, which stacks and turns nothing."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
ROUNDS = 5


def config(dtype: np.dtype) -> Any:
    """A llama of about 1 GB: grouped heads, an untied head."""
    from jaxmodel.models.configs import Transformer
    from jaxmodel.models.parts import MLP, Attention

    width = 1664 if dtype.itemsize == 2 else 1152
    return Transformer(
        vocab_size=32_000,
        max_length=2048,
        embed_dim=width,
        num_layers=14,
        attention=Attention(num_heads=16, num_kv_heads=4, rotary=True),
        mlp=MLP(dim=width * 11 // 4, activation="swiglu"),
    )


def write(directory: Path, dtype: np.dtype) -> None:
    """Its config.json and model.safetensors, of random weights."""
    import jax

    from jaxmodel.interop.huggingface import directory as huggingface

    generator = np.random.default_rng(0)

    def random(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        return generator.standard_normal(shape.shape, np.float32).astype(dtype)

    model = config(dtype).build()
    params = jax.tree.map(random, jax.eval_shape(model.init, jax.random.key(0)))
    huggingface.write(directory, model, params)


def ours(directory: Path) -> list:
    """A model and its params: every matrix of a kind stacked and turned to [layers, in, out], in jax arrays."""
    import jax

    from jaxmodel.loading import load

    return jax.tree.leaves(jax.block_until_ready(load(directory).params))


def theirs(directory: Path) -> list:
    """As the file has them, in numpy arrays."""
    from safetensors.numpy import load_file

    return list(load_file(directory / "model.safetensors").values())


def measure() -> dict:
    """Of each dtype the median ratio of speeds in fresh processes, and our peak of memory over the size of the file."""
    found: dict[str, float | dict] = {}
    for name, dtype in DTYPES.items():
        with tempfile.TemporaryDirectory() as directory:
            write(Path(directory), dtype)
            turns = [[_alone(who, directory) for who in ("ours", "theirs")] for _ in range(ROUNDS)]
        ratios = [own["speed"] / other["speed"] for own, other in turns]
        found[f"ratio_{name}"] = statistics.median(ratios)
        found[f"memory_{name}"] = max(own["memory"] for own, _ in turns)
        found[name] = {
            "GB": turns[0][0]["GB"],
            "ratios": [round(ratio, 3) for ratio in ratios],
            "ours_GB_per_s": statistics.median(own["speed"] for own, _ in turns),
            "theirs_GB_per_s": statistics.median(other["speed"] for _, other in turns),
            "theirs_memory": max(other["memory"] for _, other in turns),
            "turned_GB_per_s": _turning(dtype),
        }
    return found


def _alone(who: str, directory: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.load_safetensors", who, directory]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _turning(dtype: np.dtype) -> dict[str, float]:
    """GB/s of one thread that copies a transposed matrix: our tiles, and numpy."""
    from jaxmodel.interop.placing import copy

    width = config(dtype).embed_dim
    matrix = np.ones((width * 11 // 4, width), dtype)
    out = np.ones(matrix.shape[::-1], dtype)
    ways = {"tiles": lambda: copy(out, matrix.T), "numpy": lambda: np.copyto(out, matrix.T)}
    found = {}
    for name, way in ways.items():
        times = []
        for _ in range(5):
            start = time.perf_counter()
            way()
            times.append(time.perf_counter() - start)
        found[name] = matrix.nbytes / 1e9 / min(times)
    return found


def _contend(who: str, directory: str) -> dict[str, float]:
    import jax

    from benchmarks.memory import megabytes
    from jaxmodel import loading  # noqa: F401
    from jaxmodel.models import transformer  # noqa: F401

    jax.device_put(np.zeros(1)).block_until_ready()
    size = os.path.getsize(Path(directory, "model.safetensors"))
    with open(Path(directory, "model.safetensors"), "rb") as file:
        while file.read(1 << 24):  # from the disk, whose speed is not the question
            pass
    before, start = megabytes("VmRSS"), time.perf_counter()
    kept = {"ours": ours, "theirs": theirs}[who](Path(directory))
    seconds = time.perf_counter() - start
    assert sum(array.nbytes for array in kept) > 0.99 * size
    memory = (megabytes("VmHWM") - before) * 2**20 / size
    return {"speed": size / 1e9 / seconds, "memory": memory, "GB": size / 1e9}


if __name__ == "__main__":
    print(json.dumps(_contend(*sys.argv[1:])))
