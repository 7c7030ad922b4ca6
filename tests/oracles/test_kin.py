"""More decoders: phi3, olmo2, olmo3, smollm3, gemma, granite, starcoder2, stablelm, gpt_neox, cohere2, glm4."""

import pytest

from tests.oracles.harness import check, rows, text
from tests.oracles.test_decoders import LONG, SIZES, SLIDING, YARN, case, rope

NO_HEAD_DIM = {name: value for name, value in SIZES.items() if name != "head_dim"}
PART = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
LOCAL = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], **SLIDING}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
LOCAL_YARN = {"sliding_attention": PLAIN, "full_attention": YARN["rope_parameters"]}

CASES = [
    case("grouped, windowed", "phi3", "Phi3ForCausalLM", SLIDING, NO_HEAD_DIM, generates=True),
    case("part turned, tied", "phi3", "Phi3ForCausalLM", {**PART, **TIED}, NO_HEAD_DIM, generates=True),
    case("long positions", "phi3", "Phi3ForCausalLM", {**LONG, "max_position_embeddings": 32,
         "original_max_position_embeddings": 8}, NO_HEAD_DIM, lengths=(11, 10, 9)),
    case("bfloat16", "phi3", "Phi3ForCausalLM", {}, NO_HEAD_DIM, dtype="bfloat16"),
    case("classes", "phi3", "Phi3ForSequenceClassification", {"num_labels": 5}, NO_HEAD_DIM),
    case("grouped", "olmo2", "Olmo2ForCausalLM", {}, NO_HEAD_DIM, generates=True),
    case("biases, tied", "olmo2", "Olmo2ForCausalLM", {"attention_bias": True, **TIED}, NO_HEAD_DIM),
    case("body, bfloat16", "olmo2", "Olmo2Model", {}, NO_HEAD_DIM, dtype="bfloat16"),
    case("windowed", "olmo3", "Olmo3ForCausalLM", LOCAL, NO_HEAD_DIM, generates=True),
    case("yarn in global layers", "olmo3", "Olmo3ForCausalLM", {**LOCAL, "rope_parameters": LOCAL_YARN}, NO_HEAD_DIM),
    case("body, usual layers", "olmo3", "Olmo3Model", {**SLIDING, "num_hidden_layers": 4}, NO_HEAD_DIM),
    case("some without positions", "smollm3", "SmolLM3ForCausalLM", {"no_rope_layers": [1, 0, 1]}, NO_HEAD_DIM,
         generates=True),
    case("windowed, biases, untied", "smollm3", "SmolLM3ForCausalLM", {"use_sliding_window": True, **SLIDING, **UNTIED,
         "no_rope_layers": [1, 0, 1], "attention_bias": True, "mlp_bias": True}, NO_HEAD_DIM, generates=True),
    case("classes", "smollm3", "SmolLM3ForSequenceClassification", {"num_labels": 5}, NO_HEAD_DIM),
    case("grouped", "gemma", "GemmaForCausalLM", {}, generates=True),
    case("wide heads, one key head", "gemma", "GemmaForCausalLM", {"head_dim": 16, "num_key_value_heads": 1}),
    case("bfloat16", "gemma", "GemmaForCausalLM", {}, dtype="bfloat16"),
    case("scaled", "granite", "GraniteForCausalLM", {"embedding_multiplier": 3.0, "logits_scaling": 2.0,
         "residual_multiplier": 0.3, "attention_multiplier": 0.2}, NO_HEAD_DIM, generates=True),
    case("tied, biases", "granite", "GraniteForCausalLM", {**TIED, "attention_bias": True, "mlp_bias": True},
         NO_HEAD_DIM),
    case("body", "granite", "GraniteModel", {"embedding_multiplier": 3.0}, NO_HEAD_DIM),
    case("windowed", "starcoder2", "Starcoder2ForCausalLM", SLIDING, NO_HEAD_DIM, generates=True),
    case("no biases, untied", "starcoder2", "Starcoder2ForCausalLM", {"use_bias": False, **UNTIED}, NO_HEAD_DIM),
    case("classes of tokens", "starcoder2", "Starcoder2ForTokenClassification", {"num_labels": 5}, NO_HEAD_DIM),
    case("part turned", "stablelm", "StableLmForCausalLM", PART, NO_HEAD_DIM, generates=True),
    case("parallel, biases, tied", "stablelm", "StableLmForCausalLM", {"use_parallel_residual": True,
         "use_qkv_bias": True, **TIED, **PART}, NO_HEAD_DIM, generates=True),
    case("norms of each head", "stablelm", "StableLmForCausalLM", {"qk_layernorm": True, **PART}, NO_HEAD_DIM,
         generates=True),
    case("bfloat16", "stablelm", "StableLmForCausalLM", PART, NO_HEAD_DIM, dtype="bfloat16"),
    case("parallel, part turned", "gpt_neox", "GPTNeoXForCausalLM", PART, NO_HEAD_DIM, generates=True),
    case("one after the other, no biases, tied", "gpt_neox", "GPTNeoXForCausalLM", {"use_parallel_residual": False,
         "attention_bias": False, **TIED, **PART}, NO_HEAD_DIM, generates=True),
    case("classes", "gpt_neox", "GPTNeoXForSequenceClassification", {"num_labels": 5, **PART}, NO_HEAD_DIM),
    case("windowed", "cohere2", "Cohere2ForCausalLM", LOCAL, NO_HEAD_DIM, generates=True),
    case("usual layers, biases", "cohere2", "Cohere2ForCausalLM", {**SLIDING, "num_hidden_layers": 4,
         "attention_bias": True}, NO_HEAD_DIM),
    case("no window", "cohere2", "Cohere2ForCausalLM", {"layer_types": ["full_attention"] * 3}, NO_HEAD_DIM),
    case("part turned", "glm4", "Glm4ForCausalLM", PART, generates=True),
    case("no biases, tied, linear positions", "glm4", "Glm4ForCausalLM", {"attention_bias": False, **TIED,
         **rope("linear", factor=3.0)}),
    case("bfloat16", "glm4", "Glm4ForCausalLM", PART, dtype="bfloat16"),
]  # fmt: skip


@pytest.mark.parametrize("case", rows(CASES))
def test_agrees(case, tmp_path):
    check(case, text(67), tmp_path)
