"""Losses of tokens: sums that do not depend on padding, pieces or how they are computed; and what they measure."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel import metrics
from jaxmodel.model import Outputs
from jaxmodel.options import Task
from jaxmodel.tasks import language_model, masked_language_model, seq2seq
from jaxmodel.tasks.tokens import corrupt
from tests.bigram import B, T, V, batch_of, bigram, routed
from tests.contract import GPT, relative


def test_language_model_measures():
    model, data = bigram(), batch_of()
    params = model.init(jax.random.key(0))
    result = language_model(model)(params, data, {}, None, False)
    logits = np.asarray(model.apply(params, data)["logits"], np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nats = -(np.take_along_axis(logs, data["targets"][..., None], -1)[..., 0] * data["weights"]).sum()
    tokens = data["weights"].sum()
    found = metrics.finish(result.metrics)
    assert found["loss"] == pytest.approx(nats / tokens, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-6)
    assert found["accuracy"] == pytest.approx(((logits.argmax(-1) == data["targets"]) * data["weights"]).sum() / tokens)
    assert (result.sum, result.weight) == result.metrics["loss"]


@pytest.mark.parametrize("chunk, shards, smoothing", [(1, 1, 0.0), (4, 1, 0.0), (2, 4, 0.1)])
def test_streaming_changes_no_number(chunk, shards, smoothing):
    model, data = routed(bigram()), batch_of()
    params = model.init(jax.random.key(0))

    def run(loss):
        def objective(params):
            result = loss(params, data, {}, None, True)
            return result.sum, result

        return jax.jit(jax.value_and_grad(objective, has_aux=True))(params)

    options = Task(label_smoothing=smoothing)
    direct = run(language_model(model, options))
    assert relative(run(language_model(model, options, chunk=chunk, shards=shards)), direct) < 2e-6


def test_labels_are_smoothed_in_training_alone():
    model, data = bigram(), batch_of()
    params = model.init(jax.random.key(0))
    smoothed, plain = language_model(model, Task(label_smoothing=0.1)), language_model(model)
    assert relative(smoothed(params, data, {}, None, False), plain(params, data, {}, None, False)) == 0
    found = smoothed(params, data, {}, None, True)
    logits = np.asarray(model.apply(params, data)["logits"], np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(logs, data["targets"][..., None], -1)[..., 0]
    wanted = -((0.9 * picked + 0.1 * logs.mean(-1)) * data["weights"]).sum()
    assert float(found.sum) == pytest.approx(wanted, rel=1e-6)
    assert set(found.metrics) == {"loss", "accuracy"}  # no perplexity follows from it


def test_streamed_logits_are_never_computed_whole():
    model, data = bigram(), batch_of()
    params = model.init(jax.random.key(0))

    def program(chunk):
        loss = language_model(model, chunk=chunk)
        total = jax.jit(lambda params: loss(params, data, {}, None, True).sum)
        return str(total.lower(params).compile().as_text())

    whole = f"f32[{B},{T},{V}]"
    assert whole in program(B * T)
    assert whole not in program(B)


def test_without_weights_every_target_counts_once():
    model, data = bigram(), batch_of()
    params = model.init(jax.random.key(0))
    ones = {**data, "weights": np.ones((B, T), np.float32)}
    del data["weights"]
    loss = language_model(model)
    assert relative(loss(params, data, {}, None, False), loss(params, ones, {}, None, False)) == 0
    assert loss(params, data, {}, None, False).weight == B * T


def test_a_models_own_losses_count_by_the_weight_of_their_rows():
    model, data = routed(bigram()), batch_of()
    params = model.init(jax.random.key(0))
    rows = model.apply(params, data).losses["balance"]
    result = language_model(model)(params, data, {}, None, True)
    wanted = float(np.sum(np.asarray(rows) * data["weights"].sum(1)))
    assert result.metrics["balance"][0] == pytest.approx(wanted, rel=1e-6)
    assert float(result.sum) == pytest.approx(float(result.metrics["loss"][0]) + wanted, rel=1e-6)
    less = {name: array[:-1] for name, array in data.items()}  # without the row of padding
    assert relative(language_model(model)(params, less, {}, None, True)[:4], result[:4]) < 1e-6


# Sequence to sequence.


def test_seq2seq_counts_what_the_decoder_mask_and_the_weights_leave():
    """A model with a decoder, teacher forced; the loss is that of the language model with those weights."""
    base, data = bigram(), batch_of()
    params = base.init(jax.random.key(0))

    def apply(params, batch, state=None, *, key=None, train=False):
        if "hidden" in batch:
            return base.apply(params, batch)
        shift = jnp.sum(batch["tokens"], axis=1, keepdims=True) % 3  # what it knows of the source
        return base.apply(params, {"tokens": (batch["decoder_tokens"] + shift) % V})

    model = base._replace(apply=apply)
    mask = np.arange(T) < np.random.default_rng(0).integers(1, T + 1, (B, 1))
    source = np.random.default_rng(1).integers(0, V, (B, 9)).astype(np.int32)
    decoder = {"decoder_tokens": data["tokens"], "targets": data["targets"], "decoder_mask": mask}
    shifted = {**data, "tokens": (data["tokens"] + source.sum(1, keepdims=True) % 3) % V}
    rows = np.asarray([2, 1, 1, 1, 1, 1, 1, 0], np.float32)
    for weights in (data["weights"], rows, None):
        given = {} if weights is None else {"weights": weights}
        every = np.ones((B, T)) if weights is None else weights if weights.ndim == 2 else weights[:, None]
        wanted = language_model(base)(params, {**shifted, "weights": every * mask}, {}, None, True)
        for chunk in (None, 4):
            loss = seq2seq(model, chunk=chunk)
            found = loss(params, {"tokens": source, **decoder, **given}, {}, None, True)
            assert relative(found, wanted) < 1e-6


# Masked language modelling.
MASK, VOCAB = 50, 50  # one past the vocabulary, so that nothing else can be it


def rows_of(rows=64, length=40, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (rows, length)).astype(np.int32)
    return tokens, np.arange(length) < rng.integers(0, length + 1, (rows, 1))


@functools.cache
def corrupting(fraction=0.15):
    return jax.jit(functools.partial(corrupt, mask_id=MASK, vocab_size=VOCAB, fraction=fraction))


@pytest.mark.parametrize("key", [None, 3])
@pytest.mark.parametrize("fraction", [0.15, 0.4])
def test_what_is_masked(key, fraction):
    tokens, real = rows_of(2000)
    found = corrupting(fraction)(tokens, real, None if key is None else jax.random.key(key))
    seen, chosen = map(np.asarray, found)
    assert seen.dtype == np.int32 and not np.any(chosen & ~real)
    assert np.all(seen[~chosen] == tokens[~chosen])
    assert np.all(chosen.any(1) == real.any(1)), "a row with tokens has targets"
    long = real.sum(1) > 25  # where the rule that at least one is chosen hardly matters
    assert chosen[long].sum() / real[long].sum() == pytest.approx(fraction, abs=0.01)
    now, before = seen[chosen], tokens[chosen]
    hidden, kept = np.mean(now == MASK), np.mean(now == before)
    assert hidden == pytest.approx(0.8, abs=0.02)
    assert kept == pytest.approx(0.1 + 0.1 / VOCAB, abs=0.015)
    other = np.bincount(now[(now != MASK) & (now != before)], minlength=VOCAB)
    assert len(other) == VOCAB and other.min() > 0, "any token may take its place"


def test_every_key_masks_anew_and_the_same_key_alike():
    tokens, real = rows_of()
    first, again, other = (corrupting()(tokens, real, jax.random.key(k)) for k in (0, 0, 1))
    assert relative(first, again) == 0
    assert np.any(np.asarray(first[1]) != np.asarray(other[1]))


def test_without_a_key_a_row_is_masked_alike_wherever_it_stands():
    tokens, real = rows_of()
    lengths = real.sum(1)
    seen, chosen = map(np.asarray, corrupting()(tokens, real, None))
    order, wide = np.random.default_rng(0).permutation(64)[:10], 47
    for left in (False, True):
        t, r = np.full((10, wide), 7, np.int32), np.zeros((10, wide), bool)
        places = [slice(s, s + n) for n in lengths[order] for s in [wide - n if left else 0]]
        for i, (row, place) in enumerate(zip(order, places, strict=True)):
            t[i, place], r[i, place] = tokens[row, : lengths[row]], True
        found, which = map(np.asarray, corrupting()(t, r, None))
        for i, (row, place) in enumerate(zip(order, places, strict=True)):
            assert np.array_equal(which[i, place], chosen[row, : lengths[row]])
            assert np.array_equal(found[i, place], seen[row, : lengths[row]])
    patterns = {row[:20].tobytes() for row in chosen[lengths >= 20]}
    assert len(patterns) > 0.8 * np.sum(lengths >= 20), "rows differ"


@pytest.mark.parametrize("where", ["mask", "segments", "weights"])
def test_masked_language_model_predicts_what_was_chosen(where):
    model = dataclasses.replace(GPT, attention=dataclasses.replace(GPT.attention, causal=False)).build()
    params = jax.jit(model.init)(jax.random.key(0))
    tokens, real = rows_of(rows=8, length=12)
    data: Any = {"tokens": tokens, where: real.astype({"mask": bool, "segments": np.int32}.get(where, np.float32))}
    data["targets"] = np.full_like(tokens, -1)  # those of a language model are not read
    loss = masked_language_model(model, mask_id=MASK, vocab_size=VOCAB, chunk=16)
    found = jax.jit(lambda p: loss(p, data, {}, None, False))(params)

    seen, chosen = map(np.asarray, corrupting()(tokens, real, None))
    given: Any = {**data, "tokens": seen}
    logits = np.asarray(jax.jit(model.apply)(params, given)["logits"], np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(logs, tokens[..., None], -1)[..., 0]
    assert float(found.sum) == pytest.approx(-picked[chosen].sum(), rel=1e-6)
    assert found.weight == chosen.sum()
    assert float(found.metrics["accuracy"][0]) == np.sum((logits.argmax(-1) == tokens)[chosen])


def test_masked_language_model_draws_from_the_key():
    """Of a model that gives what it sees: the loss of masked tokens is high, of others low."""

    def apply(params, batch, state=None, *, key=None, train=False):
        return Outputs({"logits": 10 * jax.nn.one_hot(batch["tokens"], VOCAB + 1)}, {"key": key})

    model = bigram()._replace(apply=apply)
    tokens, real = rows_of()
    loss = masked_language_model(model, Task(mask_fraction=0.3), mask_id=MASK, vocab_size=VOCAB)
    data = {"tokens": tokens, "mask": real}
    results = [loss({}, data, {}, jax.random.key(k), True) for k in (0, 0, 1)]
    assert results[0].sum == results[1].sum != results[2].sum
    assert 0.2 < results[0].weight / real.sum() < 0.4
    assert results[0].metrics["accuracy"][0] < 0.3 * results[0].weight
    of_model = jax.random.key_data(results[0].state["key"])
    assert not np.array_equal(of_model, jax.random.key_data(jax.random.key(0)))
