"""Families with recurrences: mamba2, qwen3_5, qwen3_next, falcon_h1."""

import numpy as np
import pytest
import torch

from jaxmodel.generate import generate, prepared
from jaxmodel.loading import load
from tests.oracles.harness import NEW, PAD, Case, check, made, rows, text
from tests.oracles.test_decoders import SIZES, YARN

MAMBA2 = {"vocab_size": 67, "hidden_size": 32, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2,
          "num_hidden_layers": 3, "chunk_size": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
QWEN = {**SIZES, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_value_head_dim": 10,
        "linear_key_head_dim": 12, "num_hidden_layers": 4}  # fmt: skip
MIXTURE = {**QWEN, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
           "shared_expert_intermediate_size": 20}  # fmt: skip
FALCON = {**{name: value for name, value in SIZES.items() if name != "head_dim"}, "mamba_d_ssm": 48, "mamba_n_heads": 6,
          "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_chunk_size": 4}  # fmt: skip
SCALES = {"key_multiplier": 0.7, "attention_in_multiplier": 1.2, "attention_out_multiplier": 0.9,
          "ssm_in_multiplier": 1.1, "ssm_multipliers": [0.8, 0.5, 1.5, 0.6, 1.3], "ssm_out_multiplier": 0.8,
          "mlp_multipliers": [0.9, 0.6], "embedding_multiplier": 3.0, "lm_head_multiplier": 0.2}  # fmt: skip
MIXED = {"layer_types": ["full_attention", "linear_attention", "full_attention", "linear_attention"]}


def case(name: str, family: str, architecture: str, sizes: dict, **more) -> Case:
    options = more.pop("options", {})
    return Case(name, family, architecture, {**sizes, **options}, **more)


CASES = [
    case("grouped", "mamba2", "Mamba2ForCausalLM", MAMBA2, generates=True, gradients=True),
    case("tied, one group, biases, odd chunk", "mamba2", "Mamba2ForCausalLM", MAMBA2, generates=True, options={
         "tie_word_embeddings": True, "n_groups": 1, "use_bias": True, "chunk_size": 5, "conv_kernel": 3}),
    case("a group a head, no bias of the convolution, limits", "mamba2", "Mamba2ForCausalLM", MAMBA2, options={
         "n_groups": 8, "use_conv_bias": False, "time_step_limit": [0.3, 0.8]}),
    case("longer than the text", "mamba2", "Mamba2ForCausalLM", MAMBA2, options={"chunk_size": 256}),
    case("bfloat16", "mamba2", "Mamba2ForCausalLM", MAMBA2, dtype="bfloat16"),
    case("body, expand 3, odd width", "mamba2", "Mamba2Model", MAMBA2, options={
         "hidden_size": 20, "expand": 3, "num_heads": 6, "head_dim": 10, "n_groups": 3}),
    case("grouped", "qwen3_5_text", "Qwen3_5ForCausalLM", QWEN, generates=True, gradients=True),
    case("tied, biases, a key head a value head, another order", "qwen3_5_text", "Qwen3_5ForCausalLM", QWEN,
         generates=True, options={"tie_word_embeddings": True, "attention_bias": True, "linear_num_key_heads": 4,
         "linear_conv_kernel_dim": 3, **MIXED}),
    case("yarn positions, part turned", "qwen3_5_text", "Qwen3_5ForCausalLM", QWEN, options={"rope_parameters": {
         **YARN["rope_parameters"], "partial_rotary_factor": 0.5}}),
    case("bfloat16", "qwen3_5_text", "Qwen3_5ForCausalLM", QWEN, dtype="bfloat16"),
    case("body", "qwen3_5_text", "Qwen3_5TextModel", QWEN),
    case("classes", "qwen3_5_text", "Qwen3_5TextForSequenceClassification", QWEN, options={"num_labels": 5}),
    case("experts", "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", MIXTURE, generates=True),
    case("tied, bfloat16", "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", MIXTURE, dtype="bfloat16",
         options={"tie_word_embeddings": True}),
    case("body", "qwen3_5_moe_text", "Qwen3_5MoeTextModel", MIXTURE),
    case("experts", "qwen3_next", "Qwen3NextForCausalLM", MIXTURE, generates=True),
    case("tied, not normalised, a key head a value head", "qwen3_next", "Qwen3NextForCausalLM", MIXTURE, generates=True,
         options={"tie_word_embeddings": True, "norm_topk_prob": False, "linear_num_key_heads": 4, **MIXED}),
    case("bfloat16", "qwen3_next", "Qwen3NextForCausalLM", MIXTURE, dtype="bfloat16"),
    case("body", "qwen3_next", "Qwen3NextModel", MIXTURE),
    case("scaled", "falcon_h1", "FalconH1ForCausalLM", FALCON, generates=True, gradients=True, options=SCALES),
    case("tied, biases, normalised after the gate", "falcon_h1", "FalconH1ForCausalLM", FALCON, generates=True,
         options={"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "mamba_proj_bias": True,
         "projectors_bias": True, "mamba_rms_norm": True, "mamba_norm_before_gate": False}),
    case("normalised before the gate, one group", "falcon_h1", "FalconH1ForCausalLM", FALCON, options={**SCALES,
         "mamba_rms_norm": True, "mamba_n_groups": 1, "mamba_conv_bias": False, "time_step_limit": [0.3, 0.9]}),
    case("bfloat16", "falcon_h1", "FalconH1ForCausalLM", FALCON, dtype="bfloat16"),
    case("body", "falcon_h1", "FalconH1Model", FALCON),
]  # fmt: skip


@pytest.mark.parametrize("case", rows(CASES))
def test_agrees_with_transformers(case: Case, tmp_path):
    check(case, text(67), tmp_path)


# Where projections have biases, theirs lets the convolution see those of padding.
UNBIASED = [each for each in CASES if not {"use_bias", "mamba_proj_bias"} & {*each.options}]


@pytest.mark.parametrize("case", rows([each for each in UNBIASED if each.generates]))
def test_prompts_padded_left_continue_as_those_of_transformers(case: Case, tmp_path):
    theirs = made(case)
    theirs.save_pretrained(tmp_path)
    theirs.generation_config.eos_token_id = None
    loaded = load(tmp_path)
    tokens, lengths = text(67)["tokens"], (11, 7, 1)
    mask = np.arange(11) >= 11 - np.array(lengths)[:, None]
    how = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": PAD}
    given = torch.as_tensor(np.where(mask, tokens, PAD)).long(), torch.as_tensor(mask).long()
    expected = theirs.generate(given[0], attention_mask=given[1], **how)[:, 11:].tolist()
    prompts = [row[real] for row, real in zip(tokens, mask, strict=True)]
    assert generate(loaded.model, prepared(loaded.model, loaded.params), prompts, max_new_tokens=NEW) == expected
