"""Keys and values from one narrow vector a token, and experts by groups: deepseek_v3, deepseek_v2, glm4_moe."""

import pytest

from tests.oracles.harness import check, rows, text
from tests.oracles.test_decoders import case, rope

DEEPSEEK = {
    "num_key_value_heads": 4,
    "head_dim": 4,
    "kv_lora_rank": 12,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}
GLM = {"moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 3}
WHOLE = {**DEEPSEEK, "q_lora_rank": None, "n_group": 1, "topk_group": 1}
SHARP = rope("yarn", factor=4.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=1.0)
SHARPER = rope("yarn", factor=8.0, original_max_position_embeddings=8, mscale=0.7, mscale_all_dim=0.4)

CASES = [
    case("groups, yarn", "deepseek_v3", "DeepseekV3ForCausalLM", {**DEEPSEEK, **SHARP}, generates=True),
    case("queries of tokens, no groups, biases, tied", "deepseek_v3", "DeepseekV3ForCausalLM", {**WHOLE,
         "attention_bias": True, "tie_word_embeddings": True}, generates=True),
    case("biases, halves turned, not normalised, two of all tokens", "deepseek_v3", "DeepseekV3ForCausalLM", {
         **DEEPSEEK, "attention_bias": True, "rope_interleave": False, "norm_topk_prob": False, "n_shared_experts": 2,
         "routed_scaling_factor": 1.0}, generates=True),
    case("yarn sharpened by halves", "deepseek_v3", "DeepseekV3ForCausalLM", {**DEEPSEEK, **SHARPER}, generates=True),
    case("yarn of scores alone", "deepseek_v3", "DeepseekV3ForCausalLM", {**WHOLE, **rope("yarn", factor=4.0,
         original_max_position_embeddings=16, mscale_all_dim=0.5)}),
    case("experts everywhere, linear", "deepseek_v3", "DeepseekV3ForCausalLM", {**WHOLE, **rope("linear", factor=2.0),
         "first_k_dense_replace": 0}),
    case("dense", "deepseek_v3", "DeepseekV3ForCausalLM", {**DEEPSEEK, "first_k_dense_replace": 3}),
    case("bfloat16", "deepseek_v3", "DeepseekV3ForCausalLM", {**DEEPSEEK, **SHARP}, dtype="bfloat16"),
    case("body", "deepseek_v3", "DeepseekV3Model", DEEPSEEK),
    case("classes of a text", "deepseek_v3", "DeepseekV3ForSequenceClassification", {**DEEPSEEK, "num_labels": 3}),
    case("classes of tokens", "deepseek_v3", "DeepseekV3ForTokenClassification", {**DEEPSEEK, "num_labels": 3}),
    case("groups by their best, sharpened", "deepseek_v2", "DeepseekV2ForCausalLM", {**DEEPSEEK, **SHARPER,
         "topk_method": "group_limited_greedy"}, generates=True),
    case("queries of tokens, no groups, biases, tied", "deepseek_v2", "DeepseekV2ForCausalLM", {**WHOLE,
         "attention_bias": True, "tie_word_embeddings": True, "n_shared_experts": 2, "routed_scaling_factor": 2.0},
         generates=True),
    case("body, bfloat16", "deepseek_v2", "DeepseekV2Model", DEEPSEEK, dtype="bfloat16"),
    case("classes", "deepseek_v2", "DeepseekV2ForSequenceClassification", {**DEEPSEEK, "num_labels": 3}),
    case("norms, groups", "glm4_moe", "Glm4MoeForCausalLM", {**GLM, "use_qk_norm": True, "n_group": 4,
         "topk_group": 2}, generates=True),
    case("biases, tied, dense, not normalised", "glm4_moe", "Glm4MoeForCausalLM", {**GLM, "attention_bias": True,
         "tie_word_embeddings": True, "first_k_dense_replace": 0, "norm_topk_prob": False}, generates=True),
    case("body, bfloat16", "glm4_moe", "Glm4MoeModel", GLM, dtype="bfloat16"),
]  # fmt: skip


@pytest.mark.parametrize("case", rows(CASES))
def test_agrees(case, tmp_path):
    check(case, text(67), tmp_path)
