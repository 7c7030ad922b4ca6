"""A stack is segments, pattern x repeats: scanned or unrolled over one stored layout.

Segment `i` of the params holds one entry a kind of block, `stack/i/kind/…`, every array with a leading `layers` dim
that counts that kind's blocks in the order they run (a pattern with five local blocks, repeated four times: 20).
`unstack` turns that dim into a tuple, once and outside jit, for decoding.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel import weights
from jaxmodel.nn.cache import Cache
from jaxmodel.nn.layer import Declared, is_declared

Segments = tuple[tuple[tuple[str, ...], int], ...]

# x (what runs through the blocks, a tree), the state of each (a tree like params, without leaves where there is none)
# and the losses
Ran = tuple[Any, Any, dict[str, jax.Array]]

# What runs one block, by its kind: (its params or variables, x, its state or None, key) -> (x, its state, losses)
RunBlock = Mapping[str, Callable[[Any, Any, Any, "jax.Array | None"], Ran]]


def by_kind(segments: Segments, made: Callable[[str, int, tuple[int, int]], Any]) -> Any:
    """A tree like the params of a stack, of `made(kind, how many blocks there are of it, its place)`."""
    return {
        str(i): {kind: made(kind, times * pattern.count(kind), (i, j)) for j, kind in enumerate(dict.fromkeys(pattern))}
        for i, (pattern, times) in enumerate(segments)
    }


def init_stack(key: jax.Array, segments: Segments, init_block: Mapping[str, Callable[[jax.Array], Any]]) -> Any:
    """`Declared` params of every segment; `init_block[kind]` makes one block's from a key."""

    def stacked(node: Declared) -> Declared:
        return Declared(node.value, weights.stacked(node.layout, "layers"))

    def made(kind: str, count: int, place: tuple[int, int]) -> Any:
        keys = jax.random.split(functools.reduce(jax.random.fold_in, place, key), count)
        return jax.tree.map(stacked, jax.vmap(init_block[kind])(keys), is_leaf=is_declared)

    return by_kind(segments, made)


def beside(params: Any, given: Mapping[str, jax.Array], segments: Segments) -> Any:
    """Variables of every block, in a tree like the params: its params, and its own of arrays [L,...] that are given."""
    names = [(i, kind) for i, (pattern, repeats) in enumerate(segments) for kind in pattern * repeats]

    def both(place: int, kind: str, mine: Any) -> Any:
        at = jnp.array([n for n, name in enumerate(names) if name == (place, kind)])
        own = jax.tree.map(lambda array: array[at], dict(given))
        if isinstance(mine, tuple):
            return tuple({"params": each, "given": _at(own, i)} for i, each in enumerate(mine))
        return {"params": mine, "given": own}

    return {i: {kind: both(int(i), kind, mine) for kind, mine in segment.items()} for i, segment in params.items()}


def run_stack(
    params: Any, x: Any, state: Any, key: jax.Array | None, segments: Segments, run_block: RunBlock, scan: bool
) -> Ran:
    """x through every block, with the state of each and the summed losses."""
    changed: dict[str, Any] = {}
    totals: dict[str, jax.Array] = {}
    for i, (pattern, repeats) in enumerate(segments):
        mine, before = params[str(i)], dict.fromkeys(pattern) if state is None else state[str(i)]
        keys = None if key is None else jax.random.split(jax.random.fold_in(key, i), repeats * len(pattern))
        apart = any(isinstance(kind, tuple) for kind in (*mine.values(), *before.values()))
        run = _scanned if scan and repeats > 1 and not apart else _unrolled
        x, changed[str(i)], losses = run(run_block, pattern, repeats, x, mine, before, keys)
        _add(totals, losses)
    return x, None if state is None else changed, totals


def unstack(tree: Any, state: Any) -> Any:
    """A model's params, or its cache, with every kind of block as a tuple of its blocks, in the order they run.

    Arrays are copied out of their stacks: do it once, outside jit, and let go of the original.

    Args:
      tree: params or state; what is unstacked already stays as it is.
      state: as `model.start(1, 1)` gives it, or its shapes. A stack of ours is known by the caches that the state
        keeps for its blocks, at the same path; all else, whatever it is called, stays as it is.
    """
    return _split(tree, state, lambda kind, depth: tuple(_at(kind, i) for i in range(depth)))


def unstack_layout(layout: Any, state: Any) -> Any:
    """The layout of `unstack(params, state)`."""
    return _split(layout, state, lambda kind, depth: (jax.tree.map(weights.unstacked, kind),) * depth)


def _split(tree: Any, state: Any, split: Callable[[Any, int], tuple[Any, ...]]) -> Any:
    """The tree with `split(kind, how many blocks it has)` in place of every kind of block in a stack."""
    caches = state if isinstance(state, tuple) else (state,)
    if caches and all(isinstance(each, Cache) for each in caches):
        depth = len(state) if isinstance(state, tuple) else jax.tree.leaves(state)[0].shape[0]
        return tree if isinstance(tree, tuple) else split(tree, depth)
    if isinstance(tree, dict) and isinstance(state, dict):
        return {name: _split(each, state.get(name), split) for name, each in tree.items()}
    return tree


def _at(kind: Any, index: int) -> Any:
    """One block's part of what is stacked, or a tuple."""
    return kind[index] if isinstance(kind, tuple) else jax.tree.map(lambda array: array[index], kind)


def _add(totals: dict[str, jax.Array], losses: Mapping[str, jax.Array]) -> None:
    for name, value in losses.items():
        totals[name] = totals[name] + value if name in totals else value


def _unrolled(
    run_block: RunBlock, pattern: tuple[str, ...], repeats: int, x: Any, params: Any, state: Any, keys: Any
) -> Ran:
    after: dict[str, list[Any]] = {kind: [] for kind in pattern}
    totals: dict[str, jax.Array] = {}
    for place, kind in enumerate(pattern * repeats):
        mine, before = (_at(tree[kind], len(after[kind])) for tree in (params, state))
        x, now, losses = run_block[kind](mine, x, before, None if keys is None else keys[place])
        after[kind].append(now)
        _add(totals, losses)
    packed = {
        kind: tuple(each) if isinstance(state[kind], tuple) else jax.tree.map(lambda *a: jnp.stack(a), *each)
        for kind, each in after.items()
    }
    return x, packed, totals


def _scanned(
    run_block: RunBlock, pattern: tuple[str, ...], repeats: int, x: Any, params: Any, state: Any, keys: Any
) -> Ran:
    def split(array: jax.Array) -> jax.Array:
        return array.reshape(repeats, array.shape[0] // repeats, *array.shape[1:])

    def body(x: Any, slices: Any) -> tuple[jax.Array, Any]:
        x, *found = _unrolled(run_block, pattern, 1, x, *slices)
        return x, found

    x, (after, losses) = jax.lax.scan(body, x, jax.tree.map(split, (params, state, keys)))
    after = jax.tree.map(lambda array: array.reshape(len(array) * array.shape[1], *array.shape[2:]), after)
    return x, after, {name: jnp.sum(value, axis=0) for name, value in losses.items()}
