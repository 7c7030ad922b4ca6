"""Decoders: gpt2, llama, mistral, qwen2, qwen3, gemma2, gemma3, gemma4."""

import pytest

from tests.oracles.harness import Case, check, rows, text

SIZES = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 67, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def rope(kind: str, **more: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


def case(name: str, family: str, architecture: str, options: dict, sizes: dict = SIZES, **more) -> Case:
    return Case(name, family, architecture, {**sizes, **options}, **more)


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=16)
LONG = rope("longrope", factor=4.0, original_max_position_embeddings=8, short_factor=[1.0, 1.1, 1.2, 1.3],
            long_factor=[1.0, 2.0, 3.0, 4.0])  # fmt: skip
SLIDING = {"sliding_window": 4}
GEMMA4 = {"sliding_window": 4, "num_hidden_layers": 7, "global_head_dim": 12, "hidden_size_per_layer_input": 0,
          "layer_types": ["sliding_attention", "full_attention"] * 3 + ["full_attention"]}  # fmt: skip
NARROW = {**GEMMA4, "hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 67}
GEMMA = {"query_pre_attn_scalar": 8, "sliding_window": 4}

CASES = [
    case("plain", "gpt2", "GPT2LMHeadModel", {}, GPT2, gradients=True, generates=True),
    case("untied, another width, gelu", "gpt2", "GPT2LMHeadModel", {"tie_word_embeddings": False, "n_inner": 40,
         "activation_function": "gelu"}, GPT2, generates=True),
    case("bfloat16", "gpt2", "GPT2LMHeadModel", {}, GPT2, dtype="bfloat16"),
    case("body", "gpt2", "GPT2Model", {}, GPT2),
    case("classes", "gpt2", "GPT2ForSequenceClassification", {"num_labels": 5}, GPT2),
    case("classes of tokens", "gpt2", "GPT2ForTokenClassification", {"num_labels": 5}, GPT2),
    case("grouped", "llama", "LlamaForCausalLM", {}, gradients=True, generates=True),
    case("tied, biases, one key head", "llama", "LlamaForCausalLM", {"tie_word_embeddings": True,
         "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}, generates=True),
    case("llama3 positions, odd width", "llama", "LlamaForCausalLM", {**LLAMA3, "hidden_size": 30, "head_dim": 6,
         "intermediate_size": 37, "num_attention_heads": 5, "num_key_value_heads": 5}, generates=True),
    case("linear positions", "llama", "LlamaForCausalLM", rope("linear", factor=3.0)),
    case("dynamic positions", "llama", "LlamaForCausalLM", rope("dynamic", factor=3.0)),
    case("yarn positions", "llama", "LlamaForCausalLM", YARN, generates=True),
    case("long positions", "llama", "LlamaForCausalLM", {**LONG, "max_position_embeddings": 32},
         lengths=(11, 10, 9)),  # theirs stretches by the longest row of the batch, ours each by its own
    case("bfloat16", "llama", "LlamaForCausalLM", {}, dtype="bfloat16"),
    case("body", "llama", "LlamaModel", {}),
    case("classes", "llama", "LlamaForSequenceClassification", {"num_labels": 5}),
    case("classes of tokens", "llama", "LlamaForTokenClassification", {"num_labels": 5}),
    case("windowed", "mistral", "MistralForCausalLM", SLIDING, generates=True),
    case("whole, tied", "mistral", "MistralForCausalLM", {"sliding_window": None, "tie_word_embeddings": True},
         generates=True),
    case("plain", "qwen2", "Qwen2ForCausalLM", {}, generates=True),
    case("windowed from the second layer, tied", "qwen2", "Qwen2ForCausalLM", {**SLIDING, "tie_word_embeddings": True,
         "use_sliding_window": True, "max_window_layers": 1}, generates=True),
    case("grouped", "qwen3", "Qwen3ForCausalLM", {}, generates=True),
    case("windowed, tied, biases", "qwen3", "Qwen3ForCausalLM", {**SLIDING, "use_sliding_window": True,
         "max_window_layers": 1, "tie_word_embeddings": True, "attention_bias": True}, generates=True),
    case("yarn positions, bfloat16", "qwen3", "Qwen3ForCausalLM", YARN, dtype="bfloat16"),
    case("windowed", "gemma2", "Gemma2ForCausalLM", GEMMA, generates=True),
    case("one key head, biases", "gemma2", "Gemma2ForCausalLM", {**GEMMA, "num_key_value_heads": 1,
         "attention_bias": True}),
    case("windowed", "gemma3_text", "Gemma3ForCausalLM", {**GEMMA, "num_hidden_layers": 7}, generates=True),
    case("stretched", "gemma3_text", "Gemma3ForCausalLM", {**GEMMA, "num_hidden_layers": 7, "rope_parameters": {
         "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
         "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    case("values of their own", "gemma4_text", "Gemma4ForCausalLM", GEMMA4, generates=True),
    case("keys as values, fewer, biases, untied, capped", "gemma4_text", "Gemma4ForCausalLM", {**GEMMA4,
         "attention_k_eq_v": True, "num_global_key_value_heads": 1, "attention_bias": True,
         "tie_word_embeddings": False, "final_logit_softcapping": 5.0}, generates=True),
    case("all global, another part turned", "gemma4_text", "Gemma4ForCausalLM", {**GEMMA4, "rope_parameters": {
         "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 1e6},
         "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
         "layer_types": ["full_attention"] * 7}),
    case("vectors for each layer", "gemma4_text", "Gemma4ForCausalLM", NARROW, generates=True),
    case("the last layers reuse keys and values", "gemma4_text", "Gemma4ForCausalLM", {**NARROW,
         "num_kv_shared_layers": 3, "use_double_wide_mlp": True}, generates=True),
    case("one reuses, keys are values", "gemma4_text", "Gemma4ForCausalLM", {**NARROW, "num_kv_shared_layers": 1,
         "attention_k_eq_v": True, "num_global_key_value_heads": 1}, generates=True),
    case("experts beside the MLP", "gemma4_text", "Gemma4ForCausalLM", {**GEMMA4, "enable_moe_block": True,
         "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 12}, generates=True),
    case("body, bfloat16", "gemma4_text", "Gemma4TextModel", GEMMA4, dtype="bfloat16"),
    case("body, bfloat16", "gemma3_text", "Gemma3TextModel", {**GEMMA, "num_hidden_layers": 7}, dtype="bfloat16"),
]  # fmt: skip


@pytest.mark.parametrize("case", rows(CASES))
def test_agrees(case, tmp_path):
    check(case, text(67), tmp_path)
