"""Leaf types: each multiplies, embeds, groups and differentiates like the dense array it stands for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel import weights
from jaxmodel.compiling import decoding_options
from jaxmodel.errors import InputError
from jaxmodel.weights import packing
from tests.contract import relative, same


def make(kind: str, shape: tuple[int, ...], table: bool = False):
    """A weight of some type over Gaussian values, and its layout."""
    layout = "vocab <- embed" if table else ("g; in -> out" if len(shape) == 3 else "in -> out")
    weight = jax.random.normal(jax.random.key(1), shape)
    for step in kind.split("+"):
        if step.startswith("int"):
            name, _, group = step.partition("g")
            weight = weights.quantize(weight, layout, name, group=int(group) if group else None)
        elif step == "asymmetric":
            weight = weights.quantize(weight, layout, "int4", symmetric=False)
        elif step == "lora":
            weight = weights.lora(weight, layout, rank=3, key=jax.random.key(2), alpha=6.0, select="*")
            weight = weight.replace(b=jax.random.normal(jax.random.key(3), weight.b.shape) * 0.1)
        elif step == "observed":
            weight = weights.observe(weight, layout)
    return weight


KINDS = ["dense", "int8", "int8g16", "int4", "int4g64", "asymmetric", "lora", "int4+lora", "observed", "int8+observed"]


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_matmul_is_the_dense_product(kind, table):
    weight = make(kind, (48, 64) if table else (64, 48), table)
    x = jax.random.normal(jax.random.key(4), (2, 5, 64))
    dense = weights.dense(weight)
    expected = x @ (dense.T if table else dense)
    assert relative(weights.matmul(x, weight, table=table), expected) < 1e-6

    cotangent = jax.random.normal(jax.random.key(5), expected.shape)
    _, pull = jax.vjp(lambda x: weights.matmul(x, weight, table=table), x)
    assert relative(pull(cotangent)[0], cotangent @ (dense if table else dense.T)) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_take_reads_rows(kind):
    weight = make(kind, (48, 64), table=True)
    ids = jnp.asarray([[3, 47], [0, 3]])
    assert relative(weights.take(weight, ids, jnp.float32), weights.dense(weight)[ids]) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("table", "layout"), [(True, "vocab <- embed"), (False, "embed -> vocab")])
def test_a_streamed_weight_is_the_weight(kind, table, layout):
    weight = make(kind, (49, 64) if table else (64, 49), table=table)
    params = {"w": weight, "scale": jnp.ones(64), "experts": jnp.ones((2, 64, 3))}
    layouts = {"w": layout, "scale": "embed", "experts": "experts; embed -> mlp"}
    streamed = weights.stream(params, layouts)
    assert all(streamed[name] is params[name] for name in ("scale", "experts"))
    assert (weights.stream(params, layouts, tables=False)["w"] is weight) == table
    streamed, kernel = streamed["w"], weights.dense(weight).T if table else weights.dense(weight)
    assert same(weights.stream(streamed, layout), streamed)
    found = streamed.base if isinstance(streamed, weights.LowRank) else streamed
    assert found.values.shape == (1, 49, 64)
    assert found.axes(weights.parse(layout)).values == (("embed",), ("vocab",), ())
    assert relative(weights.dense(streamed), weights.dense(weight)) < 1e-6
    product = jax.jit(functools.partial(weights.matmul, table=table), compiler_options=decoding_options())
    # Uneven parts, one place and several, more than a pass, too many; what is streamed of other kinds is dense, too.
    for rows in (1, 2, 7, 8, 9, 17) if kind in ("dense", "lora") else (2,):
        x = jax.random.normal(jax.random.key(rows), (rows, 1, 64))
        assert relative(product(x, streamed), x @ kernel) < 1e-6
    assert weights.matmul(jnp.zeros((2, 0, 64)), streamed, table=table).shape == (2, 0, 49)
    if table:
        ids = jnp.asarray([[3, 47], [0, 3]])
        assert relative(weights.take(streamed, ids, jnp.float32), weights.dense(weight)[ids]) < 1e-6


@pytest.mark.parametrize(("inputs", "blocks"), [(256, 2), (192, 2), (208, 1), (1024, 8), (7, 1)])
def test_a_streamed_weight_lies_in_blocks_of_its_inputs(inputs, blocks):
    weight = jax.random.normal(jax.random.key(0), (inputs, 11))
    streamed = weights.stream(weight, "embed -> classes")
    assert streamed.values.shape == (blocks, 11, inputs // blocks)
    assert same(weights.dense(streamed), weight)
    table = weights.stream(weight.T, "classes <- embed")
    for ids in (jnp.asarray([3, 10]), jnp.zeros((2, 0), int)):
        assert same(weights.take(table, ids, jnp.float32), weight.T[ids])
    product = jax.jit(weights.matmul, compiler_options=decoding_options())
    for shape in ((1,), (8,), (17,), (64, 1), (65, 1)):  # one pass, a library's product, passes, too many for them
        x = jax.random.normal(jax.random.key(1), (*shape, inputs))
        assert relative(product(x, streamed), x @ weight) < 1e-6


def test_a_streamed_weight_narrower_than_its_rows():
    weight = jax.random.normal(jax.random.key(0), (16, 3))
    x = jax.random.normal(jax.random.key(1), (5, 16))
    found = jax.jit(weights.matmul, compiler_options=decoding_options())(x, weights.stream(weight, "embed -> classes"))
    assert relative(found, x @ weight) < 1e-6


@pytest.mark.parametrize("shape", [(2, 3, 1, 64), (2, 3, 2, 4, 64), (2, 3, 17, 64), (2, 3, 0, 64), (2, 3, 64)])
def test_streamed_products_of_a_batch(shape):
    """Few rows or many, none, and a row without a dim of its own."""
    values, x = jax.random.normal(jax.random.key(0), (2, 3, 7, 64)), jax.random.normal(jax.random.key(1), shape)
    expected = jnp.einsum("bgxk,bgsk->bgxs", x.reshape(2, 3, -1, 64), values).reshape(*shape[:-1], 7)
    options = decoding_options()
    for product in (weights.contract, weights.streamed_matmul):
        found = jax.jit(product, static_argnums=2, compiler_options=options)(x, values, jnp.bfloat16)
        assert found.dtype == jnp.bfloat16
        found = jax.jit(product, static_argnums=2, compiler_options=options)(x, values, jnp.float32)
        assert found.shape == expected.shape and (not expected.size or relative(found, expected) < 1e-6)


def test_sums_of_narrow_products_are_wide():
    """One bfloat16 sum of 4096 ones stops at 256."""
    ones = jnp.ones((1, 4096), jnp.bfloat16)
    product = jax.jit(weights.streamed_matmul, static_argnums=2, compiler_options=decoding_options())
    assert product(ones, ones, jnp.float32) == 4096


@pytest.mark.parametrize("kind", KINDS)
def test_grouped_is_one_product_a_group(kind):
    weight = make(kind, (3, 64, 32))
    x = jax.random.normal(jax.random.key(6), (10, 64))
    sizes, group = jnp.asarray([4, 0, 6], jnp.int32), np.repeat([0, 1, 2], [4, 0, 6])
    expected = jnp.einsum("ni,nio->no", x, weights.dense(weight)[group])
    assert relative(weights.grouped(x, weight, sizes), expected) < 1e-6
    cotangent = jax.random.normal(jax.random.key(7), expected.shape)
    _, pull = jax.vjp(lambda x: weights.grouped(x, weight, sizes), x)
    assert relative(pull(cotangent)[0], jnp.einsum("no,nio->ni", cotangent, weights.dense(weight)[group])) < 1e-6


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_packing_round_trips_every_nibble(axis):
    values = jnp.asarray(np.random.default_rng(0).integers(-8, 8, (32, 6)), jnp.int8)
    packed = packing.pack(values, axis)
    assert packed.dtype == jnp.uint8 and packed.size * 2 == values.size
    assert same(packing.unpack(packed, axis), values)


def sqnr(weight, quantized) -> float:
    """Signal to quantization noise, dB, in float64."""
    exact, back = np.asarray(weight, np.float64), np.asarray(weights.dense(quantized), np.float64)
    return float(10 * np.log10((exact**2).sum() / ((exact - back) ** 2).sum()))


@pytest.mark.parametrize(("kind", "group", "least"), [("int8", None, 42.0), ("int4", 32, 21.7), ("int4", 128, 20.2)])
def test_quantization_error_on_gaussian_weights(kind, group, least):
    """42.5 dB for int8 per channel; the searched scale is worth 1.6 dB over the largest magnitude for int4."""
    weight = jax.random.normal(jax.random.key(0), (512, 512))
    assert sqnr(weight, weights.quantize(weight, "in -> out", kind, group=group)) > least


def test_zero_points_pay_on_shifted_weights():
    weight = jnp.abs(jax.random.normal(jax.random.key(0), (64, 64)))
    symmetric = sqnr(weight, weights.quantize(weight, "in -> out", "int4"))
    assert sqnr(weight, weights.quantize(weight, "in -> out", "int4", symmetric=False)) > symmetric + 3


def test_quantizing_stacked_weights_is_quantizing_each():
    stack = jax.random.normal(jax.random.key(0), (3, 64, 32))
    whole = weights.quantize(stack, "layers; in -> out", "int4")
    for i in range(3):
        one = weights.quantize(stack[i], "in -> out", "int4")
        assert same(whole.values[i], one.values)
        assert relative(whole.scale[i], one.scale) < 1e-6


def test_odd_inputs_take_int8_and_odd_groups_one_scale_a_channel():
    odd = weights.quantize(jnp.ones((27, 4)), "in -> out", "int4")
    assert odd.bits == 8 and odd.values.shape == (27, 4)
    assert weights.quantize(jnp.ones((40, 4)), "in -> out", "int4", group=32).scale.shape == (1, 4)


def test_zeros_stay_zero():
    assert same(weights.dense(weights.quantize(jnp.zeros((8, 4)), "in -> out")), jnp.zeros((8, 4)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda w: weights.quantize(w, "in -> out", "int3"), "choose one of int8, int4"),
        (lambda w: weights.quantize(w, "in -> out", "int4", group=3), "even number of inputs"),
        (lambda w: weights.quantize(weights.quantize(w, "i -> o"), "i -> o"), "quantized already"),
        (lambda w: weights.lora({"a": w}, {"a": "in -> out"}, rank=0, key=jax.random.key(0)), "at least 1"),
        (lambda w: weights.lora({"a": w}, {"a": "in -> out"}, rank=2, key=jax.random.key(0)), "matches no weight"),
    ],
)
def test_bad_requests_say_what_to_do(call, words):
    with pytest.raises(InputError, match=words):
        call(jnp.ones((8, 8)))
