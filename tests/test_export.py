"""Exporting: weights transformed, a directory that is whole or not there, and numbers beside the checkpoint's."""

import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel import export as exports
from jaxmodel import optim, options, tasks, weights
from jaxmodel.data.tokenizer import ByteTokenizer
from jaxmodel.errors import InputError
from jaxmodel.evaluate import evaluate
from jaxmodel.export import compare, export, kind_of, transform
from jaxmodel.interop.proof import Proof
from jaxmodel.loading import load
from jaxmodel.models.presets import PRESETS
from jaxmodel.train import make_state, make_step
from jaxmodel.weights import LowRank, Quantized
from tests import bigram
from tests.contract import batch_of, built, params_of, same


@pytest.fixture
def unproved(monkeypatch):
    """Without the separate process, whose seconds only the tests that are about it can spare."""
    monkeypatch.setattr(exports, "prove", lambda *_: [Proof("nobody", 0.0)])


def test_an_export_is_proved_measured_and_written(tmp_path):
    model, params, batches = built("gpt"), params_of("gpt"), [batch_of("gpt", step) for step in range(2)]
    result = export(
        model, params, tmp_path / "e", quantize="int4", group=16, fitted=ByteTokenizer(), step=7, batches=batches
    )
    assert json.loads((tmp_path / "e" / "export.json").read_text()) == result
    assert (result["format"], result["quantize"], result["max_deviation"]) == ("stablehlo", "int4", 0.0)
    assert result["consumer"].startswith("jax.export in a separate process, jax ")
    files = {file.name: file.stat().st_size for file in (tmp_path / "e").iterdir() if file.name != "export.json"}
    assert result["bytes"] == files["weights.safetensors"] and result["total_bytes"] == sum(files.values())
    assert result["float32_bytes"] == 4 * weights.num_params(params, model.layout)
    loaded = load(tmp_path / "e")
    assert loaded.step == 7 and loaded.tokenizer is not None and loaded.tokenizer.vocab_size == 257
    found = evaluate(tasks.language_model(loaded.model), loaded.params, batches)
    assert result["perplexity"] == pytest.approx(found["perplexity"], rel=1e-5)
    assert result["kl"] > 0 and 0.5 < result["same_top1"] <= 1


def test_how_an_export_differs():
    """Against the definitions, in float64; what weighs nothing counts nothing, whatever its target."""
    model = bigram.bigram()
    ours = model.init(jax.random.key(0))
    theirs = jax.tree.map(lambda array: array + 0.1 * jnp.sin(jnp.arange(array.size)).reshape(array.shape), ours)
    batches = [bigram.batch_of(step) for step in range(2)]
    batches[0]["targets"] = np.where(batches[0]["weights"] > 0, batches[0]["targets"], 99)
    found = compare((model, ours, {}), (model, theirs, {}), batches)

    kl = same_top1 = nats = their_nats = total = 0.0
    for batch in batches:
        p, q = (log_softmax(model, params, batch) for params in (ours, theirs))
        weight = batch["weights"].astype(np.float64)
        targets = np.where(weight > 0, batch["targets"], 0)[..., None]
        total += weight.sum()
        kl += ((np.exp(p) * (p - q)).sum(-1) * weight).sum()
        same_top1 += ((p.argmax(-1) == q.argmax(-1)) * weight).sum()
        nats -= (np.take_along_axis(p, targets, -1)[..., 0] * weight).sum()
        their_nats -= (np.take_along_axis(q, targets, -1)[..., 0] * weight).sum()
    assert 0.5 < same_top1 / total < 1
    want = {"kl": kl / total, "same_top1": same_top1 / total}
    want |= {"perplexity": np.exp(their_nats / total), "checkpoint_perplexity": np.exp(nats / total)}
    assert found == pytest.approx(want, rel=1e-4)


def log_softmax(model, params, batch) -> np.ndarray:
    logits = np.asarray(model.apply(params, {"tokens": batch["tokens"]})["logits"], np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_a_model_does_not_differ_from_itself():
    model = bigram.bigram()
    held = (model, model.init(jax.random.key(0)), {})
    found = compare(held, held, [bigram.batch_of()])
    assert found["kl"] == 0 and found["same_top1"] == 1
    assert found["perplexity"] == found["checkpoint_perplexity"]
    assert compare(held, held, []) == {}


@pytest.mark.slow
def test_int8_hardly_changes_what_a_trained_model_finds_likely():
    """Perplexity moves by less than 0.1 %."""
    model = built("gpt")
    optimizer = optim.make_optimizer(options.Optimizer(learning_rate=1e-2, warmup=10), 150, model.layout)
    step = make_step(model, tasks.language_model(model), optimizer)
    state = make_state(model, optimizer, jax.random.key(0))
    for i in range(150):
        state, _ = step(state, batch_of("gpt", i), jax.random.key(i))
    int8 = transform(state.params, model.layout, quantize="int8")
    found = compare((model, state.params, {}), (model, int8, {}), [batch_of("gpt", 1000 + i) for i in range(8)])
    assert found["checkpoint_perplexity"] < 20  # of 64 tokens, half of which can be known
    assert found["perplexity"] == pytest.approx(found["checkpoint_perplexity"], rel=1e-3)
    assert 0 < found["kl"] < 1e-3 and found["same_top1"] > 0.95  # of the unknown half, none is likelier


@pytest.mark.parametrize("kind, most", [("int8", 0.27), ("int4", 0.17)])
def test_gpt2_becomes_as_small_as_it_should(kind, most):
    """The bytes of 124 million weights, from their shapes alone; a file adds a header of some thousand bytes."""
    model = PRESETS["gpt2"].build()
    dense = jax.eval_shape(model.init, jax.random.key(0))
    small = jax.eval_shape(lambda params: transform(params, model.layout, quantize=kind), dense)
    assert weights.num_bytes(small) + 100_000 < most * weights.num_bytes(dense)


def test_what_the_weights_become():
    layout, params = built("gpt").layout, params_of("gpt")
    adapted = weights.lora(params, layout, rank=2, key=jax.random.key(0))
    leaf = lambda params: params["stack"]["0"]["block"]["mlp"]["up"]  # noqa: E731
    assert same(transform(params, layout), params) and kind_of(params) == "none"
    assert kind_of(transform(params, layout, quantize="int8")) == "int8"
    kept = transform(adapted, layout, quantize="int4")
    assert isinstance(leaf(kept), LowRank) and isinstance(leaf(kept).base, Quantized) and kind_of(kept) == "int4"
    assert leaf(transform(params, layout, quantize="int4", group=8)).scale.shape[-2] == 4
    merged = transform(adapted, layout, quantize="int8", merge=True)
    assert isinstance(leaf(merged), Quantized)
    assert isinstance(leaf(transform(adapted, layout, merge=True)), jax.Array)


def test_what_cannot_be_quantized_is_said():
    layout, params = built("gpt").layout, params_of("gpt")
    with pytest.raises(InputError, match="quantize=int5: choose one of none, int8, int4"):
        transform(params, layout, quantize="int5")
    with pytest.raises(InputError, match="group=8 says how to quantize: give quantize=int8 or int4 too"):
        transform(params, layout, group=8)
    with pytest.raises(InputError, match="is quantized already: start from the dense checkpoint"):
        transform(weights.quantize(params, layout), layout, quantize="int4")


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="does not say what it reads"):
        export(built("function"), params_of("function"), tmp_path / "deep" / "e")
    assert os.listdir(tmp_path / "deep") == []

    def deviates(*_):
        raise RuntimeError("the export deviates")

    inputs = {"features": ("float32", ("batch", 32))}
    monkeypatch.setattr(exports, "prove", deviates)
    (tmp_path / "e").mkdir()
    with pytest.raises(RuntimeError, match="deviates"):
        export(built("function"), params_of("function"), tmp_path / "e", inputs=inputs)
    assert sorted(os.listdir(tmp_path)) == ["deep", "e"] and os.listdir(tmp_path / "e") == []


def test_an_export_is_replaced_and_nothing_else_is(tmp_path, unproved):
    options: dict[str, Any] = {"inputs": {"features": ("float32", ("batch", 32))}}
    first = export(built("function"), params_of("function"), tmp_path / "e", **options)
    (tmp_path / "e" / "eval.json").write_text("{}")
    second = export(built("function"), params_of("function"), tmp_path / "e", quantize="int8", **options)
    assert (first["quantize"], second["quantize"]) == ("none", "int8") and "perplexity" not in second
    assert os.listdir(tmp_path) == ["e"] and not (tmp_path / "e" / "eval.json").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="mine is not empty and holds no export: name another directory"):
        export(built("function"), params_of("function"), tmp_path / "mine", **options)
    with pytest.raises(InputError, match=r"thesis\.txt is a file: name a directory"):
        export(built("function"), params_of("function"), tmp_path / "mine" / "thesis.txt", **options)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
