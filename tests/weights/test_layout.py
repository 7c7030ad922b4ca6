"""Layout strings: what they mean, and what is refused."""

import pytest

from jaxmodel import weights
from jaxmodel.weights import parse


@pytest.mark.parametrize(
    ("text", "axes", "multiplies"),
    [
        ("embed -> mlp", (("embed",), ("mlp",)), True),
        ("layers; embed -> heads head_dim", (("layers",), ("embed",), ("heads", "head_dim")), True),
        ("layers experts; mlp -> embed", (("layers",), ("experts",), ("mlp",), ("embed",)), True),
        ("vocab <- embed", (("vocab",), ("embed",)), True),
        ("layers; heads head_dim", (("layers",), ("heads",), ("head_dim",)), False),
        ("embed", (("embed",),), False),
    ],
)
def test_axes(text, axes, multiplies):
    assert parse(text).axes == axes
    assert parse(text).multiplies is multiplies


def test_a_table_contracts_its_last_axis():
    assert parse("vocab <- embed").contracted == ("embed",)
    assert parse("vocab <- embed").table and not parse("embed -> vocab").table


@pytest.mark.parametrize("text", ["embed ->", "-> mlp", "<- embed"])
def test_half_an_arrow_is_refused(text):
    with pytest.raises(ValueError, match="both sides"):
        parse(text)


@pytest.mark.parametrize(
    "text", ["embed -> mlp", "experts; embed -> mlp", "frozen: embed", "frozen: a; b -> c"]
)
def test_stacking_and_unstacking_are_inverse(text):
    stacked = weights.stacked(text, "layers")
    assert parse(stacked).stack == ("layers", *parse(text).stack)
    assert parse(stacked).frozen == parse(text).frozen
    assert parse(weights.unstacked(stacked)) == parse(text)


@pytest.mark.parametrize("text", ["a -> b -> c", "a; b; c", "a -> b <- c"])
def test_two_arrows_are_refused(text):
    with pytest.raises(ValueError, match="at most"):
        parse(text)
