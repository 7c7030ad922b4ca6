"""Encoders of text and of images: bert, vit, dinov2."""

import numpy as np
import pytest

from tests.oracles.harness import Case, check, pictures, rows, text

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
BERT = {**SIZES, "vocab_size": 67, "max_position_embeddings": 64}
VIT = {**SIZES, "image_size": 12, "patch_size": 4}
DINOV2 = {key: value for key, value in VIT.items() if key != "intermediate_size"}

TEXT = [
    Case("plain", "bert", "BertForMaskedLM", BERT, gradients=True),
    Case("relu, odd width", "bert", "BertForMaskedLM", {**BERT, "hidden_act": "relu", "intermediate_size": 37}),
    Case("pooled", "bert", "BertModel", BERT),
    Case("bfloat16", "bert", "BertModel", BERT, dtype="bfloat16"),
    Case("classes", "bert", "BertForSequenceClassification", {**BERT, "num_labels": 5}, gradients=True),
    Case("classes of tokens", "bert", "BertForTokenClassification", {**BERT, "num_labels": 5}),
]
IMAGES = [
    Case("plain", "vit", "ViTForImageClassification", {**VIT, "num_labels": 5}, gradients=True),
    Case("no biases, grey", "vit", "ViTForImageClassification", {**VIT, "num_channels": 1, "qkv_bias": False}),
    Case("pooled, bfloat16", "vit", "ViTModel", VIT, dtype="bfloat16"),
    Case(
        *("plain", "dinov2", "Dinov2ForImageClassification"),
        {**DINOV2, "use_mask_token": False, "num_labels": 5},
        gradients=True,
    ),
    Case(
        *("gated, grey, no biases", "dinov2", "Dinov2ForImageClassification"),
        {**DINOV2, "num_channels": 1, "use_swiglu_ffn": True, "qkv_bias": False, "layerscale_value": 0.1},
    ),
    Case("masked", "dinov2", "Dinov2Model", {**DINOV2, "mlp_ratio": 2}),
    Case("masked, gated, bfloat16", "dinov2", "Dinov2Model", {**DINOV2, "use_swiglu_ffn": True}, dtype="bfloat16"),
]


@pytest.mark.parametrize("case", rows(TEXT))
def test_text(case, tmp_path):
    batch = text(67)
    if case.family == "bert":
        batch["types"] = np.random.default_rng(1).integers(0, 2, batch["tokens"].shape).astype(np.int32)
    check(case, batch, tmp_path)


@pytest.mark.parametrize("case", rows(IMAGES))
def test_images(case, tmp_path):
    batch = pictures(12, case.options.get("num_channels", 3))
    if "masked" in case.name:
        batch["masked"] = np.random.default_rng(1).random((2, 9)) < 0.4
    check(case, batch, tmp_path)
