"""Towers of images and of text: clip, siglip."""

import jax
import numpy as np
import pytest

from jaxmodel.loading import load
from jaxmodel.options import Task
from jaxmodel.tasks import contrastive
from tests.oracles.harness import Case, check, inputs, made, near, pictures, rows, text

END = 66  # ends a text, and is of all ids the highest
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT = {**SIZES, "vocab_size": 67, "max_position_embeddings": 16, "eos_token_id": END, "projection_dim": 20}
IMAGE = {**SIZES, "hidden_size": 24, "num_hidden_layers": 2, "image_size": 12, "patch_size": 4, "projection_dim": 20}
CLIP = {"text_config": TEXT, "vision_config": IMAGE, "projection_dim": 20}
OLD = {
    "text_config": {**TEXT, "eos_token_id": 2, "hidden_act": "gelu"},
    "vision_config": {**IMAGE, "hidden_act": "gelu"},
}

CLIPS = [
    Case("plain", "clip", "CLIPModel", CLIP, gradients=True),
    Case("exact gelu, ends at the highest id, odd projection", "clip", "CLIPModel", {**OLD, "projection_dim": 7}),
    Case("grey, bfloat16", "clip", "CLIPModel", {**CLIP, "vision_config": {**IMAGE, "num_channels": 1}}, "bfloat16"),
    Case("plain", "clip_text_model", "CLIPTextModel", TEXT),
    Case("no end", "clip_text_model", "CLIPTextModel", {**TEXT, "eos_token_id": 65}),
    Case("projected", "clip_text_model", "CLIPTextModelWithProjection", TEXT),
    Case("plain", "clip_vision_model", "CLIPVisionModel", IMAGE),
    Case("projected", "clip_vision_model", "CLIPVisionModelWithProjection", {**IMAGE, "hidden_act": "gelu"}),
]
SIGTEXT = {**{k: v for k, v in TEXT.items() if k != "projection_dim"}, "projection_size": 24}
SIGIMAGE = {k: v for k, v in IMAGE.items() if k != "projection_dim"}
SIGLIP = {"text_config": SIGTEXT, "vision_config": SIGIMAGE}
SIGLIPS = [
    Case("plain", "siglip", "SiglipModel", SIGLIP, gradients=True),
    Case(
        "exact gelu, odd widths",
        "siglip",
        "SiglipModel",
        {
            "text_config": {**SIGTEXT, "hidden_act": "gelu", "intermediate_size": 37},
            "vision_config": {**SIGIMAGE, "num_hidden_layers": 3, "intermediate_size": 29},
        },
    ),
    Case(
        "grey, bfloat16",
        "siglip",
        "SiglipModel",
        {**SIGLIP, "vision_config": {**SIGIMAGE, "num_channels": 1}},
        "bfloat16",
    ),
    Case("plain", "siglip_text_model", "SiglipTextModel", {**SIGTEXT, "projection_size": 7}),
    Case("plain", "siglip_vision_model", "SiglipVisionModel", SIGIMAGE),
    Case("no pool", "siglip_vision_model", "SiglipVisionModel", {**SIGIMAGE, "vision_use_head": False}),
]


def batch_of(case):
    """Images and texts, as many of each, which end where the rows of `case.lengths` do."""
    found = {}
    image = case.options.get("vision_config", case.options)
    if "image_size" in image:
        found |= pictures(12, image.get("num_channels", 3), rows=3)
    if "text_config" in case.options or "vocab_size" in case.options:
        found |= text(65)
        found["tokens"][np.arange(3), np.array(case.lengths) - 1] = END
    return found


@pytest.mark.parametrize("case", rows(CLIPS + SIGLIPS))
def test_towers(case, tmp_path):
    check(case, batch_of(case), tmp_path)


@pytest.mark.parametrize(
    ("case", "pairs"), [(CLIPS[0], "softmax"), (SIGLIPS[0], "sigmoid")], ids=["softmax", "sigmoid"]
)
def test_the_loss_and_its_gradients(case, pairs, tmp_path):
    theirs, batch = made(case), batch_of(case)
    theirs.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    expected = theirs(**inputs(batch), return_loss=True).loss
    expected.backward()
    task = contrastive(loaded.model, Task(pairs=pairs))

    def loss(params):
        result = task(params, batch, {}, None, True)
        return result.sum / result.weight

    found, gradients = jax.jit(jax.value_and_grad(loss))(loaded.params)
    assert float(found) == pytest.approx(expected.item(), rel=1e-6)
    near(case, theirs, loaded, gradients, tmp_path)
