"""Tokens a second of greedy decoding in GPT-2's 124M shape: ours, or Hugging Face's `generate`."""

import sys
from typing import Any

from benchmarks.duel import Contender, serve, start
from benchmarks.train_step import SHAPES, Shape, gpt, their_gpt

PROMPT, NEW, SHAPE = 32, 64, SHAPES["124m"]


def ours(batch: int, new: int = NEW, shape: Shape = SHAPE, dtype: str = "float32") -> Contender:
    """Random weights of `dtype`, prepared once, the whole loop in one jit."""
    import jax
    import numpy as np

    from jaxmodel.generate import generate, prepared
    from jaxmodel.weights import cast

    model = gpt(shape, dtype=dtype).build()
    params = prepared(model, cast(jax.jit(model.init)(jax.random.key(0)), dtype))
    prompts = np.random.default_rng(0).integers(0, shape.vocab, (batch, PROMPT)).tolist()

    def turn() -> float:
        found = generate(model, params, prompts, max_new_tokens=new)
        assert [len(row) for row in found] == [new] * batch
        return batch * new

    return Contender(turn, f"jax {jax.__version__}")


def theirs(batch: int, new: int = NEW, shape: Shape = SHAPE, dtype: str = "float32", device: str = "cpu") -> Contender:
    """Random weights of `dtype`, eager, with its default cache."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    made: Any = transformers.GPT2LMHeadModel(their_gpt(shape))
    model = made.to(device, getattr(torch, dtype)).eval()
    prompts = torch.randint(0, shape.vocab, (batch, PROMPT), device=device)
    how = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}

    def turn() -> float:
        found = model.generate(prompts, attention_mask=torch.ones_like(prompts), **how)
        assert found.shape == (batch, PROMPT + new)
        return batch * new

    return Contender(turn, f"transformers {transformers.__version__} on torch {torch.__version__}, eager")


if __name__ == "__main__":
    start(sys.argv[1])
    serve({"ours": ours, "theirs": theirs}[sys.argv[1]](int(sys.argv[2])))
