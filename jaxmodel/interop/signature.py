"""What a model reads and keeps, in shapes whose free dims have names: the signature that an export writes down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmodel import weights
from jaxmodel.errors import InputError
from jaxmodel.model import Model, State
from jaxmodel.nn.stack import unstack

# The cache to look at where nothing limits it: longer than any window.
LARGEST = 1 << 20


class Array(NamedTuple):
    """What a program takes or gives under one name; a dim that is a word is free: "batch", "length", "capacity"."""

    dtype: str
    shape: tuple[int | str, ...]


Arrays = Mapping[str, Array]
# As a config or a caller says it: {"tokens": ("int32", ("batch", "length"))}.
Inputs = Mapping[str, tuple[str, tuple[int | str, ...]]]


class Cache(NamedTuple):
    """An empty cache: its arrays, the number that fills each, and a state (of shapes) that holds it."""

    arrays: Arrays
    fills: Mapping[str, float]
    like: Any

    def empty(self, statistics: State, **sizes: int) -> State:
        """A state with batch statistics, perhaps, and an empty cache: `empty({}, batch=2, capacity=64)`."""
        made = {
            name: jnp.full([sizes.get(str(dim), dim) for dim in array.shape], self.fills[name], array.dtype)
            for name, array in self.arrays.items()
        }
        return unflat(flat(statistics) | made, self.like)


def flat(tree: Any) -> dict[str, Any]:
    """A tree as {"stack/0/block/0/mlp/up/values": array}: nothing else crosses the border of a program."""
    return {weights.path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def unflat(arrays: Mapping[str, Any], like: Any) -> Any:
    """A tree like `like` from what `flat` made of one."""
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in flat(like)])


def inputs_of(model: Model) -> Arrays:
    """What a model reads, as its config says; InputError if that says nothing."""
    first = next(parts_of(model.config))  # it reads the batch
    inputs = getattr(first, "inputs", None)
    if inputs is None:
        name = getattr(first, "name", type(first).__name__)
        raise InputError(
            f"{name} does not say what it reads: pass inputs=, as in {{'features': ('float32', ('batch', 30))}}"
        )
    return {name: Array(*each) for name, each in inputs.items() if name != "masked"}  # which only training hides


def limits_of(model: Model) -> dict[str, int]:
    """The largest that free dims may be, as the config says."""
    return dict(of_config(model.config, "limits") or {})


def parts_of(config: Any) -> Iterator[Any]:
    """The configs within what wraps or chains them, in the order that their models run."""
    if hasattr(config, "base"):
        yield from parts_of(config.base)
    elif hasattr(config, "parts"):
        for _, part in config.parts:
            yield from parts_of(part)
    else:
        yield config


def of_config(config: Any, name: str) -> Any:
    """A field of a config, or of the first part that has it; None where there is none."""
    found = (getattr(part, name, None) for part in parts_of(config))
    return next((each for each in found if each is not None), None)


def cache_of(model: Model) -> Cache:
    """The cache that `start` gives for any sizes; without arrays if it gives none, or one that waits for a source.

    `start` takes numbers and may choose by them (a window as long as the cache is no window), so what it gives
    is compared for sizes around the largest that the model takes: there every window is at work.
    """
    limits = limits_of(model)
    largest = limits.get("capacity") or limits.get("length") or LARGEST

    def started(batch: int, capacity: int) -> Any:
        state = model.start(batch, capacity)
        return unstack(state, state)

    def shapes(batch: int, capacity: int) -> Any:
        return jax.eval_shape(lambda: started(batch, capacity))

    # Where a window is just one shorter than the largest cache, the next one has no window: look one further down.
    sizes = ((capacity, shapes(1, capacity), shapes(1, capacity - 1)) for capacity in (largest, largest - 1))
    capacity, like, less = next(s for s in sizes if jax.tree.structure(s[1]) == jax.tree.structure(s[2]))
    if any(0 in array.shape for array in jax.tree.leaves(like)):
        return Cache({}, {}, like)
    more, less, statistics = flat(shapes(2, capacity)), flat(less), flat(jax.eval_shape(model.start))
    arrays = {}
    for name, array in flat(like).items():
        if name not in statistics:
            sizes = zip(array.shape, more[name].shape, less[name].shape, strict=True)
            dims = ("batch" if wide != n else "capacity" if short != n else n for n, wide, short in sizes)
            arrays[name] = Array(array.dtype.name, tuple(dims))

    def ends() -> Any:
        """The least and the greatest number of each array; compiled, no array is ever made."""
        empty = flat(started(1, capacity))
        return {name: (empty[name].min(), empty[name].max()) for name in arrays}

    spread = jax.device_get(jax.jit(ends)())
    assert all(low == high for low, high in spread.values()), "an empty cache holds one number everywhere"
    return Cache(arrays, {name: low.item() for name, (low, _) in spread.items()}, like)
