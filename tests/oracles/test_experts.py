"""Decoders with experts: qwen3_moe, mixtral, olmoe, qwen2_moe."""

import pytest

from tests.oracles.harness import check, rows, text
from tests.oracles.test_decoders import LLAMA3, SLIDING, case, rope

QWEN3 = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN2 = {**QWEN3, "shared_expert_intermediate_size": 40}
OLMOE = {"num_experts": 5, "num_experts_per_tok": 2}
OSS = {"num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 4}

CASES = [
    case("grouped", "qwen3_moe", "Qwen3MoeForCausalLM", QWEN3, gradients=True, generates=True),
    case("normalised, windowed, tied, biases", "qwen3_moe", "Qwen3MoeForCausalLM", {**QWEN3, **SLIDING,
         "use_sliding_window": True, "norm_topk_prob": True, "tie_word_embeddings": True, "attention_bias": True},
         generates=True),
    case("bfloat16", "qwen3_moe", "Qwen3MoeForCausalLM", QWEN3, dtype="bfloat16"),
    case("whole", "mixtral", "MixtralForCausalLM", MIXTRAL, generates=True),
    case("windowed, tied, three a token", "mixtral", "MixtralForCausalLM", {**MIXTRAL, **SLIDING,
         "num_experts_per_tok": 3, "tie_word_embeddings": True}, generates=True),
    case("bfloat16", "mixtral", "MixtralForCausalLM", MIXTRAL, dtype="bfloat16"),
    case("grouped", "olmoe", "OlmoeForCausalLM", OLMOE, generates=True),
    case("normalised, tied, biases", "olmoe", "OlmoeForCausalLM", {**OLMOE, "norm_topk_prob": True,
         "tie_word_embeddings": True, "attention_bias": True}, generates=True),
    case("body, bfloat16", "olmoe", "OlmoeModel", OLMOE, dtype="bfloat16"),
    case("with one of all tokens", "qwen2_moe", "Qwen2MoeForCausalLM", QWEN2, generates=True),
    case("windowed, no biases, tied, normalised", "qwen2_moe", "Qwen2MoeForCausalLM", {**QWEN2, **SLIDING,
         "use_sliding_window": True, "norm_topk_prob": True, "tie_word_embeddings": True, "qkv_bias": False},
         generates=True),
    case("bfloat16", "qwen2_moe", "Qwen2MoeForCausalLM", QWEN2, dtype="bfloat16"),
    case("grouped, yarn", "gpt_oss", "GptOssForCausalLM", {**OSS, **rope("yarn", factor=4.0, truncate=False,
         original_max_position_embeddings=16)}, gradients=True, generates=True),
    case("usual yarn, another width, clamped, tied", "gpt_oss", "GptOssForCausalLM", {**OSS, "intermediate_size": 20,
         "swiglu_limit": 0.05, "tie_word_embeddings": True}, generates=True),
    case("full and whole, no biases", "gpt_oss", "GptOssForCausalLM", {**OSS, **rope("default"),
         "layer_types": ["full_attention"] * 3, "num_key_value_heads": 4, "attention_bias": False}, generates=True),
    case("linear", "gpt_oss", "GptOssForCausalLM", {**OSS, **rope("linear", factor=2.0)}),
    case("dynamic", "gpt_oss", "GptOssForCausalLM", {**OSS, **rope("dynamic", factor=2.0)}),
    case("llama3", "gpt_oss", "GptOssForCausalLM", {**OSS, **LLAMA3}),
    case("bfloat16", "gpt_oss", "GptOssForCausalLM", OSS, dtype="bfloat16"),
    case("body", "gpt_oss", "GptOssModel", OSS),
    case("classes of a text", "gpt_oss", "GptOssForSequenceClassification", {**OSS, "num_labels": 3}),
    case("classes of tokens", "gpt_oss", "GptOssForTokenClassification", {**OSS, "num_labels": 3}),
]  # fmt: skip


@pytest.mark.parametrize("case", rows(CASES))
def test_agrees(case, tmp_path):
    check(case, text(67), tmp_path)
