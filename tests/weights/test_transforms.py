"""Whole trees: adapters, quantization and calibration on the contract models, with no change to any of them."""

import json
import math
import re
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel import weights
from jaxmodel.config import replace
from jaxmodel.model import frozen, trained
from jaxmodel.weights.leaves import Leaf, leaf
from tests.contract import CAUSAL, CONTRACT, batch_of, built, params_of, relative, same


def apply(name, params, batch=None):
    batch = batch_of(name, rows=2) if batch is None else batch
    model = built(name)
    return jax.jit(model.apply)(params, batch, model.start() or None)


def loss_of(name, params, key=None):
    logits = apply(name, params)["logits"]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[..., 0])


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", CONTRACT)
def test_quantized_equals_its_dense_values(name, kind):
    quantized = weights.quantize(params_of(name), built(name).layout, kind)
    dense = weights.densify(quantized, built(name).layout)
    assert relative(apply(name, quantized)["logits"], apply(name, dense)["logits"]) < 1e-5
    assert not same(dense, params_of(name))


@pytest.mark.parametrize("name", ["gpt", "mixture", "conv", "perceptron"])
def test_lora_starts_at_its_base_and_merges(name):
    layout = built(name).layout
    adapted = weights.lora(params_of(name), layout, rank=2, key=jax.random.key(1), select="*")
    assert same(apply(name, adapted)["logits"], apply(name, params_of(name))["logits"])
    moved = jax.tree.map(
        lambda node: node.replace(b=node.b + 0.1) if isinstance(node, weights.LowRank) else node,
        adapted,
        is_leaf=weights.is_leaf,
    )
    merged = weights.merge(moved, layout)
    assert not any(weights.is_leaf(node) for node in jax.tree.leaves(merged, is_leaf=weights.is_leaf))
    assert relative(apply(name, merged)["logits"], apply(name, moved)["logits"]) < 1e-5
    assert not same(apply(name, moved)["logits"], apply(name, adapted)["logits"])


def test_qlora_trains_its_factors_only():
    layout = built("gpt").layout
    adapted = weights.lora(weights.quantize(params_of("gpt"), layout, "int4"), layout, rank=2, key=jax.random.key(1))
    trainable, rest = weights.partition(adapted, layout)
    names = {path[-1].name for path, _ in jax.tree_util.tree_leaves_with_path(trainable)}
    assert names == {"a", "b"}
    assert same(weights.join(trainable, rest), adapted)
    grads = jax.grad(lambda t: loss_of("gpt", weights.join(t, rest)))(trainable)
    assert jax.tree.structure(grads) == jax.tree.structure(trainable)
    moving = [
        float(jnp.max(jnp.abs(g))) for path, g in jax.tree_util.tree_leaves_with_path(grads) if path[-1].name == "b"
    ]
    assert moving and min(moving) > 0


def test_qlora_holds_no_dequantized_copy_of_the_base():
    """No float array of the compiled gradient is as large as one base weight of all layers."""
    config = replace(CAUSAL["gpt"], {"num_layers": 12, "embed_dim": 64, "mlp.dim": 256})
    model = config.build()
    adapted = jax.eval_shape(
        lambda key: weights.lora(
            weights.quantize(model.init(key), model.layout, "int4"), model.layout, rank=2, key=key
        ),
        jax.random.key(0),
    )
    trainable, rest = weights.partition(adapted, model.layout)

    def loss(trainable, rest, tokens):
        return model.apply(weights.join(trainable, rest), {"tokens": tokens}, train=True)["logits"].mean()

    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    text = jax.jit(jax.grad(loss)).lower(trainable, rest, tokens).compile().as_text() or ""
    floats = re.findall(r"\b(?:f32|bf16|f16)\[([\d,]+)\]", text)
    assert max(math.prod(map(int, dims.split(","))) for dims in floats) < 12 * 64 * 64
    assert "u8[12,32,64]" in text  # the packed base is there


def test_partition_leaves_plain_params_whole_and_frozen_ones_still():
    model = built("function")
    trainable, rest = weights.partition(params_of("function"), model.layout)
    assert jax.tree.leaves(rest) == [] and same(trainable, params_of("function"))
    trainable, _ = weights.partition(params_of("function"), frozen(model).layout)
    assert jax.tree.leaves(trainable) == []


def test_a_new_head_trains_beside_adapters():
    """LoRA in the body, the head and its bias plain: both move under a gradient, and nothing else has one."""
    config = replace(CAUSAL["gpt"], {"tied": False, "head.bias": True})
    model = trained(config.build(), "head/*")
    params = jax.jit(config.build().init)(jax.random.key(0))
    adapted = weights.lora(
        weights.quantize(params, model.layout, "int8", select="stack/*"), model.layout, rank=2, key=jax.random.key(1)
    )
    moving, rest = weights.partition(adapted, model.layout)
    names = {weights.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(moving)}
    assert {name for name in names if not name.startswith("stack/")} == {"head/logits", "head/bias"}
    assert {name.rpartition("/")[2] for name in names if name.startswith("stack/")} == {"a", "b"}
    assert same(weights.join(moving, rest), adapted)

    def loss(moving):
        logits = model.apply(weights.join(moving, rest), {"tokens": batch_of("gpt")["tokens"]})["logits"]
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[..., 0])

    grads = jax.grad(loss)(moving)
    assert jnp.any(grads["head"]["logits"] != 0) and jnp.any(grads["head"]["bias"] != 0)

    # The mark is about plain arrays: adapters on the head itself leave its base still.
    both = weights.lora(params, model.layout, rank=2, key=jax.random.key(1), select="*")
    head = weights.partition(both, model.layout)[0]["head"]
    assert head["logits"].base is None and head["logits"].a is not None and head["bias"] is not None


def test_decay_follows_the_arrow():
    decays = weights.decays(built("gpt").layout, params_of("gpt"))
    block = decays["stack"]["0"]["block"]
    assert block["mlp"]["up"] and decays["stem"]["tokens"]
    assert not (block["mlp"]["up_bias"] or block["mlp_norm"]["scale"] or decays["stem"]["positions"])


@leaf
class Spy(Leaf):
    """Notes, eagerly, the x that it multiplies: the direct computation that `Observed` is held against."""

    base: jax.Array
    path: str = ""

    static = ("path",)
    seen: ClassVar[dict[str, list[np.ndarray]]] = {}

    def matmul(self, x, *, table=False):
        self.note(np.asarray(x, np.float64).reshape(-1, x.shape[-1]))
        return weights.matmul(x, self.base, table=table)

    def take(self, ids, dtype):
        return weights.take(self.base, ids, dtype)

    def grouped(self, x, sizes):
        for rows in np.split(np.asarray(x, np.float64), np.cumsum(sizes))[:-1]:
            self.note(rows)
        return weights.grouped(x, self.base, sizes)

    def dense(self, dtype=jnp.float32):
        return self.base.astype(dtype)

    def note(self, rows):
        self.seen.setdefault(self.path, []).append(rows.T @ rows)


@pytest.mark.parametrize(
    ("name", "execution"),
    [
        pytest.param(name, how, marks=[] if (name, i) in (("pattern", 1), ("mixture", 0)) else pytest.mark.slow)
        for name in ("pattern", "mixture")
        for i, how in enumerate(({}, {"execution.remat": True}, {"execution.scan": False}))
    ],
)
def test_observed_yields_every_layers_xtx(name, execution):
    model = replace(CAUSAL[name], execution).build()
    batch = {"tokens": jnp.asarray(batch_of(name, rows=2)["tokens"])}
    trainable, rest = weights.partition(weights.observe(params_of(name), model.layout), model.layout)

    def total(trainable):
        return jnp.sum(model.apply(weights.join(trainable, rest), batch, train=True)["logits"])

    grads = jax.jit(jax.grad(total))(trainable)

    Spy.seen.clear()
    eager = replace(CAUSAL[name], {"execution.scan": False}).build()
    spied = weights.map_weights_with_path(
        lambda path, each, w: Spy(w, path=path) if each.multiplies else w, model.layout, params_of(name)
    )
    eager.apply(spied, batch)
    checked = 0
    for path, hessian in jax.tree_util.tree_leaves_with_path(grads):
        seen = Spy.seen.get(weights.path_name(path).removesuffix("/hessian"), [])
        if seen:
            direct = np.stack(seen).reshape(hessian.shape)
            assert relative(hessian, direct) < 1e-5
            checked += 1
    assert checked == len(Spy.seen) > 0


def test_describe_and_abstract_are_inverse():
    layout = built("mixture").layout
    params = weights.lora(weights.quantize(params_of("mixture"), layout, "int4"), layout, rank=2, key=jax.random.key(0))
    rebuilt = weights.abstract(json.loads(json.dumps(weights.describe(params))))
    assert jax.tree.structure(rebuilt) == jax.tree.structure(params)
    assert all(
        a.shape == b.shape and a.dtype == b.dtype
        for a, b in zip(jax.tree.leaves(rebuilt), jax.tree.leaves(params), strict=True)
    )
