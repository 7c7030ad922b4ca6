"""Tokens a second of a training step of a 10M GPT: ours, or Hugging Face's GPT2LMHeadModel in eager torch."""

import sys

from benchmarks.duel import serve

LAYERS, DIM, HEADS, VOCAB, LENGTH, BATCH = 6, 384, 6, 1024, 256, 16


def ours() -> None:
    """AdamW, float32, as a recipe would set it up."""
    import jax
    import numpy as np

    from jaxmodel import optim, options, tasks
    from jaxmodel.config import replace
    from jaxmodel.models.presets import PRESETS
    from jaxmodel.train import make_state, make_step, put

    sizes = {"num_layers": LAYERS, "embed_dim": DIM, "attention.num_heads": HEADS, "mlp.dim": 4 * DIM}
    limits = {"vocab_size": VOCAB, "max_length": LENGTH, "execution.scan": False}
    model = replace(PRESETS["gpt2"], sizes | limits).build()
    optimizer = optim.make_optimizer(options.Optimizer(), 1000, model.layout)
    state = make_state(model, optimizer, jax.random.key(0))
    step = make_step(model, tasks.language_model(model), optimizer)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (BATCH, LENGTH + 1)).astype(np.int32)
    batch = put({"tokens": tokens[:, :-1], "targets": tokens[:, 1:]})
    box = [state]

    def turn() -> float:
        box[0], metrics = step(box[0], batch, jax.random.key(1))
        jax.block_until_ready((box[0], metrics))
        return BATCH * LENGTH

    serve(turn, name=f"jax {jax.__version__}")


def theirs() -> None:
    """Eager, with torch's fused AdamW."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=LENGTH, n_embd=DIM, n_layer=LAYERS, n_head=HEADS,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens = torch.randint(0, VOCAB, (BATCH, LENGTH))

    def turn() -> float:
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        return BATCH * LENGTH

    serve(turn, name=f"transformers {transformers.__version__} on torch {torch.__version__}, eager")


if __name__ == "__main__":
    {"ours": ours, "theirs": theirs}[sys.argv[1]]()
