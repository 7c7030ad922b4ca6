"""An encoder and a decoder: t5, bart, whisper."""

import numpy as np
import pytest

from tests.oracles.harness import Case, check, pair, rows

T5 = {"vocab_size": 67, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4, "pad_token_id": 0,
      "decoder_start_token_id": 0}  # fmt: skip
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
NEAR = {"relative_attention_num_buckets": 6, "relative_attention_max_distance": 5}
WIDTHS = {
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
}
BART = {**WIDTHS, "vocab_size": 67, "max_position_embeddings": 64}
WHISPER = {
    **WIDTHS,
    "vocab_size": 67,
    "num_mel_bins": 12,
    "max_source_positions": 9,
    "max_target_positions": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "begin_suppress_tokens": None,
}

CASES = [
    Case("relu, tied", "t5", "T5ForConditionalGeneration", T5, generates=True, gradients=True),
    Case("gated, untied, odd heads, few buckets", "t5", "T5ForConditionalGeneration",
         {**T5, **GATED, **NEAR, "d_kv": 5, "num_heads": 3, "d_ff": 37}, generates=True, gradients=True),
    Case("other depth, bfloat16", "t5", "T5ForConditionalGeneration", {**T5, **GATED, "num_decoder_layers": 2},
         dtype="bfloat16"),
    Case("silu, tied", "t5", "T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-silu"}),
    Case("body", "t5", "T5Model", {**T5, "feed_forward_proj": "gelu"}),
    Case("encoder", "t5", "T5EncoderModel", {**T5, **GATED, **NEAR}),
    Case("tied", "bart", "BartForConditionalGeneration", BART, generates=True),
    Case("scaled embeddings, relu", "bart", "BartForConditionalGeneration",
         {**BART, "scale_embedding": True, "activation_function": "relu"}, generates=True),
    Case("body, scaled embeddings, bfloat16", "bart", "BartModel", {**BART, "scale_embedding": True},
         dtype="bfloat16"),
    Case("classes", "bart", "BartForSequenceClassification", {**BART, "num_labels": 5}, padded=False, gradients=True),
    Case("tied", "whisper", "WhisperForConditionalGeneration", WHISPER, generates=True),
    Case("untied, relu, odd bands", "whisper", "WhisperForConditionalGeneration",
         {**WHISPER, "tie_word_embeddings": False, "activation_function": "relu", "num_mel_bins": 7}, generates=True),
    Case("body, bfloat16", "whisper", "WhisperModel", WHISPER, dtype="bfloat16"),
]  # fmt: skip


@pytest.mark.parametrize("case", rows(CASES))
def test_agrees(case, tmp_path):
    batch = pair(67)
    if "Encoder" in case.architecture:
        batch.pop("decoder_tokens")
    if "Classification" in case.architecture:  # each row ends with its one end; the target is the row, moved on
        batch["tokens"][:, -1] = 2
        batch["decoder_tokens"] = np.roll(batch["tokens"], 1, axis=1)
    if bands := case.options.get("num_mel_bins"):
        frames = np.random.default_rng(0).normal(size=(3, 2 * case.options["max_source_positions"], bands))
        batch = {"frames": frames.astype(np.float32), "decoder_tokens": batch["decoder_tokens"]}
    check(case, batch, tmp_path)
