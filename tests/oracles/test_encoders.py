"""Encoders of text and of images: bert, vit."""

import numpy as np
import pytest

from tests.oracles.harness import Case, check, pictures, rows, text

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
BERT = {**SIZES, "vocab_size": 67, "max_position_embeddings": 64}
VIT = {**SIZES, "image_size": 12, "patch_size": 4}

TEXT = [
    Case("plain", "bert", "BertForMaskedLM", BERT, gradients=True),
    Case(
        "relu, odd width", "bert", "BertForMaskedLM", {**BERT, "hidden_act": "relu", "intermediate_size": 37}
    ),
    Case("pooled", "bert", "BertModel", BERT),
    Case("bfloat16", "bert", "BertModel", BERT, dtype="bfloat16"),
    Case("classes", "bert", "BertForSequenceClassification", {**BERT, "num_labels": 5}, gradients=True),
    Case("classes of tokens", "bert", "BertForTokenClassification", {**BERT, "num_labels": 5}),
]
IMAGES = [
    Case("plain", "vit", "ViTForImageClassification", {**VIT, "num_labels": 5}, gradients=True),
    Case(
        "no biases, grey", "vit", "ViTForImageClassification", {**VIT, "num_channels": 1, "qkv_bias": False}
    ),
    Case("pooled, bfloat16", "vit", "ViTModel", VIT, dtype="bfloat16"),
]


@pytest.mark.parametrize("case", rows(TEXT))
def test_text(case, tmp_path):
    batch = text(67)
    if case.family == "bert":
        batch["types"] = np.random.default_rng(1).integers(0, 2, batch["tokens"].shape).astype(np.int32)
    check(case, batch, tmp_path)


@pytest.mark.parametrize("case", rows(IMAGES))
def test_images(case, tmp_path):
    check(case, pictures(12, case.options.get("num_channels", 3)), tmp_path)
