"""Layout strings: which dims a weight stacks, contracts and produces.

    "layers; embed -> heads head_dim"     stacked over; contracted -> produced: stored [layers, embed, heads*head_dim]
    "vocab <- embed"                      a table: stored [vocab, embed], contracted over embed, read by vocab
    "layers; heads head_dim"              no arrow: norms and biases, stored as they are; never quantized,
                                          adapted or decayed
    "frozen: embed -> mlp"                not trained
    "trained: embed -> classes"           trained even beside adapters, which keep all other plain weights still

An arrow means that the weight multiplies; its contracted and produced dims are flattened to one each.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxmodel.errors import InputError

Dims = tuple[str, ...]
MARKS = ("frozen", "trained")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A parsed layout string. `axes` names the dims behind each array axis of the dense weight."""

    stack: Dims
    contracted: Dims
    produced: Dims
    table: bool
    frozen: bool = False
    trained: bool = False

    @property
    def multiplies(self) -> bool:
        """Whether this weight takes part in a matrix product (its layout has an arrow)."""
        return bool(self.contracted)

    @property
    def axes(self) -> tuple[Dims, ...]:
        """The logical dims of every array axis, stacked ones first."""
        stack = tuple((name,) for name in self.stack)
        if not self.multiplies:
            return stack + tuple((name,) for name in self.produced)
        matrix = (self.produced, self.contracted) if self.table else (self.contracted, self.produced)
        return stack + matrix


@functools.cache
def parse(text: str) -> Layout:
    """The layout a string names; ValueError when it is malformed."""
    if text.count("->") + text.count("<-") > 1 or text.count(";") > 1:
        raise ValueError(f"layout {text!r}: one arrow and one semicolon at most")
    mark, stack, rest = _taken_apart(text)
    if mark not in ("", *MARKS):
        raise ValueError(f"layout {text!r}: a layout begins with {' or '.join(f'{m}:' for m in MARKS)}, or no mark")
    marks = {each: each == mark for each in MARKS}
    for arrow, table in (("->", False), ("<-", True)):
        left, found, right = rest.partition(arrow)
        if found:
            contracted, produced = (right, left) if table else (left, right)
            layout = Layout(stack, tuple(contracted.split()), tuple(produced.split()), table, **marks)
            if not layout.contracted or not layout.produced:
                raise ValueError(f"layout {text!r}: name the dims on both sides of {arrow!r}")
            return layout
    return Layout(stack, (), tuple(rest.split()), False, **marks)


def _taken_apart(text: str) -> tuple[str, Dims, str]:
    """Mark, stacked dims and the rest: "frozen: layers; embed -> mlp" is ("frozen", ("layers",), "embed -> mlp")."""
    mark, _, body = text.rpartition(":")
    stack, _, rest = body.rpartition(";")
    return mark.strip(), tuple(stack.split()), rest.strip()


def _put_together(mark: str, stack: Dims, rest: str) -> str:
    return f"{mark}: " * bool(mark) + f"{' '.join(stack)}; " * bool(stack) + rest


def stacked(text: str, dim: str) -> str:
    """The layout of weights of layout `text` stacked along a new leading dim.

    >>> stacked("embed -> mlp", "layers")
    'layers; embed -> mlp'
    """
    mark, stack, rest = _taken_apart(text)
    return _put_together(mark, (dim, *stack), rest)


def unstacked(text: str) -> str:
    """The layout of one slice along the leading stacked dim; undoes `stacked`.

    >>> unstacked("layers experts; embed -> mlp")
    'experts; embed -> mlp'
    """
    mark, stack, rest = _taken_apart(text)
    return _put_together(mark, stack[1:], rest)


def frozen(text: str) -> str:
    """The same layout, not trained.

    >>> frozen("trained: embed -> mlp")
    'frozen: embed -> mlp'
    """
    return _put_together("frozen", *_taken_apart(text)[1:])


def trained(text: str) -> str:
    """The same layout, trained even beside adapters; undoes `frozen`, as that undoes this."""
    return _put_together("trained", *_taken_apart(text)[1:])


def map_weights(function: Callable[..., Any], layout: Any, *params: Any) -> Any:
    """`function(parsed layout, weight, …)` over every weight; a weight is handed over whole, whatever its type."""
    return jax.tree.map(lambda text, *weights: function(parse(text), *weights), layout, *params)


def map_weights_with_path(function: Callable[..., Any], layout: Any, *params: Any) -> Any:
    """As `map_weights`, with the weight's path ("stack/0/block/mlp/up") as the first argument."""
    return jax.tree_util.tree_map_with_path(
        lambda path, text, *weights: function(path_name(path), parse(text), *weights), layout, *params
    )


def matching(layout: Any, select: str) -> set[str]:
    """The paths of the weights that a glob ("stack/*") matches; InputError where there are weights, but none of them.

    >>> sorted(matching({"stem": "vocab <- embed", "stack": {"up": "embed -> mlp", "norm": "embed"}}, "stack/*"))
    ['stack/norm', 'stack/up']
    """
    paths: list[str] = []
    map_weights_with_path(lambda path, _: paths.append(path), layout)
    found = set(fnmatch.filter(paths, select))
    if paths and not found:
        some = ", ".join(paths[:8]) + ", …" * (len(paths) > 8)
        raise InputError(f"select={select!r} matches no weight: this model has {some}")
    return found


def path_name(path: tuple[Any, ...]) -> str:
    """A key path as text: "stack/0/block/mlp/up"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
