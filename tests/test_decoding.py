"""Prefill and decode through the cache equal the full forward, whatever the attention, padding or layout."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.config import replace
from jaxmodel.nn.stack import unstack
from tests.contract import CAUSAL, batch_of, built, params_of, relative

PROMPT = 9  # longer than the pattern model's window of six


def run(name: str, params, batch, prompt: int, state):
    """Logits of every position: the prompt in one call, the rest a token at a time."""
    model = built(name)
    apply = jax.jit(model.apply)
    out = apply(params, {k: v[:, :prompt] for k, v in batch.items()}, state)
    logits = [out["logits"]]
    for t in range(prompt, batch["tokens"].shape[1]):
        out = apply(params, {k: v[:, t : t + 1] for k, v in batch.items()}, out.state)
        logits.append(out["logits"])
    return jnp.concatenate(logits, axis=1)


@pytest.mark.parametrize("prompt", [1, PROMPT])
@pytest.mark.parametrize("name", CAUSAL)
def test_decode_equals_full_forward(name, prompt):
    batch = {"tokens": jnp.asarray(batch_of(name, rows=2)["tokens"])}
    full = jax.jit(built(name).apply)(params_of(name), batch)["logits"]
    stepped = run(name, params_of(name), batch, prompt, built(name).start(2, 16))
    assert relative(stepped, full) < 1e-6


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CAUSAL)
def test_padded_prompts_decode_as_if_alone(name, side):
    tokens = jnp.asarray(batch_of(name, rows=3)["tokens"])
    lengths, new = (4, PROMPT, 7), 5
    padded, mask = np.zeros((3, PROMPT), np.int32), np.zeros((3, PROMPT), bool)
    for row, n in enumerate(lengths):
        where = slice(PROMPT - n, PROMPT) if side == "left" else slice(0, n)
        padded[row, where], mask[row, where] = tokens[row, :n], True
    after = np.stack([tokens[row, n : n + new] for row, n in enumerate(lengths)])
    batch = {
        "tokens": jnp.concatenate([jnp.asarray(padded), jnp.asarray(after)], axis=1),
        "mask": jnp.concatenate([jnp.asarray(mask), jnp.ones((3, new), bool)], axis=1),
    }
    state = built(name).start(3, PROMPT + new)
    stepped = run(name, params_of(name), batch, PROMPT, state)
    for row, n in enumerate(lengths):
        alone = jax.jit(built(name).apply)(params_of(name), {"tokens": tokens[row : row + 1, : n + new]})["logits"][0]
        last = PROMPT - 1 if side == "left" else n - 1
        got = jnp.concatenate([stepped[row, last : last + 1], stepped[row, PROMPT:]])
        assert relative(got, alone[n - 1 :]) < 1e-6


@pytest.mark.parametrize("name", ["pattern", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt", "mixture"))])
def test_a_prompt_read_in_pieces(name):
    """Chunked prefill: several tokens at a time onto a cache that already holds some."""
    batch = {"tokens": jnp.asarray(batch_of(name, rows=2)["tokens"])}
    apply = jax.jit(built(name).apply)
    full = apply(params_of(name), batch)["logits"]
    state, logits = built(name).start(2, 16), []
    for piece in (slice(0, 5), slice(5, 8), slice(8, 16)):
        out = apply(params_of(name), {"tokens": batch["tokens"][:, piece]}, state)
        state = out.state
        logits.append(out["logits"])
    assert relative(jnp.concatenate(logits, axis=1), full) < 1e-6


@pytest.mark.parametrize("name", CAUSAL)
def test_scan_unrolled_and_unstacked_agree(name):
    batch = {"tokens": jnp.asarray(batch_of(name, rows=2)["tokens"])}
    params, state = params_of(name), built(name).start(2, 16)
    unrolled = replace(CAUSAL[name], {"execution.scan": False}).build()
    expected = jax.jit(built(name).apply)(params, batch, state)
    apart = unstack(params, state), unstack(state, state)
    for model, p, s in ((unrolled, params, state), (unrolled, *apart), (built(name), params, apart[1])):
        out = jax.jit(model.apply)(p, batch, s)
        assert relative(out["logits"], expected["logits"]) < 1e-6
        assert relative(out.state, unstack(expected.state, state) if s is not state else expected.state) < 1e-6


def test_decoding_holds_no_second_copy_of_the_weights():
    """Unstacked once, a decode step needs less scratch than one layer; sliced inside the step it would copy them."""
    config = replace(CAUSAL["gpt"], {"num_layers": 4, "embed_dim": 128, "mlp.dim": 512, "execution.scan": False})
    model = config.build()
    params = jax.jit(model.init)(jax.random.key(0))
    state = model.start(1, 32)
    flat, state = unstack(params, state), unstack(state, state)

    def step(params, tokens, state):
        out = model.apply(params, {"tokens": tokens}, state)
        return jnp.argmax(out["logits"][:, -1:], axis=-1), out.state

    compiled = jax.jit(step, donate_argnums=2).lower(flat, jnp.zeros((1, 1), jnp.int32), state).compile()
    analysis: Any = compiled.memory_analysis()
    layer = sum(a.nbytes for a in jax.tree.leaves(flat["stack"]["0"]["block"][0]))
    assert analysis.temp_size_in_bytes < layer


def test_padding_on_either_side_changes_nothing_real():
    tokens = jnp.asarray(batch_of("gpt", rows=1)["tokens"])
    plain = built("gpt").apply(params_of("gpt"), {"tokens": tokens})["logits"]
    for side in ((0, 3), (3, 0)):
        padded = jnp.pad(tokens, ((0, 0), side))
        mask = jnp.pad(jnp.ones_like(tokens, bool), ((0, 0), side))
        logits = built("gpt").apply(params_of("gpt"), {"tokens": padded, "mask": mask})["logits"]
        assert relative(logits[:, side[0] : side[0] + 16], plain) < 1e-6


@pytest.mark.parametrize("name", CAUSAL)
def test_packed_segments_are_separate_sequences(name):
    tokens = jnp.asarray(batch_of(name, rows=1)["tokens"])
    segments = jnp.asarray([[1] * 6 + [2] * 7 + [0] * 3], jnp.int32)
    packed = jax.jit(built(name).apply)(params_of(name), {"tokens": tokens, "segments": segments})["logits"]
    for piece in (slice(0, 6), slice(6, 13)):
        alone = built(name).apply(params_of(name), {"tokens": tokens[:, piece]})["logits"]
        assert relative(packed[:, piece], alone) < 1e-6
