"""Generation equals a naive loop, whatever shares the batch; draws follow the seed and the filters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel import compiling, weights
from jaxmodel.config import replace
from jaxmodel.errors import InputError
from jaxmodel.generate import Sampling, _compiled, generate, likeliest, prepared
from jaxmodel.model import Model, Outputs, chain, from_function, frozen, sharded
from jaxmodel.nn.stack import unstack
from jaxmodel.sharding import make_mesh
from jaxmodel.weights import Streamed, contract, lora, quantize
from tests.bigram import V, bigram
from tests.contract import CAUSAL, VOCAB, built, params_of, relative, same

PROMPTS = [[3], [1, 2, 3, 4, 5, 6, 7, 8, 9], [7, 7, 7, 7]]  # the second is longer than the pattern's window
NEW = 8


def continued(name: str, prompts: Any = PROMPTS, **options: Any) -> list[list[int]]:
    options = {"max_new_tokens": NEW} | options
    return generate(built(name), params_of(name), prompts, **options)


@functools.cache
def forward(name: str):
    return jax.jit(lambda params, tokens: built(name).apply(params, {"tokens": tokens})["logits"])


def naive(name: str, prompt: list[int], new: int) -> list[int]:
    """Greedy: the whole text read anew for every token, alone in its batch, no cache, no mask."""
    text, limit = list(prompt), CAUSAL[name].max_length
    for _ in range(new):
        tokens = np.array([text + [0] * (limit - len(text))])  # nobody sees what is behind
        text.append(int(np.argmax(forward(name)(params_of(name), tokens)[0, len(text) - 1])))
    return text[len(prompt) :]


@pytest.mark.parametrize("name", CAUSAL)
def test_greedy_equals_a_naive_loop(name):
    alone = [naive(name, prompt, NEW) for prompt in PROMPTS]
    assert continued(name) == alone
    assert len({tuple(text) for text in alone}) == len(PROMPTS)  # prompts matter


def test_a_model_without_a_cache_reads_all_anew():
    gpt, params = built("gpt"), params_of("gpt")

    def apply(params, batch):
        assert set(batch) == {"tokens"}
        return {"logits": gpt.apply(params, batch)["logits"]}

    plain = from_function(gpt.init, apply, layout=gpt.layout)
    assert generate(plain, params, PROMPTS, max_new_tokens=NEW) == continued("gpt")


def test_a_model_without_a_cache_may_keep_statistics():
    plain = bigram()

    def apply(params, batch, state=None, *, key=None, train=False):
        assert state is not None
        return Outputs({"logits": state["gain"] * plain.apply(params, batch)["logits"]}, state)

    def start(batch_size=None, length=None):
        return {"gain": -jnp.ones(())}

    params = plain.init(jax.random.key(0))
    negated = params | {"head": -params["head"], "bias": -params["bias"]}
    model = plain._replace(apply=apply, start=start)
    found = generate(model, params, [[1], [2, 3]], max_new_tokens=4)
    assert found == generate(plain, negated, [[1], [2, 3]], max_new_tokens=4)
    assert found != generate(plain, params, [[1], [2, 3]], max_new_tokens=4)


def test_wrapped_unstacked_and_adapted_models_generate_alike():
    gpt, params, expected = built("gpt"), params_of("gpt"), continued("gpt")
    adapted = lora(params, gpt.layout, rank=2, key=jax.random.key(1))
    for model, packed in (
        (gpt, unstack(params, gpt.start(1, 1))),
        (frozen(gpt), params),
        (chain(gpt), {"0": params}),
        (gpt, adapted),
    ):
        assert generate(model, packed, PROMPTS, max_new_tokens=NEW) == expected


@pytest.mark.parametrize(
    "change", [lambda p, _: p, quantize, lambda *of: lora(*of, rank=2, key=jax.random.key(1), select="*")]
)
def test_params_may_be_prepared_once(change):
    config = replace(CAUSAL["gpt"], {"tied": True})
    gpt = config.build()
    params = change(gpt.init(jax.random.key(0)), gpt.layout)
    ready = prepared(gpt, params)
    assert same(prepared(gpt, ready), ready)
    assert Streamed in map(type, (ready["stem"]["tokens"], getattr(ready["stem"]["tokens"], "base", None)))
    options = {"max_new_tokens": NEW, "temperature": 1.5, "seed": 2}
    found = generate(gpt, ready, PROMPTS, **options)
    assert found == generate(gpt, params, PROMPTS, **options)
    whole = jnp.asarray([PROMPTS[1] + found[1]])
    expected, got = (gpt.apply(each, {"tokens": whole})["logits"] for each in (params, ready))
    assert relative(got, expected) < 1e-5


def test_a_loop_that_streams_weights_streams_its_caches(monkeypatch):
    """Full caches, and as long as the loop runs: products of one query are all streamed."""
    asked = []

    def spied(x, values, dtype):
        asked.append(x.shape)
        return contract(x, values, dtype)

    gpt = replace(CAUSAL["gpt"], {"execution.scan": False}).build()
    monkeypatch.setattr(weights, "streamed_matmul", spied)
    generate(gpt, gpt.init(jax.random.key(0)), PROMPTS, max_new_tokens=5)
    single = [shape for shape in asked if len(shape) == 5 and shape[3] == 1]  # [B,G,R,T,·]
    assert len(single) == 2 * gpt.config.num_layers, asked


def test_a_table_that_no_head_reads_is_left_as_it_is():
    model = replace(CAUSAL["gpt"], {"tied": False}).build()
    params = model.init(jax.random.key(0))
    assert prepared(model, params)["stem"]["tokens"] is params["stem"]["tokens"]


def test_an_xla_without_the_option_decodes_as_it_trains(monkeypatch):
    monkeypatch.setattr(compiling, "STREAMING", {"xla_cpu_gone": ""})
    compiling.streams.cache_clear()
    try:
        assert not compiling.streams()
        assert compiling.decoding_options() == compiling.compiler_options()
    finally:
        monkeypatch.undo()
        compiling.streams.cache_clear()
    assert compiling.streams()


def test_a_batch_may_be_arrays_padded_anyhow():
    tokens = np.array([[0, 0, 7, 7, 7, 7], [1, 2, 0, 0, 0, 3]])
    mask = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 0, 1]], bool)
    found = continued("gpt", {"tokens": tokens, "mask": mask})
    assert found == continued("gpt", [[7, 7, 7, 7], np.array([1, 2, 3])])
    assert continued("gpt", {"tokens": tokens}) == continued("gpt", tokens.tolist())


def test_an_empty_prompt_is_the_separator():
    assert continued("gpt", [[], [5]], separator=9) == continued("gpt", [[9], [5]])
    with pytest.raises(InputError, match="prompt 1 is empty, and no separator is known: give it a token"):
        continued("gpt", [[5], []])


@pytest.mark.parametrize("name", ["gpt", "pattern"])
def test_a_text_can_fill_the_model_to_its_last_position(name):
    prompt, limit = list(range(9)), CAUSAL[name].max_length
    text = continued(name, [prompt], max_new_tokens=limit - 9)[0]
    assert len(text) == limit - 9
    assert text == naive(name, prompt, limit - 9)


DRAWS = {
    "temperature": {"temperature": 0.8},
    "top_k": {"temperature": 1.5, "top_k": 9},
    "top_p": {"temperature": 1.5, "top_p": 0.8},
    "both": {"temperature": 1.5, "top_k": 30, "top_p": 0.9},
}


@pytest.mark.parametrize("options", DRAWS.values(), ids=DRAWS)
def test_draws_follow_the_seed(options):
    found = continued("gpt", seed=3, **options)
    assert continued("gpt", seed=3, **options) == found
    assert continued("gpt", seed=4, **options) != found


def test_draws_follow_the_row_and_its_positions_alone():
    options = {"seed": 3, "temperature": 1.5, "top_k": 30, "top_p": 0.9}
    together = continued("gpt", **options)
    # Other rows, or none: the same text.
    assert continued("gpt", [[50], [51] * 17, PROMPTS[2]], **options)[2] == together[2]
    assert continued("gpt", PROMPTS[:1], **options)[0] == together[0]
    # One prompt twice is two samples.
    same = continued("gpt", [PROMPTS[0]] * 3, **options)
    assert same[0] == together[0] and same[0] != same[1] != same[2]
    # In two calls, as in one.
    half = [text[:4] for text in together]
    longer = [prompt + text for prompt, text in zip(PROMPTS, half, strict=True)]
    rest = continued("gpt", longer, max_new_tokens=NEW - 4, **options)
    assert [a + b for a, b in zip(half, rest, strict=True)] == together


def test_draws_have_the_frequencies_of_the_softmax():
    model, rows = bigram(), 4000
    params = model.init(jax.random.key(0))
    logits = np.asarray(model.apply(params, {"tokens": jnp.array([[4]])})["logits"][0, 0], np.float64)
    found = generate(model, params, [[4]] * rows, max_new_tokens=1, temperature=0.7)
    frequencies = np.bincount(np.array(found)[:, 0], minlength=V) / rows
    shares = np.exp(logits / 0.7) / np.exp(logits / 0.7).sum()
    assert np.abs(frequencies - shares).max() < 4 * (0.25 / rows) ** 0.5  # four standard deviations at most


def test_the_coldest_draws_and_the_narrowest_are_greedy():
    greedy = continued("gpt")
    for options in (
        {"temperature": 1e-30},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_p": 1e-6},
        {"top_k": 5, "top_p": 0.5},
    ):
        assert continued("gpt", **options) == greedy


def test_all_tokens_are_no_filter():
    plain = continued("gpt", temperature=2.0)
    assert continued("gpt", temperature=2.0, top_k=VOCAB + 5) == plain
    assert continued("gpt", temperature=2.0, top_p=1.0) == plain


def counting(read: list[int]) -> Model:
    """Says after every token the next number; `read` grows with each look at the text."""

    def apply(params, batch):
        jax.debug.callback(lambda: read.append(1))
        return {"logits": jax.nn.one_hot((batch["tokens"] + 1) % V, V)}

    return from_function(lambda key: {}, apply, layout={})


def test_a_stop_token_ends_its_row_and_is_cut():
    model, prompts = counting([]), [[1], [4], [10, 7]]
    counts = [[2, 3, 4, 5, 6], [5, 6, 7, 8, 9], [8, 9, 10, 0, 1]]
    assert generate(model, {}, prompts, max_new_tokens=5) == counts
    assert generate(model, {}, prompts, max_new_tokens=5, stop=[5, 0]) == [[2, 3, 4], [], [8, 9, 10]]
    assert generate(model, {}, prompts, max_new_tokens=5, stop=[V + 1]) == counts
    whole = continued("gpt")
    assert continued("gpt", stop=whole[1][:1])[1] == []  # with a cache, too


def test_the_loop_ends_when_every_row_has_stopped():
    read = []
    assert generate(counting(read), {}, [[1], [3]], max_new_tokens=100, stop=[6]) == [[2, 3, 4, 5], [4, 5]]
    jax.effects_barrier()
    assert len(read) == 5


def test_calls_of_equal_buckets_compile_once():
    run = _compiled(built("gpt").apply, built("gpt").start, NEW, Sampling(True, None, False), True, True)
    continued("gpt", [[1] * 5] * 5)
    before = run._cache_size()  # type: ignore[attr-defined]
    for length in (2, 3, 16, 17):
        continued("gpt", [[1] * length] * 5, stop=[63] * (length % 8))
    assert run._cache_size() == before  # type: ignore[attr-defined]


def slow_filter(logits: np.ndarray, top_k: int | None, top_p: float | None) -> np.ndarray:
    """One row, token by token in order of probability."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[: top_k or len(logits)]
    shares = np.exp(logits[order] - logits.max())
    shares /= shares.sum()
    kept, total = [], 0.0
    for token, share in zip(order, shares, strict=True):
        if top_p is not None and kept and total >= top_p:
            break
        kept.append(token)
        total += share
    return np.array([x if i in kept else -np.inf for i, x in enumerate(logits)], np.float32)


@pytest.mark.parametrize("top_p", [None, 1e-9, 0.3, 0.9])
@pytest.mark.parametrize("top_k", [None, 1, 5, 40, 1000])
def test_filters_equal_a_slow_reference(top_k, top_p):
    logits = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32) * [[0.1], [1.0], [10.0]]
    logits = logits.astype(np.float32)
    expected = np.stack([slow_filter(row, top_k, top_p) for row in logits])
    assert np.array_equal(likeliest(jnp.asarray(logits), top_k, top_p), expected)


def test_ties_stay_together():
    logits = jnp.array([1.0, 3.0, 3.0, 0.0, 1.0])
    assert np.isfinite(likeliest(logits, top_k=1)).tolist() == [False, True, True, False, False]
    assert np.isfinite(likeliest(logits, top_p=0.95)).tolist() == [True, True, True, False, True]


WIDE = replace(CAUSAL["gpt"], {"num_layers": 1, "embed_dim": 128, "mlp.dim": 512}).build()
ROWS, LONGEST = 2, 9


def made(shapes):
    """Weights of these shapes: nothing to compile."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: (5 * rng.normal(size=s.shape)).astype(s.dtype), shapes)


def compiled(params, hoist: bool):
    """The loop for these params, and how many bytes it needs beside them and its cache."""
    run = _compiled(WIDE.apply, WIDE.start, NEW, Sampling(True, None, False), True, hoist)
    rest = (np.ones((ROWS, LONGEST), np.int32), np.array([9, 4], np.int32), jax.random.key(0), np.full(8, -1))
    rest = (*rest, np.float32(1), np.float32(1), {})
    loop = run.lower(params, *rest).compile()  # type: ignore[attr-defined]
    cache = sum(array.nbytes for array in jax.tree.leaves(WIDE.start(ROWS, LONGEST + NEW - 1)))
    return loop(params, *rest), loop.memory_analysis().temp_size_in_bytes - cache


def test_the_loop_copies_neither_weights_nor_cache():
    params = made(jax.eval_shape(lambda key: unstack(WIDE.init(key), WIDE.start(1, 1)), jax.random.key(0)))
    one_block = sum(array.nbytes for array in jax.tree.leaves(params["stack"]["0"]["block"][0]))
    for hoist in (True, False):
        assert compiled(params, hoist)[1] < 0.2 * one_block


def test_quantized_weights_may_stay_small_in_the_loop():
    """Off the CPU, XLA is kept from making every weight dense before the loop."""

    def init(key):
        return unstack(quantize(WIDE.init(key), WIDE.layout), WIDE.start(1, 1))

    shapes = jax.eval_shape(init, jax.random.key(0))
    (dense, much), (small, little) = compiled(made(shapes), True), compiled(made(shapes), False)
    assert np.array_equal(dense, small)
    assert little < much


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
        ([[1]], {"temperature": -0.1}, "temperature=-0.1: must be at least 0; 0 takes the likeliest token"),
        ([[1]], {"temperature": float("nan")}, "temperature=nan: must be at least 0"),
        ([[1]], {"top_k": 0}, "top_k=0: must be at least 1, or none for all tokens"),
        ([[1]], {"top_p": 0.0}, "top_p=0.0: must be above 0 and at most 1, or none for all tokens"),
        ([[1]], {"top_p": 1.1}, "top_p=1.1: must be above 0 and at most 1"),
        ([], {}, "there is no prompt: give at least one"),
        ([[1], [1] * 25], {}, "prompt 1 has 25 tokens; with max_new_tokens=8 that is more than the model's "
         "max_length=32: ask for 7 at most, or shorten the prompt"),
        ([[1] * 32], {}, "max_length=32: shorten the prompt"),
        ([[1], [2, 64]], {}, "prompt 1 holds the token 64, outside the model's vocabulary of 64: encode it"),
        ([[-1]], {}, "prompt 0 holds the token -1"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(prompts, options, words):
    with pytest.raises(InputError) as error:
        continued("gpt", prompts, **options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_limits_are_found_inside_wrapped_models():
    wrapped = frozen(chain(built("gpt")))
    with pytest.raises(InputError, match="max_length=32"):
        generate(wrapped, {"0": params_of("gpt")}, [[1] * 32], max_new_tokens=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "axes"),
    # Experts share out whole sequences: their batch must divide.
    [("gpt", {"fsdp": 2, "tensor": 4}), ("pattern", {"fsdp": 2, "tensor": 4}), ("mixture", {"tensor": 8})],
)
def test_a_mesh_changes_no_text(name, axes):
    model = sharded(built(name), make_mesh(axes))
    params = jax.jit(model.init)(jax.random.key(0))
    assert len(jax.tree.leaves(params)[-1].sharding.device_set) == 8
    assert generate(model, params, PROMPTS, max_new_tokens=NEW) == continued(name)
