"""Models from models: chained, frozen, sharded, and made from code."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel import weights
from jaxmodel.config import from_dict, replace, to_dict
from jaxmodel.errors import InputError
from jaxmodel.model import Outputs, chain, from_function, from_linen, frozen, sharded, trained
from jaxmodel.models.parts import Images, PerLayer
from jaxmodel.models.plain import ConvNet, Perceptron
from jaxmodel.sharding import make_mesh, with_rules
from tests.contract import CONTRACT, GPT, MIXTURE, batch_of, built, params_of, relative, same


@pytest.mark.parametrize("name", CONTRACT)
def test_apply_is_pure(name):
    model, batch = built(name), batch_of(name)
    apply = jax.jit(lambda params, state, key: model.apply(params, batch, state or None, key=key, train=True))
    state = model.start()
    before = jax.tree.map(np.array, (params_of(name), state))
    first, second = (apply(params_of(name), state, jax.random.key(3)) for _ in range(2))
    assert same(first, second) and same(before, (params_of(name), state))
    assert isinstance(first, Outputs) and first["logits"].dtype == jnp.float32


@pytest.mark.parametrize("name", ["conv", "perceptron", "nnx"])
def test_dropout_follows_its_key(name):
    model, batch = built(name), batch_of(name)
    run = jax.jit(lambda key: model.apply(params_of(name), batch, model.start(), key=key, train=True)["logits"])
    assert not same(run(jax.random.key(0)), run(jax.random.key(1)))
    with pytest.raises(InputError, match="key=key"):
        model.apply(params_of(name), batch, model.start(), train=True)


@pytest.mark.parametrize("name", ["conv", "perceptron", "nnx"])
def test_statistics_must_be_passed(name):
    with pytest.raises(InputError, match=r"pass state=model.start\(\)"):
        built(name).apply(params_of(name), batch_of(name))


def test_values_that_are_not_there_are_named():
    with pytest.raises(KeyError, match="no 'logit'; it gives"):
        Outputs({"logits": jnp.zeros(1)})["logit"]


def features():
    """tokens -> a feature for each, in front of a language model that does not read it."""
    return from_function(
        lambda key: {"table": jax.random.normal(key, (64, 4))},
        lambda params, batch: {"features": params["table"][batch["tokens"]]},
        layout={"table": "vocab <- features"},
    )


def test_a_chain_passes_values_on_and_keeps_states_apart():
    model = chain(front=features(), lm=GPT.build())
    params = model.init(jax.random.key(0))
    tokens = jnp.asarray(batch_of("gpt", rows=2)["tokens"])
    out = model.apply(params, {"tokens": tokens}, model.start(2, 16))
    assert out["features"].shape == (2, 16, 4) and set(out.state) == {"lm"}
    alone = GPT.build().apply(params["lm"], {"tokens": tokens})
    assert relative(out["logits"], alone["logits"]) < 1e-6
    assert relative(model.apply(params, {"hidden": alone["hidden"]})["logits"], alone["logits"]) < 1e-6


def test_three_functions_keep_state_draw_and_have_losses():
    def apply(params, batch, state, *, key, train):
        noise = jax.random.normal(key, (2, 4)) if train else jnp.zeros((2, 4))
        seen = {"count": state["count"] + train}
        return Outputs(
            {"logits": (batch["features"] + noise) @ params["w"]}, seen, {"size": jnp.full(2, jnp.sum(params["w"]))}
        )

    def start(batch_size=None, length=None):
        return {"count": jnp.zeros((), jnp.int32)}

    model = from_function(lambda key: {"w": jnp.eye(4)}, apply, start)
    params, batch = model.init(jax.random.key(0)), {"features": jnp.ones((2, 4))}
    out = model.apply(params, batch, model.start())
    assert same(out["logits"], batch["features"]) and out.state["count"] == 0 and out.losses["size"][1] == 4
    # Weights of any type come as plain arrays.
    out = model.apply(weights.quantize(params, model.layout), batch, model.start(), key=jax.random.key(1), train=True)
    assert relative(out["logits"], 1 + jax.random.normal(jax.random.key(1), (2, 4))) < 1e-6
    assert chain(a=model).apply({"a": params}, batch, {"a": out.state}).state["a"]["count"] == 1
    with pytest.raises(InputError, match=r"apply keeps state: pass state=model\.start\(\)"):
        model.apply(params, batch)


def test_losses_of_two_parts_do_not_hide_each_other():
    small = replace(MIXTURE, {"num_layers": 2})
    model = chain(a=small.build(), b=small.build())
    losses = jax.eval_shape(
        lambda key: model.apply(model.init(key), {"tokens": jnp.zeros((1, 4), jnp.int32)}), jax.random.key(0)
    ).losses
    assert set(losses) == {"a/balance", "a/router_z", "b/balance", "b/router_z"}


def test_a_composition_is_a_config_too():
    model = chain(frozen(GPT.build(), "stem/*"), trained(frozen(GPT.build()), "norm/*"), GPT.build())
    again = from_dict(to_dict(model.config)).build()
    assert again.layout == model.layout and again.config == model.config
    mesh = make_mesh({"data": 8})
    assert sharded(model, mesh).layout == model.layout
    # As written before there was a choice.
    assert from_dict({"type": "Frozen", "base": to_dict(GPT)}) == frozen(GPT.build()).config


def test_built_twice_it_is_the_same_functions():
    """So that what was compiled for one is there for the other; another config, or mesh, is another model."""
    model, again = GPT.build(), replace(GPT, {}).build()
    assert (model.init, model.apply, model.start) == (again.init, again.apply, again.start)
    assert replace(GPT, {"num_layers": 1}).build().apply is not model.apply
    assert sharded(model, make_mesh({"data": 8})).apply is not model.apply


def test_lists_stand_for_tuples_in_a_config():
    plain = Perceptron(num_features=3, categories=(), num_outputs=1, hidden=(4,))
    hidden: Any = [4]
    listed, plain = dataclasses.replace(plain, hidden=hidden).build(), plain.build()
    assert same(listed.init(jax.random.key(0)), plain.init(jax.random.key(0)))


def test_marks_go_where_they_are_said():
    layout = trained(frozen(built("gpt"), "stack/*"), "stack/*/mlp/*").layout
    assert layout["stem"] == built("gpt").layout["stem"]
    block = layout["stack"]["0"]["block"]
    assert all(text.startswith("trained: ") for text in block["mlp"].values())
    assert all(text.startswith("frozen: ") for text in block["attention"].values())
    with pytest.raises(InputError, match=r"select='hed/\*' matches no weight: this model has norm/bias, norm/"):
        trained(built("gpt"), "hed/*")
    assert frozen(from_function(lambda key: {}, lambda params, batch: {})).layout == {}


def test_a_head_trains_beside_an_adapted_part():
    model = chain(base=GPT.build(), head=trained(features()))
    params = model.init(jax.random.key(0))
    params["base"] = weights.lora(params["base"], model.layout["base"], rank=2, key=jax.random.key(1))
    moving, _ = weights.partition(params, model.layout)
    paths = {weights.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(moving)}
    assert "head/table" in paths and len(paths) > 1
    assert all(path == "head/table" or path.endswith(("/a", "/b")) for path in paths)


def test_a_frozen_part_with_adapters_leaves_the_other_part_trainable():
    model = chain(base=frozen(GPT.build()), head=features())
    params = model.init(jax.random.key(0))
    params["base"] = weights.lora(params["base"], model.layout["base"], rank=2, key=jax.random.key(1))
    trainable, _ = weights.partition(params, model.layout)
    assert [a.shape for a in jax.tree.leaves(trainable)] == [(64, 4)]


def test_what_is_made_from_code_can_be_sharded_in_a_chain():
    model = sharded(chain(front=features(), lm=GPT.build()), make_mesh({"data": 8}))
    assert set(jax.eval_shape(model.init, jax.random.key(0))) == {"front", "lm"}


def test_experts_and_batch_need_axes_of_their_own():
    rules = with_rules({"experts": ("fsdp",)})
    model = sharded(MIXTURE.build(), make_mesh({"fsdp": 8}), rules)
    with pytest.raises(InputError, match="rules put `batch` and `experts` on fsdp: give them axes of their own"):
        jax.eval_shape(model.apply, params_of("mixture"), {"tokens": jnp.zeros((8, 4), jnp.int32)})


def test_experts_take_rows_that_the_mesh_does_not_divide():
    model = sharded(MIXTURE.build(), make_mesh({"fsdp": 4, "expert": 2}))
    batch = {"tokens": jnp.asarray(batch_of("mixture", rows=3)["tokens"])}
    expected = jax.jit(built("mixture").apply)(params_of("mixture"), batch)["logits"]
    assert relative(jax.jit(model.apply)(params_of("mixture"), batch)["logits"], expected) < 1e-5


def test_positions_that_restart_are_attended_by_position():
    """Without segments a caller's positions may go back: training must then see what evaluation sees."""
    config = replace(GPT, {"max_length": 128})
    model, positions = config.build(), jnp.tile(jnp.arange(64), 2)[None]
    params = jax.jit(model.init)(jax.random.key(0))
    batch = {"tokens": jax.random.randint(jax.random.key(1), (1, 128), 0, 64), "positions": positions}
    train, evaluation = (jax.jit(model.apply, static_argnames="train")(params, batch, train=t) for t in (True, False))
    assert relative(train["logits"], evaluation["logits"]) < 1e-5


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"num_layers": 0}, "model.num_layers"),
        ({"mlp.activation": "swish"}, "model.mlp.activation"),
        ({"dropout": 1.0}, "must be a number from 0 to 0.99"),
        ({"attention.softcap": 0.0}, "must be a number of at least 1e-06, or none"),
        ({"pattern": ("globl",)}, "names the block variant 'globl'; this model has block"),
        ({"attention.num_kv_heads": 3}, "is no multiple of model.attention.num_kv_heads=3"),
        ({"attention.sharing": "reuse"}, "block variant block reuses keys and values, and no earlier one keeps any"),
        ({"attention.sharing": "keep"}, "block variant block keeps keys and values 2 times: name it in model.first"),
        ({"per_layer": PerLayer(4, 64), "vocab_size": None, "images": Images(8, 2)}, "model.per_layer=.* is of tokens"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(overrides, words):
    import dataclasses

    config = GPT
    for path, value in overrides.items():
        *above, last = path.split(".")
        part = getattr(config, above[0]) if above else config
        part = dataclasses.replace(part, **{last: value})
        config = dataclasses.replace(config, **{above[0]: part}) if above else part
    with pytest.raises(InputError, match=words):
        config.build()


def test_equal_widths_need_no_skip_but_at_a_stride():
    model = ConvNet(num_classes=3, channels=1, widths=(4, 4, 4, 4)).build()
    params = model.init(jax.random.key(0))
    out = model.apply(params, {"images": jnp.zeros((1, 32, 32, 1))}, model.start())
    assert out["logits"].shape == (1, 3)


class Classifier(nn.Module):
    """A foreign Linen module with statistics and dropout."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


def test_a_linen_module_is_a_model():
    x = jax.random.normal(jax.random.key(0), (4, 5))
    model = from_linen(Classifier(), "features", example={"features": x})
    params, state = model.init(jax.random.key(0)), model.start()
    out = model.apply(params, {"features": x}, state)
    expected = Classifier().apply({"params": params, **state}, x, train=False)
    assert same(out["prediction"], expected) and same(out.state, state)
    trained = model.apply(params, {"features": x}, state, key=jax.random.key(1), train=True)
    assert not same(trained.state, state)
    quantized = weights.quantize(params, model.layout)
    assert relative(model.apply(quantized, {"features": x}, state)["prediction"], expected) < 0.05
    with pytest.raises(InputError, match=r"pass state=model\.start"):
        model.apply(params, {"features": x})
