"""A decoder beside an encoder: caches, sources, generation, training, export."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmodel.data.audio import log_mel
from jaxmodel.errors import InputError
from jaxmodel.generate import generate, prepared
from jaxmodel.interop import stablehlo
from jaxmodel.interop.proof import Subject, prove
from jaxmodel.models.presets import PRESETS
from jaxmodel.tasks import seq2seq
from tests.shrink import params_of, shrunk

PAIR = shrunk(PRESETS["t5-small"])
TEXT = shrunk(PRESETS["bart-base"])
SPEECH = shrunk(PRESETS["whisper-tiny"])


def batch(rows=3, length=10, target=6):
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(1, 64, (rows, length)).astype(np.int32),
        "mask": np.arange(length) < length - np.arange(rows)[:, None],
        "decoder_tokens": rng.integers(1, 64, (rows, target)).astype(np.int32),
    }


@pytest.mark.parametrize("name", ["t5-small", "bart-base", "whisper-tiny"])
def test_token_by_token_gives_what_one_pass_does(name):
    config = shrunk(PRESETS[name])
    model, params, whole = config.build(), params_of(config), batch()
    if "audio" in config.reads:
        audio = np.random.default_rng(1).normal(size=(3, 3000)).astype(np.float32)
        whole = {"audio": audio, "decoder_tokens": whole["decoder_tokens"]}
    expected = model.apply(params, whole)
    tokens = whole.pop("decoder_tokens")
    out = model.apply(params, whole, model.start(3, 8))
    np.testing.assert_allclose(out["encoder_hidden"], expected["encoder_hidden"], atol=1e-6)
    step = jax.jit(model.apply)
    state, found = out.state, []
    for i in range(tokens.shape[1]):
        out = step(params, {"decoder_tokens": tokens[:, i : i + 1]}, state)
        state = out.state
        found.append(out["logits"])
    np.testing.assert_allclose(np.concatenate(found, 1), expected["logits"], rtol=0, atol=2e-5)


def test_what_an_encoder_read_may_be_given_again():
    model, params, whole = PAIR.build(), params_of(PAIR), batch()
    out = model.apply(params, whole)
    again = {**whole, "encoder_hidden": out["encoder_hidden"]}
    del again["tokens"]
    assert np.array_equal(model.apply(params, again)["logits"], out["logits"])
    head = model.apply(params, {"hidden": out["hidden"]})
    assert np.array_equal(head["logits"], out["logits"])


def test_errors_say_what_is_missing():
    model, params, whole = PAIR.build(), params_of(PAIR), batch()
    for name in ("tokens", "decoder_tokens"):
        with pytest.raises(InputError, match=f"{name} is missing"):
            model.apply(params, {key: value for key, value in whole.items() if key != name})
    with pytest.raises(InputError, match="no source yet"):
        model.apply(params, {"decoder_tokens": whole["decoder_tokens"]}, model.start(3, 8))
    with pytest.raises(InputError, match=r"model\.cross=none"):
        dataclasses.replace(PAIR, decoder=dataclasses.replace(PAIR.decoder, cross=None)).build()
    with pytest.raises(InputError, match=r"model\.cross\.rotary"):
        cross = dataclasses.replace(PAIR.decoder.cross, rotary=True)
        dataclasses.replace(PAIR, decoder=dataclasses.replace(PAIR.decoder, cross=cross)).build()
    with pytest.raises(InputError, match=r"pass begin="):
        config = dataclasses.replace(PAIR, start_token=None)
        generate(config.build(), params, [[1, 2]], max_new_tokens=2)


def test_audio_is_filled_up_with_silence_and_becomes_frames():
    model, params = SPEECH.build(), params_of(SPEECH)
    audio = np.random.default_rng(0).normal(size=(2, 2000)).astype(np.float32)
    tokens = np.ones((2, 3), np.int32)
    full = np.pad(audio, ((0, 0), (0, SPEECH.encoder.spectrogram.samples - 2000)))
    frames = log_mel(full, bands=SPEECH.encoder.spectrogram.bands)
    out = model.apply(params, {"audio": audio, "decoder_tokens": tokens})
    again = model.apply(params, {"frames": frames, "decoder_tokens": tokens})
    np.testing.assert_allclose(out["logits"], again["logits"], rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="cut it into pieces"):
        model.apply(params, {"audio": np.zeros((2, 9000), np.float32), "decoder_tokens": tokens})
    with pytest.raises(InputError, match="frames is"):
        model.apply(params, {"frames": frames[:, 1:], "decoder_tokens": tokens})


def test_learns_to_write_what_the_source_says():
    model = TEXT.build()
    loss = seq2seq(model)
    optimizer = optax.adam(3e-3)

    def drawn(key):
        tokens = jnp.repeat(jax.random.randint(key, (32, 1), 1, 8), 4, axis=1)
        moved = jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
        return {"tokens": tokens, "decoder_tokens": moved, "targets": tokens}

    def step(carry, key):
        params, state = carry

        def mean(params):
            found = loss(params, drawn(key), {}, None, True)
            return found.sum / found.weight

        value, gradients = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(params, updates), state), value

    params = params_of(TEXT)
    keys = jax.random.split(jax.random.key(0), 200)
    (params, _), losses = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((params, optimizer.init(params)))
    assert np.mean(losses[-10:]) < 0.1 * losses[0]
    prompts = np.asarray(drawn(jax.random.key(7))["tokens"][:4]).tolist()
    assert generate(model, prepared(model, params), prompts, max_new_tokens=4) == prompts


def test_an_export_computes_the_same_and_generates(tmp_path):
    model, params, whole = PAIR.build(), params_of(PAIR), batch()
    stablehlo.write(tmp_path, model, params)
    (proof,) = prove(Subject(tmp_path, model, params))
    assert proof.max_deviation == 0
    again = stablehlo.read(tmp_path)
    assert list(again.about["programs"]) == ["forward"]
    prompts = [row[real].tolist() for row, real in zip(whole["tokens"], whole["mask"], strict=True)]
    expected = generate(model, params, prompts, max_new_tokens=5)
    assert generate(again.model, again.params, prompts, max_new_tokens=5) == expected
