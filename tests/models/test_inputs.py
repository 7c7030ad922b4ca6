"""A wrong batch is one line that names the entry, what it is and what is wanted; a right one passes everywhere."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.errors import InputError
from jaxmodel.model import chain, frozen
from tests.contract import DIM, GPT, batch_of, built, params_of, same

TOKENS = np.zeros((2, 16), np.int32)
IMAGES = np.zeros((2, 8, 8, 1), np.float32)
READS = "the model reads int32[batch, length]"

WRONG = [
    ("gpt", {}, "tokens is missing: the model reads tokens int32[batch, length], the batch holds nothing"),
    ("gpt", {"token": TOKENS, "mask": TOKENS > 0}, "the batch holds token, mask"),
    ("gpt", {"tokens": None}, "tokens is missing"),
    ("gpt", {"tokens": TOKENS[0]}, f"tokens is int32[16], {READS}: change its shape"),
    ("gpt", {"tokens": TOKENS[None]}, f"tokens is int32[1, 2, 16], {READS}: change its shape"),
    ("gpt", {"tokens": TOKENS + 0.5}, f"tokens is float64[2, 16], {READS}: change its dtype"),
    ("gpt", {"tokens": TOKENS > 0}, f"tokens is bool[2, 16], {READS}: change its dtype"),
    ("gpt", {"tokens": [[1, 2]]}, f"tokens is a list, {READS}: give it as an array"),
    (
        "gpt",
        {"tokens": TOKENS, "mask": TOKENS},
        "mask is int32[2, 16], the model reads bool[batch, length]: change its dtype",
    ),
    (
        "gpt",
        {"tokens": TOKENS, "mask": TOKENS[:, 1:] > 0},
        "mask is bool[2, 15], and tokens has length 16: both have the same length, make them equal",
    ),
    ("gpt", {"tokens": TOKENS, "positions": TOKENS[:1]}, "positions is int32[1, 16], and tokens has batch 2"),
    ("gpt", {"tokens": TOKENS, "segments": TOKENS[0]}, f"segments is int32[16], {READS}"),
    ("gpt", TOKENS, 'a batch is a ndarray: give arrays by name, as in {"tokens": int32[batch, length]}'),
    (
        "conv",
        {"tokens": TOKENS},
        "images is missing: the model reads images float32[batch, height, width, 1], the batch holds tokens",
    ),
    ("conv", {"images": IMAGES[0]}, "images is float32[8, 8, 1], the model reads float32[batch, height"),
    ("conv", {"images": IMAGES.repeat(3, -1)}, "images is float32[2, 8, 8, 3], the model reads float32[batch,"),
    ("conv", {"images": np.uint8(IMAGES)}, "images is uint8[2, 8, 8, 1], the model reads float32[batch, "),
]


@pytest.mark.parametrize(("name", "batch", "words"), WRONG, ids=[words[:40] for *_, words in WRONG])
def test_a_wrong_batch_is_one_line(name, batch, words):
    with pytest.raises(InputError, match=re.escape(words)) as error:
        built(name).apply(params_of(name), batch, built(name).start() or None)
    assert "\n" not in str(error.value)


def test_a_wrong_batch_is_found_while_tracing():
    gpt, params = built("gpt"), params_of("gpt")
    with pytest.raises(InputError, match="tokens is float32"):
        jax.jit(gpt.apply)(params, {"tokens": jnp.ones((2, 3))})
    with pytest.raises(InputError, match=r"tokens is int32\[16\], the model reads"):
        jax.vmap(lambda row: gpt.apply(params, {"tokens": row})["logits"])(TOKENS)
    with pytest.raises(InputError, match=r"mask is bool\[2, 15\], and tokens has length 16"):
        jax.grad(lambda p: gpt.apply(p, {"tokens": TOKENS, "mask": TOKENS[:, 1:] > 0})["logits"].sum())(params)


def test_a_wrong_batch_of_a_composition():
    model = chain(base=frozen(built("gpt")), other=built("gpt"))
    params = {"base": params_of("gpt"), "other": params_of("gpt")}
    with pytest.raises(InputError, match=r"^tokens is missing: .*the batch holds mask$"):
        model.apply(params, {"mask": TOKENS > 0})


def test_what_is_right_passes():
    gpt, params = built("gpt"), params_of("gpt")
    tokens = jnp.asarray(batch_of("gpt", rows=2)["tokens"])
    want = jax.jit(gpt.apply)(params, {"tokens": tokens})
    for batch in (
        {"tokens": np.asarray(tokens, np.int64), "mask": None, "targets": "not read"},
        {"tokens": tokens.astype(jnp.uint8), "mask": np.ones((2, 16), bool)},
    ):
        assert same(gpt.apply(params, batch)["logits"], gpt.apply(params, {"tokens": tokens})["logits"])
    head = jax.jit(gpt.apply)(params, {"hidden": want["hidden"]})["logits"]
    assert head.shape == (2, 16, GPT.vocab_size) and want["hidden"].shape[-1] == DIM
    alone = jax.vmap(lambda row: gpt.apply(params, {"tokens": row[None]})["logits"][0])(tokens)
    assert alone.shape == head.shape
    both = chain(base=gpt, other=gpt)
    found = both.apply({"base": params, "other": params}, {"tokens": tokens, "mask": tokens >= 0})
    assert found["logits"].shape == head.shape
    conv, images = built("conv"), jnp.zeros((2, 6, 10, 1), jnp.bfloat16)
    assert conv.apply(params_of("conv"), {"images": images}, conv.start())["logits"].shape == (2, 10)
