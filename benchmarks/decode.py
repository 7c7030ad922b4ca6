"""Tokens a second of greedy decoding in GPT-2's 124M shape: ours, or Hugging Face's `generate`."""

import sys
from typing import Any

from benchmarks.duel import Contender, serve

PROMPT, NEW = 32, 64


def ours(batch: int) -> Contender:
    """Random weights, prepared once, the whole loop in one jit."""
    import jax
    import numpy as np

    from jaxmodel.config import replace
    from jaxmodel.generate import generate, prepared
    from jaxmodel.models.presets import PRESETS

    model = replace(PRESETS["gpt2"], {"execution.scan": False}).build()
    params = prepared(model, jax.jit(model.init)(jax.random.key(0)))
    prompts = np.random.default_rng(0).integers(0, 50257, (batch, PROMPT)).tolist()

    def turn() -> float:
        found = generate(model, params, prompts, max_new_tokens=NEW)
        assert [len(row) for row in found] == [NEW] * batch
        return batch * NEW

    return Contender(turn, f"jax {jax.__version__}")


def theirs(batch: int) -> Contender:
    """Random weights, eager, with its default cache."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    model: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    prompts = torch.randint(0, 50257, (batch, PROMPT))
    how = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0}

    def turn() -> float:
        found = model.generate(prompts, attention_mask=torch.ones_like(prompts), **how)
        assert found.shape == (batch, PROMPT + NEW)
        return batch * NEW

    return Contender(turn, f"transformers {transformers.__version__} on torch {torch.__version__}, eager")


if __name__ == "__main__":
    serve({"ours": ours, "theirs": theirs}[sys.argv[1]](int(sys.argv[2])))
