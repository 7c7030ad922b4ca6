"""Arrays in, arrays out: any model over a whole file of examples, a batch at a time."""

from __future__ import annotations

import functools
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodel.config import did_you_mean
from jaxmodel.errors import InputError
from jaxmodel.interop.signature import of_config
from jaxmodel.model import Apply, Model, Outputs, Params, State

Arrays = Mapping[str, np.ndarray]
Postprocess = Callable[[Outputs], dict[str, jax.Array]]
KINDS = {"i": "int32", "u": "int32", "f": "float32", "b": "bool"}


def predict(
    model: Model,
    params: Params,
    arrays: Arrays,
    *,
    state: State = None,
    batch_size: int = 32,
    values: Sequence[str] = (),
    postprocess: Postprocess | None = None,
) -> dict[str, np.ndarray]:
    """The model's values for every row, on the host; floats are float32.

    Args:
      model: its config says in `inputs` what it reads; where it does not, what fits is found out by trying.
      params: its weights, of any leaf types.
      arrays: by name, all with the same number of rows; integers and floats of any width.
      state: batch statistics, for models that have them.
      batch_size: rows computed at once. The last batch is filled up, and what is too much is cut off again.
      values: which values ("logits"); by default all but those that the config calls `pairwise`.
      postprocess: outputs -> named arrays [B, …], which then take the place of the model's values; compiled with it,
        once for each such function.

    Raises:
      InputError: an array that is missing, unknown, or of another rank, size, kind or range than the model
        reads, or a value that it does not give; more rows than one batch, some with no image or several.
    """
    batch = _checked(arrays, model.config)
    num_rows = len(next(iter(batch.values())))
    size = min(batch_size, num_rows)
    if size < num_rows:
        _check_images(batch, model.config)
    finish = postprocess or _values
    given = _names(model, finish, params, {name: array[:size] for name, array in batch.items()}, state)
    # What a row has with every other is not of the row, and the rows of a batch are not all.
    given = [name for name in given if name not in (of_config(model.config, "pairwise") or ())]
    for name in values:
        if name not in given:
            raise InputError(f"the model gives no value {name}: {did_you_mean(name, given)}")

    run = _compiled(model.apply, finish, tuple(values) or tuple(given))
    found = []
    for start in range(0, num_rows, size):
        rows = np.minimum(np.arange(start, start + size), num_rows - 1)
        found.append(jax.device_get(run(params, {name: array[rows] for name, array in batch.items()}, state)))
    return {name: np.concatenate([each[name] for each in found])[:num_rows] for name in found[0]}


def _check_images(batch: Arrays, config: Any) -> None:
    """InputError where images do not stay with their rows in a smaller batch: in one they go by their order alone."""
    token, wanted = (of_config(config, name) for name in ("image_token", "num_vectors"))
    if token is None or wanted is None or "images" not in batch:
        return
    for row, count in enumerate(np.sum(batch["tokens"] == token, axis=1)):
        if count != wanted:
            raise InputError(
                f"row {row} of tokens holds {count} image tokens, an image takes {wanted}: give each row one image, "
                f"or all {len(batch['tokens'])} rows at once by batch_size"
            )


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name; InputError if it is none, or holds none."""
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise InputError(f"{path} holds a single array without a name: write it with np.savez")
        with file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (ValueError, EOFError, IsADirectoryError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no .npz file of plain arrays ({error}): write it with np.savez") from None
    if not arrays:
        raise InputError(f"{path} holds no arrays")
    return arrays


def _checked(arrays: Arrays, config: Any) -> dict[str, np.ndarray]:
    """The arrays in the dtypes that the model reads."""
    inputs, sizes = of_config(config, "inputs") or {}, {}
    if not arrays:
        raise InputError(f"there are no arrays: the model reads {', '.join(inputs) or 'some'}")
    for name, array in arrays.items():
        if inputs and name not in inputs:
            raise InputError(f"the model does not read {name}: it reads {', '.join(inputs)}")
        if KINDS.get(array.dtype.kind) is None or not array.size:
            raise InputError(f"{name} is {_words(array)}: give it numbers, and at least one row")
        # Of what a model made from code alone reads, no more is known than that rows belong together.
        dims = ("batch", *(f"{name}.{i}" for i in range(1, array.ndim)))
        _check_array(name, array, *inputs.get(name, (KINDS[array.dtype.kind], dims)))
        for dim, size in zip(inputs.get(name, (None, dims))[1], array.shape, strict=True):
            first, size_there = sizes.setdefault(dim, (name, size))
            if size != size_there:
                raise InputError(f"{first} has {dim} {size_there}, {name} has {dim} {size}: make them equal")
    tokens, vocab_size = arrays.get("tokens"), of_config(config, "vocab_size")
    if tokens is not None and vocab_size and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        raise InputError(
            f"tokens holds {tokens.min()} to {tokens.max()}, the model's vocabulary is 0 to {vocab_size - 1}: "
            "encode with its own tokenizer"
        )
    return {name: array.astype(KINDS[array.dtype.kind], copy=False) for name, array in arrays.items()}


def _check_array(name: str, array: np.ndarray, dtype: str, dims: Sequence[int | str]) -> None:
    have, want = _words(array), f"{dtype}[{', '.join(map(str, dims))}]"
    if KINDS[array.dtype.kind] != dtype:
        raise InputError(f"{name} is {have}, the model reads {want}: convert it as it was for training")
    fits = array.ndim == len(dims) and all(
        isinstance(dim, str) or dim == size for dim, size in zip(dims, array.shape, strict=True)
    )
    if not fits:
        raise InputError(f"{name} is {have}, the model reads {want}: change its shape")
    if dtype == "int32" and not -(2**31) <= array.min() <= array.max() < 2**31:
        raise InputError(f"{name} holds {array.min()} to {array.max()}, the model reads {want}: out of range")


def _words(array: np.ndarray) -> str:
    return f"{array.dtype}[{', '.join(map(str, array.shape))}]"


def _values(outputs: Outputs) -> dict[str, jax.Array]:
    return outputs.values


def _names(model: Model, finish: Postprocess, params: Params, batch: Arrays, state: State) -> list[str]:
    """The names of what the model gives for such a batch; InputError where it needs more."""
    inputs = of_config(model.config, "inputs")
    try:
        outputs = jax.eval_shape(model.apply, params, dict(batch), state)
    except KeyError as error:
        missing = error.args[0]
        if inputs is not None and missing not in inputs:
            raise
        there = ", ".join(f"{name} {_words(array)}" for name, array in batch.items())
        raise InputError(f"{missing} is missing: the model needs it beside {there}") from None
    return list(jax.eval_shape(finish, outputs))


@functools.lru_cache(maxsize=8)
def _compiled(
    apply: Apply, finish: Postprocess, names: tuple[str, ...]
) -> Callable[[Params, Arrays, State], dict[str, jax.Array]]:
    """The named values of a batch; what nobody asked for is not computed."""

    def plain(value: jax.Array) -> jax.Array:
        # Files of arrays hold no bfloat16.
        return value.astype(jnp.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value

    def run(params: Params, batch: Arrays, state: State) -> dict[str, jax.Array]:
        values = finish(apply(params, batch, state))
        return {name: plain(values[name]) for name in names}

    return jax.jit(run)
