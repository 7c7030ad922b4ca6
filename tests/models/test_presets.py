"""Named presets have the number of parameters that was published for them."""

import math

import jax
import pytest

from jaxmodel.models.presets import PRESETS

PUBLISHED = {  # distinct parameters: a tied head counts once
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt3-175b": 174_604_259_328,
    "llama3-8b": 8_030_261_248,
    # With the head of masked tokens, without BERT's pooler and next-sentence head.
    "bert-base": 109_514_298,
    "bert-large": 335_174_458,
    "roberta-base": 124_697_433,
    "roberta-large": 355_412_057,
    "distilbert-base": 66_985_530,
    "minilm-l6": 22_565_376,  # without the pooler on disk, which its mean does not use
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_their_published_sizes(name):
    params = jax.eval_shape(PRESETS[name].build().init, jax.random.key(0))
    assert sum(math.prod(each.shape) for each in jax.tree.leaves(params)) == PUBLISHED[name]
