"""A mesh and its rules, bound to a model when it is built: where every array lives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmodel.errors import InputError
from jaxmodel.sharding.rules import RULES, Rules
from jaxmodel.weights import Layout, is_leaf, map_weights, map_weights_with_path, parse
from jaxmodel.weights.layout import Dims


@dataclasses.dataclass(frozen=True)
class Partitioning:
    """Answers where weights, activations and batches live. Hashable: it is part of what a model is compiled for."""

    mesh: Mesh
    rules: Rules = RULES

    def mesh_axes(self, dims: Dims, without: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The mesh axes (larger than one) that the dims behind one array axis are split over."""
        table = dict(self.rules)
        axes = [axis for dim in dims for axis in table.get(dim, ())]
        return tuple(a for a in dict.fromkeys(axes) if self.mesh.shape[a] > 1 and a not in without)

    def spec(self, axes: tuple[Dims, ...], shape: tuple[int, ...], without: tuple[str, ...] = ()) -> PartitionSpec:
        """The spec of an array; an axis whose size does not divide stays whole (scales of few groups do)."""
        entries: list[Any] = []
        used: set[str] = set()
        for dims, size in zip(axes, shape, strict=True):
            chosen = tuple(a for a in self.mesh_axes(dims, without) if a not in used)
            if size % math.prod(self.mesh.shape[a] for a in chosen):
                chosen = ()
            used.update(chosen)
            entries.append(chosen if len(chosen) > 1 else chosen[0] if chosen else None)
        return PartitionSpec(*entries)

    def specs(self, layout: Any, params: Any, without: tuple[str, ...] = ()) -> Any:
        """A tree of specs like `params` (arrays or shapes, any leaf types)."""
        return map_weights(lambda each, weight: self._weight_specs(each, weight, without), layout, params)

    def _weight_specs(self, layout: Layout, weight: Any, without: tuple[str, ...] = ()) -> Any:
        if not is_leaf(weight):
            return None if weight is None else self.spec(layout.axes, weight.shape, without)
        axes = weight.axes(layout)
        # `axes` has tuples of dims where the weight has arrays: flatten it only that far down.
        return jax.tree.map(lambda array, dims: self.spec(dims, array.shape, without), weight, axes)

    def shardings(self, layout: Any, params: Any) -> Any:
        """A tree of `NamedSharding` like `params`."""
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), self.specs(layout, params))

    def check(self, layout: Any, params: Any) -> None:
        """InputError naming the weight, its dim and the mesh axis when the mesh does not divide an axis of a weight.

        Dims are flattened first: six heads of 32 may be cut in four, at the cost of moving activations.
        """

        def check(path: str, each: Layout, weight: Any) -> None:
            if is_leaf(weight):
                return
            for dims, size in zip(each.axes, weight.shape, strict=True):
                axes = self.mesh_axes(dims)
                pieces = math.prod(self.mesh.shape[a] for a in axes)
                if size % pieces:
                    flags = " * ".join(f"mesh.{a}={self.mesh.shape[a]}" for a in axes)
                    raise InputError(
                        f"{flags} does not divide {' * '.join(dims)} = {size} of {path}: "
                        f"change the mesh, or make {dims[0]} a multiple of {pieces}"
                    )

        map_weights_with_path(check, layout, params)

    def constrain(self, x: jax.Array, *dims: str | None) -> jax.Array:
        """x, its axes split as the named dims are; None is a dim that is not split."""
        spec = self.spec(tuple(() if dim is None else (dim,) for dim in dims), x.shape)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def splitting(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        """The `apply` of a model that knows of no mesh, its batch split; one that does not divide stays whole."""

        def split(params: Any, batch: Mapping[str, Any], *args: Any, **options: Any) -> Any:
            batch = {
                name: self.constrain(x, "batch", *(None,) * (x.ndim - 1)) if jnp.ndim(x) else x
                for name, x in batch.items()
            }
            return apply(params, batch, *args, **options)

        return split

    def gather(self, weight: Any, layout: str) -> Any:
        """A weight as it multiplies: whole over the axes that split the batch, still split over the others."""
        gathered = self.mesh_axes(("batch",))
        if not gathered:
            return weight
        specs = self._weight_specs(parse(layout), weight, gathered)
        return jax.tree.map(
            lambda array, spec: jax.lax.with_sharding_constraint(array, NamedSharding(self.mesh, spec)), weight, specs
        )

    def batch(self, rank: int) -> NamedSharding:
        """Where an array of a batch lives: split over its leading axis."""
        axes = self.mesh_axes(("batch",))
        return NamedSharding(self.mesh, PartitionSpec(axes or None, *(None,) * (rank - 1)))

    @property
    def batch_pieces(self) -> int:
        """How many devices share a batch."""
        return math.prod(self.mesh.shape[axis] for axis in self.mesh_axes(("batch",)))

    def check_batch(self, batch_size: int, name: str = "train.batch_size") -> None:
        """InputError when the mesh does not divide the batch."""
        pieces = self.batch_pieces
        if batch_size % pieces:
            flags = " * ".join(f"mesh.{a}={self.mesh.shape[a]}" for a in self.mesh_axes(("batch",)))
            raise InputError(
                f"{flags} does not divide {name}={batch_size}: make it a multiple of {pieces}, or change the mesh"
            )

    def replicated(self) -> NamedSharding:
        """The sharding of a value that every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())
