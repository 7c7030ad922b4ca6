"""A batch held against what a model reads: one line where they differ, not a failure deep inside. Shapes alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxmodel.errors import InputError

# As `config.inputs` says it: {"tokens": ("int32", ("batch", "length"))}; a dim that is a word is free.
Inputs = Mapping[str, tuple[str, Sequence[int | str]]]

KINDS = {"int32": jnp.integer, "float32": jnp.floating, "bool": jnp.bool_}  # of other widths, too


def check_batch(batch: Any, inputs: Inputs, needed: Iterable[str]) -> None:
    """Hold a batch against what a model reads; costs nothing once compiled.

    Args:
      batch: named arrays; what `inputs` does not name, and what is None, is left alone.
      inputs: dtype and dims of what may be read.
      needed: names that must be there.

    Raises:
      InputError: an entry is missing, is no array, has another kind of dtype or another shape, or two entries
        differ in a dim that they share; names the entry, what it is and what is wanted.
    """
    if not isinstance(batch, Mapping):
        example = ", ".join(f'"{name}": {_words(*each)}' for name, each in list(inputs.items())[:1])
        raise InputError(f"a batch is a {type(batch).__name__}: give arrays by name, as in {{{example}}}")
    for name in needed:
        if batch.get(name) is None:
            there, wanted = ", ".join(map(str, batch)) or "nothing", _words(*inputs[name])
            raise InputError(f"{name} is missing: the model reads {name} {wanted}, the batch holds {there}")
    sizes: dict[str, tuple[str, Any]] = {}
    for name, (dtype, dims) in inputs.items():
        if batch.get(name) is None:
            continue
        array, wanted = batch[name], f"the model reads {_words(dtype, dims)}"
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            raise InputError(f"{name} is a {type(array).__name__}, {wanted}: give it as an array")
        have = f"{name} is {_words(array.dtype, array.shape)}"
        if not jnp.issubdtype(array.dtype, KINDS.get(dtype, dtype)):
            raise InputError(f"{have}, {wanted}: change its dtype")
        pairs = list(zip(dims, array.shape, strict=False))
        if len(array.shape) != len(dims) or any(isinstance(d, int) and d != size for d, size in pairs):
            raise InputError(f"{have}, {wanted}: change its shape")
        for dim, size in pairs:
            first, there = sizes.setdefault(str(dim), (name, size))
            if size != there:
                raise InputError(f"{have}, and {first} has {dim} {there}: both have the same {dim}, make them equal")


def _words(dtype: Any, dims: Sequence[Any]) -> str:
    return f"{dtype}[{', '.join(map(str, dims))}]"
