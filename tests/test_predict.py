"""Prediction: any model over arrays, in batches that change nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.config import replace
from jaxmodel.errors import InputError
from jaxmodel.model import chain, from_function
from jaxmodel.predict import predict
from tests.contract import CAUSAL, VOCAB, batch_of, built, params_of, relative, same

TOKENS = np.random.default_rng(0).integers(0, VOCAB, (11, 9))


@pytest.mark.parametrize("batch_size", [1, 4, 11, 100])
def test_batches_change_nothing(batch_size):
    found = predict(built("gpt"), params_of("gpt"), {"tokens": TOKENS}, batch_size=batch_size)
    expected = built("gpt").apply(params_of("gpt"), {"tokens": jnp.asarray(TOKENS)})
    assert set(found) == {"logits", "hidden"}
    assert relative(found, expected.values) < 1e-6


def test_files_hold_no_bfloat16():
    model = replace(CAUSAL["gpt"], {"execution.dtype": "bfloat16"}).build()
    found = predict(model, params_of("gpt"), {"tokens": TOKENS})
    assert {name: value.dtype for name, value in found.items()} == {"logits": np.float32, "hidden": np.float32}


def test_a_chain_reads_what_its_first_model_does():
    head = from_function(lambda key: {}, lambda _, batch: {"best": jnp.argmax(batch["logits"], -1)}, layout={})
    model = chain(built("gpt"), head)
    tokens = TOKENS
    found = predict(model, {"0": params_of("gpt"), "1": {}}, {"tokens": tokens}, values=("best",))
    assert same(found["best"], predict(built("gpt"), params_of("gpt"), {"tokens": tokens})["logits"].argmax(-1))
    with pytest.raises(InputError, match="the model does not read token: it reads tokens, segments"):
        predict(model, {}, {"token": tokens})


def test_outputs_may_be_processed():
    def best(out):
        return {"prediction": jnp.argmax(out["logits"], -1), "top": jnp.max(out["logits"], -1)}

    arrays = {"tokens": TOKENS}
    logits = predict(built("gpt"), params_of("gpt"), arrays)["logits"]
    found = predict(built("gpt"), params_of("gpt"), arrays, batch_size=4, postprocess=best)
    assert set(found) == {"prediction", "top"}
    assert same(found["prediction"], logits.argmax(-1)) and relative(found["top"], logits.max(-1)) < 1e-6
    one = predict(built("gpt"), params_of("gpt"), arrays, values=("top",), postprocess=best)
    assert set(one) == {"top"}
    with pytest.raises(InputError, match="the model gives no value logits: choose from prediction, top"):
        predict(built("gpt"), params_of("gpt"), arrays, values=("logits",), postprocess=best)


def test_a_model_made_from_code_is_asked_what_it_needs():
    arrays = {"features": batch_of("function")["features"]}
    found = predict(built("function"), params_of("function"), arrays, batch_size=3)
    expected = built("function").apply(params_of("function"), arrays)
    assert relative(found["logits"], expected["logits"]) < 1e-6
    with pytest.raises(InputError, match="features is missing: the model needs it beside feature float32"):
        predict(built("function"), params_of("function"), {"feature": arrays["features"]})
    with pytest.raises(InputError, match=r"^there are no arrays"):
        predict(built("function"), params_of("function"), {})
