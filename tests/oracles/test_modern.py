"""Encoders of text after BERT: modernbert, electra."""

import numpy as np
import pytest

from tests.oracles.harness import Case, check, rows, text
from tests.oracles.test_decoders import rope

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
MODERN = {**SIZES, "vocab_size": 67, "max_position_embeddings": 64, "pad_token_id": 0, "local_attention": 6}
MODERN |= {"cls_token_id": 1, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2}
BIASES = {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True}
CLASSES = {**MODERN, "num_labels": 5}
ELECTRA = {**SIZES, "num_hidden_layers": 3, "vocab_size": 67, "max_position_embeddings": 64, "embedding_size": 16}
ALL, LOCAL = "full_attention", "sliding_attention"

CASES = [
    Case("windowed", "modernbert", "ModernBertForMaskedLM", MODERN, gradients=True),
    Case("biases, but of logits", "modernbert", "ModernBertForMaskedLM", {**MODERN, **BIASES, "decoder_bias": False}),
    Case("untied, odd window and width", "modernbert", "ModernBertForMaskedLM", {**MODERN, "tie_word_embeddings": False,
         "local_attention": 7, "intermediate_size": 37, "hidden_activation": "silu", "classifier_activation": "relu"}),
    Case("one layer", "modernbert", "ModernBertForMaskedLM", {**MODERN, "num_hidden_layers": 1}),
    Case("global layers only", "modernbert", "ModernBertModel", {**MODERN, "layer_types": [ALL] * 4}),
    Case("a local layer first", "modernbert", "ModernBertModel", {**MODERN, "layer_types": [LOCAL, ALL, LOCAL, LOCAL]}),
    Case("yarn in global layers", "modernbert", "ModernBertModel", {**MODERN, "rope_parameters": {
         ALL: {**rope("yarn", factor=4.0)["rope_parameters"], "original_max_position_embeddings": 16},
         LOCAL: {"rope_type": "default", "rope_theta": 1000.0}}}),
    Case("bfloat16", "modernbert", "ModernBertModel", MODERN, dtype="bfloat16"),
    Case("classes", "modernbert", "ModernBertForSequenceClassification", CLASSES),
    Case("classes of the mean, biases", "modernbert", "ModernBertForSequenceClassification", {**CLASSES, **BIASES,
         "classifier_pooling": "mean"}),
    Case("classes of tokens", "modernbert", "ModernBertForTokenClassification", CLASSES),
    Case("narrow tables", "electra", "ElectraForMaskedLM", ELECTRA, gradients=True),
    Case("untied, relu, one type", "electra", "ElectraForMaskedLM", {**ELECTRA, "tie_word_embeddings": False,
         "hidden_act": "relu", "type_vocab_size": 1, "intermediate_size": 37}),
    Case("tables as wide as blocks", "electra", "ElectraForMaskedLM", {**ELECTRA, "embedding_size": 32}),
    Case("real or replaced", "electra", "ElectraForPreTraining", ELECTRA, gradients=True),
    Case("real or replaced, silu, wide tables", "electra", "ElectraForPreTraining", {**ELECTRA, "hidden_act": "silu",
         "embedding_size": 40}),
    Case("bfloat16", "electra", "ElectraModel", ELECTRA, dtype="bfloat16"),
    Case("classes", "electra", "ElectraForSequenceClassification", {**ELECTRA, "num_labels": 5}),
    Case("classes of tokens", "electra", "ElectraForTokenClassification", {**ELECTRA, "num_labels": 5}),
]  # fmt: skip


@pytest.mark.parametrize("case", rows(CASES))
def test_text(case, tmp_path):
    batch = text(67)
    if case.family == "electra" and case.options.get("type_vocab_size", 2) > 1:
        batch["types"] = np.random.default_rng(1).integers(0, 2, batch["tokens"].shape).astype(np.int32)
    check(case, batch, tmp_path)
