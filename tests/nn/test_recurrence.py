"""Recurrences: by chunks, a token at a time and in plain numpy they agree; padding and packing change nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.generate import generate
from jaxmodel.interop import stablehlo
from jaxmodel.interop.proof import Subject, prove
from jaxmodel.models.configs import Transformer, Variant
from jaxmodel.models.parts import MLP, Attention, Execution, Recurrence
from jaxmodel.nn.recurrence import Inputs, recur
from tests.contract import relative

B, T, G, R, N, P = 2, 13, 2, 3, 4, 5
SSD = Recurrence(num_heads=6, head_dim=5, state_dim=4, num_groups=2, chunk=4, skip=True, conv_bias=True)
DELTA = dataclasses.replace(SSD, kind="delta", norm="head", norm_first=True, skip=False, kernel=3)
HYBRID = dataclasses.replace(SSD, norm="none", scales=(0.9, 1.1, 0.5, 1.5, 0.7), output_scale=0.5)
KINDS = {"ssd": SSD, "delta": DELTA, "hybrid": HYBRID}
# The hybrid, which holds all of it, every day.
EACH = [pytest.param(kind, marks=[] if kind == "hybrid" else [pytest.mark.slow]) for kind in KINDS]


def inputs(segments=None):
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, B, T, G, N))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v = rng.normal(size=(B, T, G, R, P))
    decay, strength = -rng.uniform(0.0, 2.0, (B, T, G, R)), rng.uniform(0.0, 1.0, (B, T, G, R))
    arrays = (jnp.asarray(each, jnp.float32) for each in (q, k, v, decay, strength))
    return Inputs(*arrays, segments=None if segments is None else jnp.asarray(segments))


def plain(given, state, delta):
    """Token by token, head by head, in float64."""
    q, k, v, decay, strength = (np.asarray(each, np.float64) for each in given[:5])
    state, read = np.array(state, np.float64), np.zeros(v.shape)
    for b, t, g, r in np.ndindex(decay.shape):
        now = state[b, g, r]
        if given.segments is not None and t and given.segments[b, t] != given.segments[b, t - 1]:
            now[:] = 0
        now *= np.exp(decay[b, t, g, r])
        value = v[b, t, g, r] - (k[b, t, g] @ now if delta else 0)
        now += strength[b, t, g, r] * np.outer(k[b, t, g], value)
        read[b, t, g, r] = q[b, t, g] @ now
    return read, state


@pytest.mark.parametrize("delta", [False, True], ids=["ssd", "delta"])
@pytest.mark.parametrize("chunk", [2, pytest.param(4, marks=pytest.mark.slow), 64])
def test_chunks_steps_and_numpy_agree(delta, chunk):
    given = inputs()
    start = np.random.default_rng(1).normal(size=(B, G, R, N, P)).astype(np.float32)
    expected, last = plain(given, start, delta)
    found, state = jax.jit(functools.partial(recur, delta=delta, chunk=chunk))(given, jnp.asarray(start))
    np.testing.assert_allclose(found, expected, atol=3e-6)
    np.testing.assert_allclose(state, last, atol=3e-6)
    state = jnp.asarray(start)
    for t in range(T):
        one = jax.tree.map(lambda x, t=t: x[:, t : t + 1], given)
        read, state = recur(one, state, delta=delta, chunk=chunk)
        np.testing.assert_allclose(read[:, 0], expected[:, t], atol=3e-6)
    np.testing.assert_allclose(state, last, atol=3e-6)


@pytest.mark.parametrize("delta", [False, True], ids=["ssd", "delta"])
def test_each_document_of_a_row_starts_from_nothing(delta):
    given = inputs(np.array([[1] * 3 + [2] * 8 + [3] * 2, [1] * 4 + [2] * 9], np.int32))
    zero = jnp.zeros((B, G, R, N, P))
    expected, _ = plain(given, zero, delta)
    found, _ = recur(given, zero, delta=delta, chunk=4)
    np.testing.assert_allclose(found, expected, atol=3e-6)


def config_of(kind, **fields):
    """A block of a recurrence, alone or beside attention, then one of attention and an MLP."""
    sublayers = ("hybrid", "mlp") if kind == "hybrid" else ("recurrence",)
    variants = (Variant("linear", (("sublayers", sublayers),)), Variant("full"))
    usual = {
        "attention": Attention(num_heads=2, rotary=True),
        "recurrence": KINDS[kind],
        "pattern": ("linear", "full"),
        "variants": variants,
    }
    sizes = {"vocab_size": 50, "max_length": 64, "embed_dim": 24, "num_layers": 2, "mlp": MLP(dim=32)}
    return Transformer(**{**sizes, **usual, **fields})


@functools.cache
def model_of(kind):
    model = config_of(kind).build()
    return model, jax.jit(model.init)(jax.random.key(0))


def tokens(*shape):
    return np.random.default_rng(2).integers(1, 50, shape).astype(np.int32)


def logits(model, params, state=None, **batch):
    out = jax.jit(model.apply)(params, batch, state)
    return np.asarray(out["logits"]), out.state


@pytest.mark.parametrize("kind", EACH)
def test_read_in_pieces_it_gives_what_it_gives_at_once(kind):
    model, params = model_of(kind)
    text = tokens(2, 12)
    whole, _ = logits(model, params, tokens=text)
    state = model.start(2, 12)
    for begin, end in ((0, 5), (5, 9), (9, 10), (10, 11), (11, 12)):
        part, state = logits(model, params, state, tokens=text[:, begin:end])
        np.testing.assert_allclose(part, whole[:, begin:end], atol=2e-5)


@pytest.mark.parametrize("kind", EACH)
def test_padding_on_either_side_or_between_changes_nothing(kind):
    model, params = model_of(kind)
    text = tokens(1, 7)
    whole, _ = logits(model, params, tokens=text)
    rng = np.random.default_rng(3)
    for seats in ([0, 1, 2, 3, 4, 5, 6], [3, 4, 5, 6, 7, 8, 9], [0, 2, 3, 4, 7, 8, 9]):
        mask = np.isin(np.arange(10), seats)[None]
        row = rng.integers(1, 50, (1, 10)).astype(np.int32)
        row[mask] = text[0]
        both = np.concatenate([row, tokens(1, 10)]), np.concatenate([mask, np.ones((1, 10), bool)])
        found, _ = logits(model, params, tokens=both[0], mask=both[1])
        np.testing.assert_allclose(found[0][mask[0]], whole[0], atol=2e-5)
        # In two calls, padded each: what the cache holds between them has no padding in it.
        state = model.start(2, 10)
        for part in (slice(0, 5), slice(5, 10)):
            found, state = logits(model, params, state, tokens=both[0][:, part], mask=both[1][:, part])
            before = int(mask[0, : part.start].sum())
            kept = found[0][mask[0, part]]
            np.testing.assert_allclose(kept, whole[0, before : before + len(kept)], atol=2e-5)


@pytest.mark.parametrize("kind", EACH)
def test_packed_documents_do_not_see_each_other(kind):
    model, params = model_of(kind)
    first, second = tokens(1, 5), tokens(1, 6)[:, ::-1]
    packed = np.concatenate([first, second, tokens(1, 2)], axis=1)
    segments = np.array([[1] * 5 + [2] * 6 + [0] * 2], np.int32)
    found, _ = logits(model, params, tokens=packed, segments=segments)
    np.testing.assert_allclose(found[:, :5], logits(model, params, tokens=first)[0], atol=2e-5)
    np.testing.assert_allclose(found[:, 5:11], logits(model, params, tokens=second)[0], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", EACH)
def test_scanned_and_unrolled_they_share_parameters_and_agree(kind):
    scanned, unrolled = (config_of(kind, num_layers=4, execution=Execution(scan=s)).build() for s in (True, False))
    params = jax.jit(scanned.init)(jax.random.key(0))
    text = tokens(2, 9)

    def loss(model, params):
        return jnp.sum(jnp.sin(model.apply(params, {"tokens": text}, train=True)["logits"]))

    found = [jax.jit(jax.grad(functools.partial(loss, each)))(params) for each in (scanned, unrolled)]
    assert all(np.isfinite(each).all() for each in jax.tree.leaves(found))
    assert relative(*found) < 1e-5


@pytest.mark.parametrize("kind", EACH)
def test_prompts_of_any_lengths_continue_as_each_alone(kind):
    model, params = model_of(kind)
    prompts = [list(tokens(9)), list(tokens(3)), list(tokens(1))]
    together = generate(model, params, prompts, max_new_tokens=8)
    assert together == [generate(model, params, [each], max_new_tokens=8)[0] for each in prompts]
    text = list(prompts[1])
    for token in together[1]:  # without a cache
        assert token == int(np.argmax(logits(model, params, tokens=np.array([text], np.int32))[0][0, -1]))
        text.append(token)


@pytest.mark.slow
def test_exports_compute_the_same_bits(tmp_path):
    subjects = []
    for kind in KINDS:
        model, params = model_of(kind)
        (tmp_path / kind).mkdir()
        stablehlo.write(tmp_path / kind, model, params)
        subjects.append(Subject(tmp_path / kind, model, params, {}))
    assert [proof.max_deviation for proof in prove(*subjects)] == [0] * len(KINDS)
