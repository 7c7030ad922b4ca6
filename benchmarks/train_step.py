"""Tokens a second of a training step of a GPT: ours, or Hugging Face's GPT2LMHeadModel in eager torch."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.duel import Contender, serve, start


class Shape(NamedTuple):
    """Of a GPT, and of its batch."""

    layers: int
    dim: int
    heads: int
    vocab: int
    max_length: int
    length: int
    batch: int


SHAPES = {"10m": Shape(6, 384, 6, 1024, 256, 256, 16), "124m": Shape(12, 768, 12, 50257, 1024, 256, 4)}


def gpt(shape: Shape, scan: bool = False, dtype: str = "float32") -> Any:
    """The config of ours."""
    from jaxmodel.config import replace
    from jaxmodel.models.presets import PRESETS

    sizes = {
        "num_layers": shape.layers,
        "embed_dim": shape.dim,
        "attention.num_heads": shape.heads,
        "mlp.dim": 4 * shape.dim,
    }
    limits = {"vocab_size": shape.vocab, "max_length": shape.max_length}
    return replace(PRESETS["gpt2"], sizes | limits | {"execution.scan": scan, "execution.dtype": dtype})


def their_gpt(shape: Shape) -> Any:
    """The config of theirs."""
    import transformers  # pyright: ignore[reportMissingImports]

    return transformers.GPT2Config(
        vocab_size=shape.vocab, n_positions=shape.max_length, n_embd=shape.dim, n_layer=shape.layers,
        n_head=shape.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip


def ours(shape: Shape, scan: bool = False, dtype: str = "float32") -> Contender:
    """AdamW, as a recipe would set it up; `dtype` is what is computed in."""
    import numpy as np

    from jaxmodel import tasks

    model = gpt(shape, scan, dtype).build()
    tokens = np.random.default_rng(0).integers(0, shape.vocab, (shape.batch, shape.length + 1), np.int32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    return our_step(model, tasks.language_model(model), batch, shape.batch * shape.length)


def theirs(shape: Shape, device: str = "cpu", dtype: str = "float32", compiled: bool = False) -> Contender:
    """Eager or compiled, with torch's fused AdamW; what is computed in is bfloat16 by `autocast`."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    model: Any = transformers.GPT2LMHeadModel(their_gpt(shape))
    model = model.to(device)
    run: Any = torch.compile(model) if compiled else model
    tokens = torch.randint(0, shape.vocab, (shape.batch, shape.length), device=device)
    name = (
        f"transformers {transformers.__version__} on torch {torch.__version__}, {'compiled' if compiled else 'eager'}"
    )

    def loss() -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            return run(tokens, labels=tokens, use_cache=False).loss

    return their_step(model, loss, shape.batch * shape.length, name)


def our_step(model: Any, loss: Any, batch: dict[str, Any], work: float) -> Contender:
    """A contender whose turn is one step on a batch that comes to `work` units."""
    import jax

    from jaxmodel import optim, options
    from jaxmodel.train import make_state, make_step, put

    optimizer = optim.make_optimizer(options.Optimizer(), 1000, model.layout)
    box = [make_state(model, optimizer, jax.random.key(0))]
    step, batch = make_step(model, loss, optimizer), dict(put(batch))
    parameters = sum(array.size for array in jax.tree.leaves(box[0].params))

    def turn() -> float:
        box[0], metrics = step(box[0], batch, jax.random.key(1))
        jax.block_until_ready((box[0], metrics))
        return work

    return Contender(turn, f"jax {jax.__version__}", parameters)


def their_step(model: Any, loss: Callable[[], Any], work: float, name: str) -> Contender:
    """The same of torch: fused AdamW, gradients clipped."""
    import torch  # pyright: ignore[reportMissingImports]

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def turn() -> float:
        now = loss()
        optimizer.zero_grad()
        now.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        now.item()
        return work

    return Contender(turn, name, sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    start(sys.argv[1])
    serve({"ours": ours, "theirs": theirs}[sys.argv[1]](SHAPES[sys.argv[2]]))
