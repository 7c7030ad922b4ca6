"""Layout strings: which dims a weight stacks, contracts and produces.

    "layers; embed -> heads head_dim"     stacked over; contracted -> produced: stored [layers, embed, heads*head_dim]
    "vocab <- embed"                      a table: stored [vocab, embed], contracted over embed, read by vocab
    "layers; heads head_dim"              no arrow: norms and biases, stored as they are; never quantized,
                                          adapted or decayed
    "frozen: embed -> mlp"                not trained

An arrow means that the weight multiplies; its contracted and produced dims are flattened to one each.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

Dims = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A parsed layout string. `axes` names the dims behind each array axis of the dense weight."""

    stack: Dims
    contracted: Dims
    produced: Dims
    table: bool
    frozen: bool

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
    body, frozen = (text[len("frozen:") :], True) if text.startswith("frozen:") else (text, False)
    stack, _, rest = body.rpartition(";")
    for arrow, table in (("->", False), ("<-", True)):
        left, found, right = rest.partition(arrow)
        if found:
            contracted, produced = (right, left) if table else (left, right)
            layout = Layout(
                tuple(stack.split()), tuple(contracted.split()), tuple(produced.split()), table, frozen
            )
            if not layout.contracted or not layout.produced:
                raise ValueError(f"layout {text!r}: name the dims on both sides of {arrow!r}")
            return layout
    return Layout(tuple(stack.split()), (), tuple(rest.split()), False, frozen)


def stacked(text: str, dim: str) -> str:
    """The layout of weights of layout `text` stacked along a new leading dim.

    >>> stacked("embed -> mlp", "layers")
    'layers; embed -> mlp'
    """
    body, mark = (text[len("frozen:") :].strip(), "frozen: ") if text.startswith("frozen:") else (text, "")
    stack, _, rest = body.rpartition(";")
    return f"{mark}{' '.join([dim, *stack.split()])}; {rest.strip()}"


def unstacked(text: str) -> str:
    """The layout of one slice along the leading stacked dim; undoes `stacked`.

    >>> unstacked("layers experts; embed -> mlp")
    'experts; embed -> mlp'
    """
    body, mark = (text[len("frozen:") :].strip(), "frozen: ") if text.startswith("frozen:") else (text, "")
    stack, _, rest = body.rpartition(";")
    dims = stack.split()[1:]
    return f"{mark}{' '.join(dims) + '; ' if dims else ''}{rest.strip()}"


def frozen(text: str) -> str:
    """The same layout, not trained."""
    return text if text.startswith("frozen:") else f"frozen: {text}"


def map_weights(function: Callable[..., Any], layout: Any, *params: Any) -> Any:
    """`function(parsed layout, weight, …)` over every weight; a weight is handed over whole, whatever its type."""
    return jax.tree.map(lambda text, *weights: function(parse(text), *weights), layout, *params)


def map_weights_with_path(function: Callable[..., Any], layout: Any, *params: Any) -> Any:
    """As `map_weights`, with the weight's path ("stack/0/block/mlp/up") as the first argument."""
    return jax.tree_util.tree_map_with_path(
        lambda path, text, *weights: function(path_name(path), parse(text), *weights), layout, *params
    )


def path_name(path: tuple[Any, ...]) -> str:
    """A key path as text: "stack/0/block/mlp/up"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
