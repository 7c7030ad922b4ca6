"""Language models that see: llava."""

import pytest

from tests.oracles.harness import Case, check, pictures, rows, text

IMAGE_TOKEN = 66
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT = {**SIZES, "model_type": "llama", "vocab_size": 67, "max_position_embeddings": 96, "num_key_value_heads": 2}
IMAGE = {**SIZES, "hidden_size": 24, "image_size": 12, "patch_size": 4, "model_type": "clip_vision_model"}
LLAVA = {"text_config": TEXT, "vision_config": IMAGE, "image_token_index": IMAGE_TOKEN}
LENGTHS = (26, 20, 14)
TIED = {**LLAVA, "text_config": {**TEXT, "tie_word_embeddings": True}}

CASES = [
    Case("plain", "llava", "LlavaForConditionalGeneration", LLAVA, lengths=LENGTHS, generates=True),
    Case(
        "class token, first block, tied, no biases",
        "llava",
        "LlavaForConditionalGeneration",
        {
            **TIED,
            **{"vision_feature_layer": 1, "vision_feature_select_strategy": "full"},
            **{"multimodal_projector_bias": False, "projector_hidden_act": "relu"},
        },
        lengths=LENGTHS,
        generates=True,
    ),
    Case(
        "last block, bfloat16",
        "llava",
        "LlavaForConditionalGeneration",
        {**LLAVA, "vision_feature_layer": -1},
        "bfloat16",
        lengths=LENGTHS,
    ),
]


def batch_of(case):
    """A text with two images, one without, and one with one."""
    tokens = text(IMAGE_TOKEN, length=26)["tokens"]
    size = 10 if case.options.get("vision_feature_select_strategy") == "full" else 9
    for row, begin in ((0, 1), (0, 2 + size), (2, 2)):
        tokens[row, begin : begin + size] = IMAGE_TOKEN
    return {"tokens": tokens, **pictures(12, rows=3)}


@pytest.mark.parametrize("case", rows(CASES))
def test_llava(case, tmp_path):
    check(case, batch_of(case), tmp_path)
