"""Reading a llama of 1 GB into stacked, transposed arrays, beside safetensors' own reading, which does neither."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
LAYERS, VOCAB = 16, 32_000
ROUNDS = 5


def shapes(dtype: np.dtype) -> dict[str, tuple[int, int]]:
    """[out, in] of each matrix of a layer, for a model of about 1 GB."""
    width = 1664 if dtype.itemsize == 2 else 1152
    inner, keys = width * 11 // 4, width // 4
    square = dict.fromkeys(("q", "o"), (width, width)) | dict.fromkeys(("k", "v"), (keys, width))
    return square | {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}


def write(directory: Path, dtype: np.dtype) -> None:
    """Random weights, made one by one."""
    from jaxmodel.interop.tensors import Tensor, write_weights

    generator = np.random.default_rng(0)
    sizes = {f"layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in shapes(dtype).items()}
    sizes["embed"] = (VOCAB, shapes(dtype)["q"][1])

    def produce(shape: tuple[int, int]) -> Callable[[], np.ndarray]:
        return lambda: generator.standard_normal(shape, np.float32).astype(dtype)

    write_weights(directory, [Tensor(name, dtype, shape, produce(shape)) for name, shape in sizes.items()])


def ours(directory: Path, dtype: np.dtype) -> list:
    """Every matrix of a kind stacked and turned to [layers, in, out], in jax arrays."""
    import jax

    from jaxmodel.interop.placing import place, stacked
    from jaxmodel.interop.tensors import open_weights

    lazies = open_weights(directory)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def turned(name: str) -> Callable[[], np.ndarray]:
        return lambda: lazies[name].view().T

    arrays = []
    for name, (out, into) in shapes(dtype).items():
        parts = [turned(f"layers.{i}.{name}") for i in range(LAYERS)]
        arrays.append(
            place((LAYERS, into, out), dtype, where, lambda index, parts=parts: stacked(parts, index, dtype))
        )
    embed = lazies["embed"]
    arrays.append(place(embed.shape, dtype, where, lambda index: stacked(lambda: embed.view(), index, dtype)))
    return arrays


def theirs(directory: Path, dtype: np.dtype) -> list:
    """As the file has them, in numpy arrays."""
    from safetensors.numpy import load_file

    return list(load_file(directory / "model.safetensors").values())


def measure() -> dict:
    """Of each dtype the median ratio of speeds in fresh processes, and our peak of memory over the size of the file."""
    found: dict[str, float | dict] = {}
    for name, dtype in DTYPES.items():
        with tempfile.TemporaryDirectory() as directory:
            write(Path(directory), dtype)
            turns = [[_alone(who, directory, name) for who in ("ours", "theirs")] for _ in range(ROUNDS)]
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


def _alone(who: str, directory: str, name: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.load_safetensors", who, directory, name]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _turning(dtype: np.dtype) -> dict[str, float]:
    """GB/s of one thread that copies a transposed matrix: our tiles, and numpy."""
    from jaxmodel.interop.placing import copy

    matrix = np.ones(shapes(dtype)["gate"], dtype)
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


def _contend(who: str, directory: str, name: str) -> dict[str, float]:
    import jax

    from benchmarks.memory import megabytes
    from jaxmodel.interop import placing, tensors  # noqa: F401

    jax.device_put(np.zeros(1)).block_until_ready()
    size = os.path.getsize(Path(directory, "model.safetensors"))
    with open(Path(directory, "model.safetensors"), "rb") as file:
        while file.read(1 << 24):  # from the disk, whose speed is not the question
            pass
    before, start = megabytes("VmRSS"), time.perf_counter()
    kept = {"ours": ours, "theirs": theirs}[who](Path(directory), DTYPES[name])
    seconds = time.perf_counter() - start
    assert sum(array.nbytes for array in kept) > 0.99 * size
    memory = (megabytes("VmHWM") - before) * 2**20 / size
    return {"speed": size / 1e9 / seconds, "memory": memory, "GB": size / 1e9}


if __name__ == "__main__":
    print(json.dumps(_contend(*sys.argv[1:])))
