"""The ends of a transformer: patches, types, pools and heads, each against its definition in a few lines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.config import replace
from jaxmodel.errors import InputError
from jaxmodel.generate import generate
from jaxmodel.models.parts import Head, Pool
from tests.contract import ENCODER, VISION, VOCAB, batch_of, built, params_of, relative

TOKENS = jnp.asarray([[5, 6, 7, 8], [9, 10, 11, 12]], jnp.int32)


def test_patches_are_a_convolution_in_reading_order():
    images = jnp.asarray(batch_of("vision", rows=2)["images"])
    params = params_of("vision")
    params["stem"]["patches_bias"] = jnp.arange(32.0)
    kernel = params["stem"]["patches"].reshape(2, 2, 1, 32)
    dims = ("NHWC", "HWIO", "NHWC")
    patches = jax.lax.conv_general_dilated(images, kernel, (2, 2), "VALID", dimension_numbers=dims)
    x = jnp.concatenate(
        [jnp.broadcast_to(params["stem"]["class_token"], (2, 1, 32)), patches.reshape(2, 16, 32) + jnp.arange(32.0)],
        axis=1,
    )
    x = x + params["stem"]["positions"]
    bare = jax.tree.map(jnp.zeros_like, params["stack"])  # blocks that add nothing
    out = built("vision").apply({**params, "stack": bare}, {"images": images})
    assert relative(out["hidden"], standardised(x)) < 1e-5
    assert relative(out["embedding"], standardised(x[:, 0])) < 1e-5


def standardised(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize("kind", ["first", "mean", "last"])
def test_pools_see_real_tokens_alone(kind):
    """Padded left or right, or not at all: the embedding and the logits are the same."""
    model = replace(ENCODER, {"pool": Pool(kind, activation="tanh", normalize=True)}).build()
    params = model.init(jax.random.key(0))
    alone = model.apply(params, {"tokens": TOKENS})
    assert alone["embedding"].shape == (2, 32) and alone["logits"].shape == (2, 10)
    assert relative(jnp.linalg.norm(alone["embedding"], axis=-1), 1.0) < 1e-6
    hidden = alone["hidden"]
    pooled = {"first": hidden[:, 0], "mean": hidden.mean(1), "last": hidden[:, -1]}[kind]
    pooled = jnp.tanh(pooled @ params["pool"]["dense"])
    pooled = pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)
    assert relative(alone["embedding"], pooled) < 1e-5
    for left, right in ((0, 3), (3, 0), (1, 2)):
        tokens = jnp.pad(TOKENS, ((0, 0), (left, right)), constant_values=1)
        mask = jnp.pad(jnp.ones(TOKENS.shape, bool), ((0, 0), (left, right)))
        padded = model.apply(params, {"tokens": tokens, "mask": mask})
        assert relative(padded["embedding"], alone["embedding"]) < 1e-5
        again = model.apply(params, {"hidden": padded["hidden"], "mask": mask})
        assert relative(again["logits"], alone["logits"]) < 1e-5


def test_positions_may_begin_further_down_the_table():
    params = params_of("encoder")
    table = params["stem"]["positions"]
    further = {**params, "stem": {**params["stem"], "positions": jnp.concatenate([table[:2] + 9, table])}}
    model = replace(ENCODER, {"stem.position_offset": 2}).build()
    found = model.apply(further, {"tokens": TOKENS})["logits"]
    assert jnp.array_equal(found, built("encoder").apply(params, {"tokens": TOKENS})["logits"])


@pytest.mark.parametrize("placement", ["output", "both"])
def test_a_norm_on_the_output_is_before_the_residual(placement):
    """With scales of zero there, every block adds nothing; what it adds is of length one a dim with scales of one."""
    model = replace(VISION, {"norm.placement": placement, "norm.bias": False, "num_layers": 1}).build()
    params, batch = model.init(jax.random.key(0)), {"images": batch_of("vision", rows=2)["images"]}
    block = params["stack"]["0"]["block"]
    assert {name for name in block if "norm" in name} == {
        "attention_output_norm", "mlp_output_norm", *(("attention_norm", "mlp_norm") if placement == "both" else ())
    }  # fmt: skip
    plain = model.apply(params, batch)["hidden"]
    for name in ("attention_output_norm", "mlp_output_norm"):
        block[name] = jax.tree.map(jnp.zeros_like, block[name])
    still = model.apply(params, batch)["hidden"]
    bare = {**params, "stack": jax.tree.map(jnp.zeros_like, params["stack"])}
    assert jnp.array_equal(still, model.apply(bare, batch)["hidden"]) and relative(plain, still) > 0.1


def test_queries_and_keys_are_normalised_each_or_all_together():
    """Of one head alone that is the same; of several it is not, and a scale is as wide as all heads."""
    one = {"attention.num_heads": 1, "attention.num_kv_heads": None, "attention.qk_norm": "head"}
    model = replace(ENCODER, one).build()
    params = model.init(jax.random.key(0))
    together = replace(ENCODER, one | {"attention.qk_norm": "all"}).build()
    found = [each.apply(params, {"tokens": TOKENS})["logits"] for each in (model, together)]
    assert relative(*found) < 1e-6
    wide = replace(ENCODER, {"attention.qk_norm": "all"}).build()
    shapes = jax.eval_shape(wide.init, jax.random.key(0))["stack"]["0"]["block"]["attention"]
    assert shapes["query_norm"].shape == (2, 32)


def test_types_are_added_and_zero_unless_given():
    model, params = built("encoder"), params_of("encoder")
    plain = model.apply(params, {"tokens": TOKENS})["logits"]
    zero, one = (model.apply(params, {"tokens": TOKENS, "types": jnp.full_like(TOKENS, i)}) for i in (0, 1))
    assert jnp.array_equal(plain, zero["logits"]) and relative(one["logits"], plain) > 1e-3


def test_a_head_of_its_own_layer_is_dense_activation_norm():
    overrides = {"pool": None, "head": Head(activation="gelu", bias=True), "tied": True}
    model = replace(ENCODER, overrides).build()
    params = model.init(jax.random.key(0))
    params["head"]["bias"] = jnp.arange(float(VOCAB))
    out = model.apply(params, {"tokens": TOKENS})
    x = standardised(jax.nn.gelu(out["hidden"] @ params["head"]["dense"], approximate=False))
    assert relative(out["logits"], x @ params["stem"]["tokens"].T + jnp.arange(VOCAB)) < 1e-5


def test_heads_scale_and_cap():
    plain = replace(ENCODER, {"pool": None, "head": Head()}).build()
    params = plain.init(jax.random.key(0))
    logits = plain.apply(params, {"tokens": TOKENS})["logits"]
    capped = replace(ENCODER, {"pool": None, "head": Head(scale=8.0, softcap=2.0)}).build()
    found = capped.apply(params, {"tokens": TOKENS})["logits"]
    assert relative(found, 2 * jnp.tanh(8 * logits / 2)) < 1e-5


def test_without_a_head_there_is_hidden():
    model = replace(ENCODER, {"pool": None, "head": None}).build()
    out = model.apply(model.init(jax.random.key(0)), {"tokens": TOKENS})
    assert set(out.values) == {"hidden"}


def test_an_encoder_cannot_continue_a_text():
    with pytest.raises(InputError, match="not causal, so it cannot continue a text"):
        generate(built("encoder"), params_of("encoder"), [[1]], max_new_tokens=2)
    assert built("encoder").start(2, 8) == {}


@pytest.mark.parametrize(
    ("config", "overrides", "words"),
    [
        (ENCODER, {"tied": True}, "model.tied needs a head with one logit a token"),
        (ENCODER, {"vocab_size": None}, "reads tokens, images or sound, give one of them"),
        (VISION, {"vocab_size": 8}, "model.vocab_size=8 beside model.images=Images"),
        (VISION, {"images.patch": 9}, "model.images.size=8 is less than model.images.patch=9"),
        (VISION, {"max_length": 16}, "images become 17 tokens, model.max_length=16 is smaller"),
        (VISION, {"head.outputs": None}, "model.head.outputs is not known"),
        (VISION, {"head.softcap": 0.0}, "softcap=0.0: must be a number of at least 1e-06, or none"),
    ],
)
def test_ends_that_do_not_fit_are_refused(config, overrides, words):
    with pytest.raises(InputError, match=words):
        replace(config, overrides).build()


def test_the_data_say_how_many_classes():
    facts = {"inputs": ["images"], "num_outputs": 7, "channels": 1}
    assert replace(VISION, {"head.outputs": None}).fitted(facts).head == Head(outputs=7, bias=True)
    with pytest.raises(InputError, match=r"--model.head.outputs=10, and the data have 7: leave --model.head.outputs"):
        VISION.fitted(facts)
    with pytest.raises(InputError, match="the data are tokens, and --model reads images"):
        VISION.fitted({"inputs": ["tokens"]})


def test_images_of_another_size_are_named():
    images = np.zeros((2, 6, 6, 1), np.float32)
    with pytest.raises(InputError, match=r"images is float32\[2, 6, 6, 1\], the model reads float32\[batch, 8, 8, 1\]"):
        built("vision").apply(params_of("vision"), {"images": images})
