"""What an optimizer knows of each array it trains, from the layout of the weight the array belongs to."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any

import jax

from jaxmodel.config import closest
from jaxmodel.errors import InputError
from jaxmodel.weights import Layout, is_leaf, map_weights_with_path

OUTER = {"vocab", "classes"}  # dims of the world outside: what embeds them, or scores them, is no hidden matrix


@dataclasses.dataclass(frozen=True)
class Weight:
    """One array that trains.

    Attributes:
      scale: the learning rate is times this; 0: the array stays as it is.
      multiplies: whether its layout has an arrow; what has none is not decayed and always kept in float32.
      matrix: whether its last two axes are a matrix (all those before are stacked).
      hidden: whether it is a matrix from hidden units to hidden units, not an embedding and not a head.
      axes: the axes of one layer's (or expert's) part of it.
      inputs: the axes that one of its units sums over.
    """

    scale: float
    multiplies: bool
    matrix: bool
    hidden: bool
    axes: tuple[int, ...]
    inputs: tuple[int, ...]


def weights_of(layout: Any, params: Any, scales: Sequence[tuple[str, float]] = ()) -> list[Weight]:
    """A `Weight` for each array of the params, in the order of `jax.tree.leaves`; holes have none.

    Args:
      layout: the layout of every weight.
      params: the trainable part, of any leaf types.
      scales: (glob over paths, factor); the first that matches counts.
    """

    def describe(path: str, each: Layout, weight: Any) -> Any:
        plain = not is_leaf(weight)  # the factors of an adapter lie [in, rank], [rank, out] around a table too
        return jax.tree.map(lambda array: _weight(each, array, _factor(path, scales), each.table and plain), weight)

    return jax.tree.leaves(map_weights_with_path(describe, layout, params))


def _weight(layout: Layout, array: jax.Array, scale: float, table: bool) -> Weight:
    stacked = len(layout.stack)
    axes = tuple(range(stacked, array.ndim))
    matrix = layout.multiplies and len(axes) == 2 and min(array.shape[stacked:]) > 1
    outer = layout.table or not OUTER.isdisjoint(layout.contracted + layout.produced)
    inputs = axes if not layout.multiplies else axes[-1:] if table else axes[-2:-1]
    return Weight(scale, layout.multiplies, matrix, matrix and not outer, axes, inputs)


def check_scales(layout: Any, scales: Sequence[tuple[str, float]]) -> None:
    """InputError for a glob that matches no weight of the layout (the nearest path is named), or if all are frozen."""
    paths: list[str] = []
    map_weights_with_path(lambda path, _: paths.append(path), layout)
    for glob, factor in scales:
        if not fnmatch.filter(paths, glob):
            tops = list(dict.fromkeys(f"{path.partition('/')[0]}/*" if "/" in path else path for path in paths))
            near = closest(glob, tops + paths)
            hint = f"did you mean {near}:{factor:g}?" if near else f"its weights are {', '.join(tops)}"
            raise InputError(f"optimizer.scale={glob}:{factor:g} matches no weight of the model: {hint}")
    if paths and all(_factor(path, scales) == 0 for path in paths):
        raise InputError(
            f"optimizer.scale={','.join(f'{glob}:{factor:g}' for glob, factor in scales)} freezes every weight: "
            "leave one to train"
        )


def _factor(path: str, scales: Sequence[tuple[str, float]]) -> float:
    return next((factor for glob, factor in scales if fnmatch.fnmatchcase(path, glob)), 1.0)
