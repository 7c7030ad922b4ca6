"""A stack is segments, pattern x repeats: scanned or unrolled over one stored layout.

Segment `i` of the params holds one entry a kind of block, `stack/i/kind/…`, every array with a leading `layers` dim
that counts that kind's blocks in the order they run (a pattern with five local blocks, repeated four times: 20).
`unstack` turns that dim into a tuple, once and outside jit, for decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel import weights
from jaxmodel.nn.cache import Cache
from jaxmodel.nn.layer import Declared, is_declared

Segments = tuple[tuple[tuple[str, ...], int], ...]

# (params of one block, x, its state or None, key) -> (x, its state, losses)
RunBlock = Callable[[Any, jax.Array, Any, "jax.Array | None"], tuple[jax.Array, Any, dict[str, jax.Array]]]


def init_stack(key: jax.Array, segments: Segments, init_block: Mapping[str, Callable[[jax.Array], Any]]) -> Any:
    """`Declared` params of every segment; `init_block[kind]` makes one block's from a key."""
    params: dict[str, Any] = {}
    for i, (pattern, repeats) in enumerate(segments):
        params[str(i)] = {}
        for j, kind in enumerate(dict.fromkeys(pattern)):
            keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, i), j), repeats * pattern.count(kind))
            made = jax.vmap(init_block[kind])(keys)
            params[str(i)][kind] = jax.tree.map(
                lambda node: Declared(node.value, weights.stacked(node.layout, "layers")), made, is_leaf=is_declared
            )
    return params


def run_stack(
    params: Any,
    x: jax.Array,
    state: Any,
    key: jax.Array | None,
    segments: Segments,
    run_block: Mapping[str, RunBlock],
    *,
    scan: bool,
) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    """x through every block, with the state of each (a tree like params, or None) and the summed losses."""
    changed: dict[str, Any] = {}
    totals: dict[str, jax.Array] = {}
    for i, (pattern, repeats) in enumerate(segments):
        before = None if state is None else state[str(i)]
        keys = None if key is None else jax.random.split(jax.random.fold_in(key, i), (repeats, len(pattern)))
        apart = _is_unstacked(params[str(i)]) or _is_unstacked(before or {})
        run = _scanned if scan and repeats > 1 and not apart else _unrolled
        x, changed[str(i)], losses = run(params[str(i)], x, before, keys, pattern, repeats, run_block)
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
    return _split(tree, state, lambda kind, _: kind if isinstance(kind, tuple) else _blocks(kind))


def unstack_layout(layout: Any, state: Any) -> Any:
    """The layout of `unstack(params, state)`."""

    def split(kind: Any, cache: Any) -> tuple[Any, ...]:
        depth = len(cache) if isinstance(cache, tuple) else _depth(cache)
        return kind if isinstance(kind, tuple) else (jax.tree.map(weights.unstacked, kind),) * depth

    return _split(layout, state, split)


def _split(tree: Any, state: Any, split: Callable[[Any, Any], tuple[Any, ...]]) -> Any:
    """The tree with `split(kind, its cache)` in place of every kind of block in a stack."""
    if not isinstance(tree, dict) or not isinstance(state, dict):
        return tree
    return {
        name: {
            i: {kind: split(each, state[name][i][kind]) for kind, each in segment.items()}
            for i, segment in value.items()
        }
        if name == "stack" and _keeps_caches(state.get(name))
        else _split(value, state.get(name), split)
        for name, value in tree.items()
    }


def _keeps_caches(segments: Any) -> bool:
    """Whether this part of a state is what `run_stack` takes: {"0": {kind: its blocks' cache, stacked or not}}."""

    def is_cache(kind: Any) -> bool:
        if isinstance(kind, tuple):
            return all(map(is_cache, kind))
        return isinstance(kind, Cache)

    if not isinstance(segments, dict) or not all(isinstance(each, dict) for each in segments.values()):
        return False
    return all(is_cache(kind) for segment in segments.values() for kind in segment.values())


def _depth(kind: Any) -> int:
    return jax.tree.leaves(kind)[0].shape[0]


def _blocks(kind: Any) -> tuple[Any, ...]:
    return tuple(_at(kind, i) for i in range(_depth(kind)))


def _is_unstacked(segment: Any) -> bool:
    return any(isinstance(each, tuple) for each in segment.values())


def _at(kind: Any, index: int) -> Any:
    """One block's part of what is stacked, or a tuple."""
    return kind[index] if isinstance(kind, tuple) else jax.tree.map(lambda array: array[index], kind)


def _add(totals: dict[str, jax.Array], losses: Mapping[str, jax.Array]) -> None:
    for name, value in losses.items():
        totals[name] = totals[name] + value if name in totals else value


def _unrolled(
    params: Any,
    x: jax.Array,
    state: Any,
    keys: Any,
    pattern: tuple[str, ...],
    repeats: int,
    run_block: Mapping[str, RunBlock],
) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    after: dict[str, list[Any]] = {kind: [] for kind in pattern}
    totals: dict[str, jax.Array] = {}
    for repeat in range(repeats):
        for j, kind in enumerate(pattern):
            index = len(after[kind])
            before = None if state is None else _at(state[kind], index)
            key = None if keys is None else keys[repeat, j]
            x, now, losses = run_block[kind](_at(params[kind], index), x, before, key)
            after[kind].append(now)
            _add(totals, losses)
    if state is None:
        return x, None, totals
    packed = {
        kind: tuple(each) if isinstance(state[kind], tuple) else jax.tree.map(lambda *a: jnp.stack(a), *each)
        for kind, each in after.items()
    }
    return x, packed, totals


def _scanned(
    params: Any,
    x: jax.Array,
    state: Any,
    keys: Any,
    pattern: tuple[str, ...],
    repeats: int,
    run_block: Mapping[str, RunBlock],
) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    def split(array: jax.Array) -> jax.Array:
        return array.reshape(repeats, array.shape[0] // repeats, *array.shape[1:])

    def body(x: jax.Array, slices: Any) -> tuple[jax.Array, Any]:
        params, state, keys = slices
        keys = None if keys is None else keys[None]
        x, after, losses = _unrolled(params, x, state, keys, pattern, 1, run_block)
        return x, (after, losses)

    x, (after, losses) = jax.lax.scan(body, x, (jax.tree.map(split, params), jax.tree.map(split, state), keys))
    after = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), after)
    return x, after, {name: jnp.sum(value, axis=0) for name, value in losses.items()}
