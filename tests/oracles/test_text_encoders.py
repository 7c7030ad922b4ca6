"""Encoders of text in the manner of BERT: roberta, distilbert."""

import numpy as np
import pytest

from tests.oracles.harness import Case, check, rows, text

ROBERTA = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"vocab_size": 67, "max_position_embeddings": 64, "pad_token_id": 0},
}
DISTILBERT = {"dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4, "vocab_size": 67}
DISTILBERT |= {"max_position_embeddings": 64}

CASES = [
    Case("plain", "roberta", "RobertaForMaskedLM", ROBERTA, gradients=True),
    Case(
        "padding is token 1, one type, relu, odd width",
        "roberta",
        "RobertaForMaskedLM",
        {**ROBERTA, "pad_token_id": 1, "type_vocab_size": 1, "hidden_act": "relu", "intermediate_size": 37},
    ),
    Case("pooled, bfloat16", "roberta", "RobertaModel", ROBERTA, dtype="bfloat16"),
    Case("classes", "roberta", "RobertaForSequenceClassification", {**ROBERTA, "num_labels": 5}),
    Case("classes of tokens", "roberta", "RobertaForTokenClassification", {**ROBERTA, "num_labels": 5}),
    Case("plain", "distilbert", "DistilBertForMaskedLM", DISTILBERT, gradients=True),
    Case(
        "relu, odd width", "distilbert", "DistilBertForMaskedLM", {**DISTILBERT, "activation": "relu", "hidden_dim": 37}
    ),
    Case("bare, bfloat16", "distilbert", "DistilBertModel", DISTILBERT, dtype="bfloat16"),
    Case("classes", "distilbert", "DistilBertForSequenceClassification", {**DISTILBERT, "num_labels": 5}),
    Case("classes of tokens", "distilbert", "DistilBertForTokenClassification", {**DISTILBERT, "num_labels": 5}),
]


@pytest.mark.parametrize("case", rows(CASES))
def test_text(case, tmp_path):
    batch = text(67)
    if case.options.get("type_vocab_size", 2) > 1 and "hidden_size" in case.options:
        batch["types"] = np.random.default_rng(1).integers(0, 2, batch["tokens"].shape).astype(np.int32)
    check(case, batch, tmp_path)
