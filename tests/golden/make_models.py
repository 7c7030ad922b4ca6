"""Makes models.npz: what transformers computes for tiny random GPT-2 and Llama models. Needs torch and transformers.

Run it as `python tests/golden/make_models.py`; it is deterministic. Tensors keep transformers' names and shapes.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

GPT2 = transformers.GPT2Config(
    vocab_size=40, n_positions=16, n_embd=24, n_layer=2, n_head=3, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    bos_token_id=0, eos_token_id=0, attn_implementation="eager",
)  # fmt: skip
LLAMA = transformers.LlamaConfig(
    vocab_size=40, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=16, rope_theta=500000.0, rms_norm_eps=1e-5,
    tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, attn_implementation="eager",
)  # fmt: skip


def record(name: str, model: torch.nn.Module, found: dict) -> None:
    """Weights, inputs, logits with right padding, the loss without, and its gradient."""
    with torch.no_grad():
        for parameter in model.parameters():  # larger than at initialisation, so that mistakes show
            parameter.add_(torch.randn_like(parameter) * 0.1)
    tokens = torch.randint(0, 40, (2, 10))
    mask = torch.ones_like(tokens)
    mask[1, 7:] = 0
    found[f"{name}|tokens"], found[f"{name}|mask"] = tokens.numpy(), mask.numpy()
    found[f"{name}|padded_logits"] = model(tokens, attention_mask=mask).logits.detach().numpy()
    out = model(tokens, labels=tokens)
    out.loss.backward()
    found[f"{name}|logits"], found[f"{name}|loss"] = out.logits.detach().numpy(), out.loss.item()
    for key, parameter in model.named_parameters():
        found[f"{name}|weight|{key}"] = parameter.detach().numpy()
        found[f"{name}|gradient|{key}"] = parameter.grad.numpy()


def main() -> None:
    """Write models.npz beside this file."""
    torch.manual_seed(0)
    found: dict = {}
    record("gpt2", transformers.GPT2LMHeadModel(GPT2), found)
    record("llama", transformers.LlamaForCausalLM(LLAMA), found)
    path = Path(__file__).parent / "models.npz"
    np.savez_compressed(path, **found)
    print(path, path.stat().st_size, "bytes", transformers.__version__, torch.__version__)


if __name__ == "__main__":
    main()
