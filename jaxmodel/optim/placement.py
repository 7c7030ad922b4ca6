"""Where the state of an optimizer lives on a mesh: any of optax, whatever it keeps."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxmodel.weights import path_name


def beside(state: Any, params: Any, shardings: Any, whole: NamedSharding) -> Any:
    """A sharding for each array of an optimizer's state: that of the weight it is kept for.

    That weight is the one whose path is a part of the array's own ("mean/stack/0/block/mlp/up/values"). Each axis
    is cut as the weight's is, where it divides; an array of another rank (rows, counts) is whole.

    Args:
      state: of any optimizer that keeps trees like the params.
      params: what it trains; arrays or shapes.
      shardings: a `NamedSharding` for each array of the params.
      whole: the sharding of what every device holds whole.
    """
    weights = [
        (f"/{path_name(path)}/", array.shape, sharding)
        for (path, array), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    ]

    def place(path: Any, array: Any) -> NamedSharding:
        name = f"/{path_name(path)}/"
        found = [each for each in weights if each[0] in name and len(each[1]) == len(array.shape)]
        if not found:
            return whole
        # Should a weight be called like a part of the state ("mean"), then the shape tells.
        _, _, sharding = min(found, key=lambda each: (each[1] != array.shape, name.find(each[0]), -len(each[0])))
        return NamedSharding(sharding.mesh, _fitting(sharding, array.shape))

    return jax.tree_util.tree_map_with_path(place, state)


def _fitting(sharding: NamedSharding, shape: tuple[int, ...]) -> PartitionSpec:
    """The spec, with those axes whole that it does not divide."""
    entries = (*sharding.spec, *(None,) * (len(shape) - len(sharding.spec)))
    kept: list[Any] = []
    for entry, size in zip(entries, shape, strict=True):
        axes = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
        kept.append(None if size % math.prod(sharding.mesh.shape[a] for a in axes) else entry)
    return PartitionSpec(*kept)
