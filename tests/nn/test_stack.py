"""Unstacking takes apart our stacks, known by the caches of their blocks, and nothing else that is called so."""

import jax
import jax.numpy as jnp
import pytest

from jaxmodel import weights
from jaxmodel.generate import generate
from jaxmodel.model import chain, from_function, frozen
from jaxmodel.nn.stack import unstack, unstack_layout
from tests.contract import CAUSAL, VOCAB, built, params_of, same


def table(layout: str = "vocab <- embed"):
    """A model of someone else's, whose one weight is called `stack`."""
    return from_function(
        lambda key: {"stack": jax.random.normal(key, (VOCAB, 8))},
        lambda params, batch: {"features": params["stack"][batch["tokens"]]},
        layout={"stack": layout},
    )


def stacked_table(key):
    """Params in the very form of a stack of ours."""
    return {"stack": {"0": {"block": jax.random.normal(key, (3, 8, 8))}}}


# A composition, where its stacks are, and the weights and layouts that must stay as they are.
COMPOSED = {
    "alone": (built("gpt"), [()], []),
    "frozen": (frozen(built("pattern")), [()], []),
    "a part called stack": (chain(stack=built("gpt")), [("stack",)], []),
    "and its part, too": (chain(stack=chain(built("mixture"))), [("stack", "0")], []),
    "a weight called stack": (chain(front=table(), lm=built("gpt")), [("lm",)], [("front",)]),
    "stacked by others": (chain(stack=table("layers; embed"), lm=built("gpt")), [("lm",)], [("stack",)]),
    "in our form": (
        chain(
            front=from_function(
                stacked_table, lambda p, b: {}, layout={"stack": {"0": {"block": "layers; in -> out"}}}
            ),
            lm=built("gpt"),
        ),
        [("lm",)],
        [("front",)],
    ),
}


def within(tree, path):
    for name in path:
        tree = tree[name]
    return tree


@pytest.mark.parametrize(("model", "stacks", "others"), COMPOSED.values(), ids=COMPOSED)
def test_stacks_of_ours_come_apart_and_nothing_else_does(model, stacks, others):
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(lambda: model.start(1, 4))
    apart = jax.eval_shape(lambda p: unstack(p, state), params)
    layout = unstack_layout(model.layout, state)
    weights.map_weights(lambda each, weight: None, layout, apart)  # a prefix of it still
    for path in stacks:
        for i, segment in within(params, path)["stack"].items():
            for kind, blocks in segment.items():
                here = within(apart, path)["stack"][i][kind]
                depth = jax.tree.leaves(blocks)[0].shape[0]
                assert isinstance(here, tuple) and len(here) == depth
                assert jax.tree.leaves(here[0])[0].shape == jax.tree.leaves(blocks)[0].shape[1:]
                assert "layers" not in str(within(layout, path)["stack"][i][kind])
    for path in others:
        assert within(apart, path) == within(params, path)
        assert within(layout, path) == within(model.layout, path)


@pytest.mark.parametrize("name", CAUSAL)
def test_what_is_apart_stays_as_it_is(name):
    params, state = params_of(name), built(name).start(1, 4)
    apart, cache = unstack(params, state), unstack(state, state)
    assert same(unstack(apart, state), apart) and same(unstack(params, cache), apart)
    assert same(unstack(cache, cache), cache)
    assert unstack_layout(built(name).layout, cache) == unstack_layout(built(name).layout, state)
    # Every block is where it was, in order.
    for i, segment in params["stack"].items():
        for kind, blocks in segment.items():
            again = jax.tree.map(lambda *arrays: jnp.stack(arrays), *apart["stack"][i][kind])
            assert same(again, blocks)


def test_models_with_parts_called_stack_generate():
    plain = generate(built("gpt"), params_of("gpt"), [[1, 2, 3]], max_new_tokens=4)
    one = chain(stack=built("gpt"))
    assert generate(one, {"stack": params_of("gpt")}, [[1, 2, 3]], max_new_tokens=4) == plain
    two = chain(stack=table(), lm=built("gpt"))
    params = {"stack": two.init(jax.random.key(0))["stack"], "lm": params_of("gpt")}
    assert generate(two, params, [[1, 2, 3]], max_new_tokens=4) == plain
