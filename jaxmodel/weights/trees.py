"""Trees of weights: what trains and what does not, how many bytes, and a description to rebuild one from."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel.errors import InputError
from jaxmodel.weights.layout import Layout, map_weights
from jaxmodel.weights.leaves import LEAVES, Leaf, is_leaf


def partition(params: Any, layout: Any) -> tuple[Any, Any]:
    """(trainable, rest): two trees of the same nodes with `None` where the other holds the array.

    An array trains unless its layout is frozen; a leaf trains the fields it names. Once one leaf of the tree has
    an opinion (an adapter, a calibration), plain arrays stay still: that is what adapting means. Those whose layout
    is marked `trained` (a new head) train all the same. Not by dtype: scales are floats too.
    """
    opinions = map_weights(lambda each, weight: not each.frozen and is_leaf(weight) and _trains(weight), layout, params)
    speaks = any(jax.tree.leaves(opinions))
    mask = map_weights(lambda each, weight: _mask(each, weight, speaks), layout, params)
    trainable = jax.tree.map(lambda trains, array: array if trains else None, mask, params)
    rest = jax.tree.map(lambda trains, array: None if trains else array, mask, params)
    return trainable, rest


def cast(params: Any, dtype: Any) -> Any:
    """The same params with plain floating arrays in `dtype`; quantized and adapted weights stay as they are."""

    def one(weight: Any) -> Any:
        plain = not is_leaf(weight) and jnp.issubdtype(weight.dtype, jnp.floating)
        return weight.astype(dtype) if plain else weight

    return jax.tree.map(one, params, is_leaf=is_leaf)


def _trains(node: Leaf) -> bool:
    return bool(node.trainable) or any(is_leaf(f) and _trains(f) for f in _arrays(node).values())


def _arrays(node: Leaf) -> dict[str, Any]:
    return {name: getattr(node, name) for name in node.arrays}


def _mask(layout: Layout, weight: Any, speaks: bool) -> Any:
    """A tree of bools like the weight: True where it trains."""
    if layout.frozen:
        return jax.tree.map(lambda _: False, weight)
    if not is_leaf(weight):
        return jax.tree.map(lambda _: layout.trained or not speaks, weight)
    fields = {}
    for name, value in _arrays(weight).items():
        if is_leaf(value):
            fields[name] = _mask(layout, value, speaks)
        else:
            fields[name] = jax.tree.map(lambda _, name=name: name in weight.trainable, value)
    return weight.replace(**fields)


def join(first: Any, second: Any) -> Any:
    """One tree from two with holes where the other has arrays; undoes `partition`."""
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=lambda node: node is None)


def decays(layout: Any, params: Any) -> Any:
    """A tree of bools like `params` (holes and all): True where the layout has an arrow, that is, decay applies."""
    return map_weights(lambda each, weight: jax.tree.map(lambda _: each.multiplies, weight), layout, params)


def num_params(params: Any, layout: Any) -> int:
    """How many numbers the model holds, counting each weight as dense; works on shapes alone."""
    from jaxmodel.weights.transforms import densify

    shapes = jax.eval_shape(lambda tree: densify(tree, layout), params)
    return sum(array.size for array in jax.tree.leaves(shapes))


def num_bytes(params: Any) -> int:
    """Bytes of the arrays as they are stored; works on shapes alone."""
    return sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(params))


def describe(tree: Any) -> Any:
    """A JSON-able description of a tree of arrays and leaves, from which `abstract` rebuilds its shape."""
    if tree is None:
        return None
    if is_leaf(tree):
        static = {name: getattr(tree, name) for name in tree.static}
        fields = {name: describe(value) for name, value in _arrays(tree).items()}
        return {"leaf": type(tree).__name__, "static": static, "fields": fields}
    if isinstance(tree, dict):
        return {"dict": {name: describe(value) for name, value in tree.items()}}
    if isinstance(tree, (tuple, list)):
        return {"tuple": [describe(value) for value in tree]}
    return {"shape": list(tree.shape), "dtype": jnp.dtype(tree.dtype).name}


def abstract(description: Any) -> Any:
    """The tree a description stands for, with `jax.ShapeDtypeStruct` in place of arrays.

    Raises:
      InputError: a leaf type this version does not know.
    """
    if description is None:
        return None
    if "leaf" in description:
        name = description["leaf"]
        if name not in LEAVES:
            raise InputError(f"weights of type {name!r} are unknown to this version; it knows {', '.join(LEAVES)}")
        fields = {key: abstract(value) for key, value in description["fields"].items()}
        return LEAVES[name](**fields, **description["static"])
    if "dict" in description:
        return {name: abstract(value) for name, value in description["dict"].items()}
    if "tuple" in description:
        return tuple(abstract(value) for value in description["tuple"])
    return jax.ShapeDtypeStruct(tuple(description["shape"]), jnp.dtype(description["dtype"]))
