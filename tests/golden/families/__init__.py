"""One tiny model of each family: its config.json, a batch, and what transformers gives for weights made from names.

The weights are not stored: both sides make them from the names and shapes of the tensors. `make goldens`, which needs
torch and transformers, writes the files; tests/interop/huggingface/test_golden.py reads them and needs neither.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

FOLDER = Path(__file__).parent


class Golden(NamedTuple):
    """What is kept of one model: config.json, {tensor: (dtype, shape)}, a batch by our names, values by ours."""

    config: dict[str, Any]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    batch: Mapping[str, np.ndarray]
    values: Mapping[str, np.ndarray]


def write_directory(folder: Path, golden: Golden) -> None:
    """A directory as transformers writes it, with the weights that the names say."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor(name, *how) for name, how in golden.tensors.items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(golden.config))


def tensor(name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that a name stands for, by a generator whose stream is frozen; a variance is positive, a count 0."""
    if np.issubdtype(np.dtype(dtype), np.integer):
        return np.zeros(shape, dtype)
    found = 0.2 * np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return np.asarray(np.abs(found) + 0.5 if name.endswith("running_var") else found, dtype)


def save(name: str, golden: Golden) -> Path:
    """Write tests/golden/families/NAME.npz."""
    about = json.dumps({"config": golden.config, "tensors": golden.tensors}, sort_keys=True)
    arrays = {f"batch/{key}": value for key, value in golden.batch.items()}
    arrays |= {f"value/{key}": value for key, value in golden.values.items()}
    path = FOLDER / f"{name}.npz"
    arrays["about"] = np.array(about)
    np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]  # its names are no options
    return path


def read(path: Path) -> Golden:
    """What `save` wrote."""
    with np.load(path) as found:
        about = json.loads(str(found["about"]))
        named = {
            kind: {key.removeprefix(kind): found[key] for key in found.files if key.startswith(kind)}
            for kind in ("batch/", "value/")
        }
    tensors = {name: (dtype, tuple(shape)) for name, (dtype, shape) in about["tensors"].items()}
    return Golden(about["config"], tensors, named["batch/"], named["value/"])
