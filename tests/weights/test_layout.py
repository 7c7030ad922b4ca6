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
    "text", ["embed -> mlp", "experts; embed -> mlp", "frozen: embed", "frozen: a; b -> c", "trained: a; b -> c"]
)
def test_stacking_and_unstacking_are_inverse(text):
    stacked = weights.stacked(text, "layers")
    assert parse(stacked).stack == ("layers", *parse(text).stack)
    assert (parse(stacked).frozen, parse(stacked).trained) == (parse(text).frozen, parse(text).trained)
    assert parse(weights.unstacked(stacked)) == parse(text)


def test_the_last_mark_counts():
    for text in ("a; b -> c", "frozen: a; b -> c", "trained: a; b -> c"):
        assert weights.frozen(text) == "frozen: a; b -> c" and weights.trained(text) == "trained: a; b -> c"
    plain, frozen, trained = parse("b -> c"), parse("frozen: b -> c"), parse("trained: b -> c")
    assert [each.frozen for each in (plain, frozen, trained)] == [False, True, False]
    assert [each.trained for each in (plain, frozen, trained)] == [False, False, True]
    assert plain.axes == frozen.axes == trained.axes


def test_an_unknown_mark_is_refused():
    with pytest.raises(ValueError, match="begins with frozen: or trained:, or no mark"):
        parse("frzen: a -> b")


@pytest.mark.parametrize("text", ["a -> b -> c", "a; b; c", "a -> b <- c"])
def test_two_arrows_are_refused(text):
    with pytest.raises(ValueError, match="at most"):
        parse(text)
