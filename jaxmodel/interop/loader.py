"""Run an export with jax, numpy and flatbuffers alone: copy this file."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

DTYPES = {"F32": "f4", "BF16": "bfloat16", "F16": "f2", "I32": "i4", "I8": "i1", "U8": "u1", "U32": "u4"}


def load(directory):
    """(weights, programs, cache): `programs["forward"](weights, batch)`; `cache(batch=2, capacity=64)` is empty."""
    folder = pathlib.Path(directory)
    file = np.memmap(folder / "weights.safetensors", "u1", "r")
    first = 8 + int(file[:8].view("<u8")[0])
    weights, programs = {}, {}
    for name, each in json.loads(bytes(file[8:first])).items():
        array = np.ndarray(each["shape"], DTYPES[each["dtype"]], file, first + each["data_offsets"][0])
        weights[name] = jnp.asarray(array)
    for path in folder.glob("*.stablehlo"):
        programs[path.stem] = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    empty = json.loads((folder / "model.json").read_text())["cache"]

    def cache(**sizes):
        shapes = {name: [sizes.get(dim, dim) for dim in each["shape"]] for name, each in empty.items()}
        return {name: jnp.full(shapes[name], each["fill"], each["dtype"]) for name, each in empty.items()}

    return weights, programs, cache
