"""Models that read samples of sound: frames, padding, hidden frames, what they refuse; one learns to spell tones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmodel.config import replace
from jaxmodel.errors import InputError
from jaxmodel.interop import stablehlo
from jaxmodel.loading import load
from jaxmodel.metrics import finish
from jaxmodel.models.configs import Transformer
from jaxmodel.models.parts import MLP, Attention, Head, Norm, Waveform
from jaxmodel.options import Task
from jaxmodel.tasks import ctc
from tests.contract import relative

WAVEFORM = Waveform(
    dims=(16, 16, 24), kernels=(10, 3, 2), strides=(5, 2, 2), norm="layer", position_kernel=8, position_groups=4
)
SPEECH = Transformer(
    vocab_size=None,
    waveform=WAVEFORM,
    max_length=64,
    embed_dim=32,
    num_layers=2,
    attention=Attention(num_heads=4, causal=False),
    mlp=MLP(dim=48, activation="gelu"),
    norm=Norm(kind="layer", bias=True),
    head=Head(outputs=5, bias=True),
)


def sound(rows=2, samples=410):
    return np.random.default_rng(0).normal(size=(rows, samples)).astype(np.float32)


def test_frames_are_as_many_as_whole_windows():
    model = SPEECH.build()
    params = jax.jit(model.init)(jax.random.key(0))
    for samples in (30, 49, 50, 410):
        out = model.apply(params, {"audio": sound(1, samples)})
        frames = WAVEFORM.frames(samples)
        assert out["logits"].shape == (1, frames, 5) and out["lengths"].tolist() == [frames]
        assert WAVEFORM.samples(frames) <= samples < WAVEFORM.samples(frames + 1)


def test_padding_behind_the_sound_changes_nothing():
    model, audio = SPEECH.build(), sound()
    params = jax.jit(model.init)(jax.random.key(0))
    mask = np.arange(410) < np.array([[410], [233]])
    out = model.apply(params, {"audio": np.where(mask, audio, 0.0).astype(np.float32), "mask": mask})
    alone = model.apply(params, {"audio": audio[1:, :233]})
    assert out["lengths"].tolist() == [WAVEFORM.frames(410), WAVEFORM.frames(233)]
    assert relative(out["logits"][1:, : WAVEFORM.frames(233)], alone["logits"]) < 1e-5


def test_training_hides_spans_of_frames():
    config = replace(SPEECH, {"waveform.mask_fraction": 0.5, "waveform.mask_length": 3})
    model, batch = config.build(), {"audio": sound()}
    params = jax.jit(model.init)(jax.random.key(0))
    with pytest.raises(InputError, match=r"model.waveform.mask_fraction=0.5 needs a key in training"):
        model.apply(params, batch, train=True)
    first, again, other = (
        model.apply(params, batch, key=jax.random.key(key), train=True)["logits"] for key in (1, 1, 2)
    )
    assert (first == again).all() and (first != other).any()
    assert "masked" not in replace(SPEECH, {"waveform.mask_fraction": 0.0}).build().layout["stem"]["waveform"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"waveform.strides": (5, 2)}, "model.waveform.dims, kernels and strides differ in length"),
        ({"waveform.position_groups": 5}, "model.embed_dim=32 is no multiple of model.waveform.position_groups=5"),
        ({"vocab_size": 8}, "model.vocab_size=8 beside model.images=none beside model.waveform=Waveform"),
    ],
)
def test_what_does_not_fit_is_refused(overrides, words):
    with pytest.raises(InputError, match=words):
        replace(SPEECH, overrides).check()


def test_too_little_sound_is_named():
    model = SPEECH.build()
    with pytest.raises(InputError, match="audio of 29 samples is shorter than the 30 of one frame"):
        model.apply(jax.jit(model.init)(jax.random.key(0)), {"audio": sound(1, 29)})


@pytest.mark.slow
def test_it_learns_to_spell_tones():
    rng = np.random.default_rng(0)

    def batch():
        targets = rng.integers(1, 5, (16, 3)).astype(np.int32)
        time = np.arange(140)
        tones = np.sin(2 * np.pi * time * targets[..., None] / 20 + rng.uniform(0, 6, (16, 3, 1)))
        return {
            "audio": (tones + 0.05 * rng.normal(size=tones.shape)).reshape(16, -1).astype(np.float32),
            "targets": targets,
        }

    model = dataclasses.replace(SPEECH, waveform=dataclasses.replace(WAVEFORM, mask_fraction=0.0)).build()
    loss, optimizer = ctc(model, Task(name="ctc")), optax.adam(3e-3)
    params = jax.jit(model.init)(jax.random.key(0))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, batch):
        def objective(params):
            result = loss(params, batch, {}, None, True)
            return result.sum / result.weight

        gradient = jax.grad(objective)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    for _ in range(150):
        params, state = step(params, state, jax.tree.map(jnp.asarray, batch()))
    found = finish(loss(params, batch(), {}, None, False).metrics)
    assert found["error_rate"] < 0.2, found


@pytest.mark.slow
def test_an_export_hears_as_much_as_there_is(tmp_path):
    model, audio = SPEECH.build(), sound()
    params = jax.jit(model.init)(jax.random.key(0))
    stablehlo.write(tmp_path, model, params)
    again = load(tmp_path)
    for samples in (410, 233):
        batch = {"audio": audio[:, :samples]}
        out = again.model.apply(again.params, batch)
        assert relative(out["logits"], model.apply(params, batch)["logits"]) < 1e-6
    with pytest.raises(InputError, match="samples 29 is less than the 30 that this export takes"):
        again.model.apply(again.params, {"audio": sound(1, 29)})
