"""Causal attention in bfloat16, forward and backward: ours, and fused kernels; python -m benchmarks.gpu runs it."""

import functools
from typing import Any

from benchmarks.duel import device, speed, tell

LENGTHS = (1024, 4096)


def ours(tiny: bool) -> None:
    """Ours as it is written and in the pieces of training, and cuDNN's."""
    import jax
    import jax.numpy as jnp

    from jaxmodel.batch_size import bytes_needed
    from jaxmodel.nn.attention import dot_product_attention
    from jaxmodel.nn.mask import attention_mask, positions_of

    device(tiny)

    def plain(q: jax.Array, k: jax.Array, v: jax.Array, pieces: int = 1) -> jax.Array:
        at, size = positions_of(1, q.shape[1]), q.shape[1] // pieces
        spans = [slice(i * size, (i + 1) * size) for i in range(pieces)]

        def attend(span: slice) -> jax.Array:
            seen = slice(span.stop)
            mask = attention_mask(at[:, span], at[:, seen], (None, None), causal=True, window=None)
            return dot_product_attention(q[:, span], k[:, seen], v[:, seen], mask, scale=q.shape[-1] ** -0.5)

        return jnp.concatenate([attend(span) for span in spans], axis=1)

    kernel = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="xla" if tiny else "cudnn")
    for side, attend in {"ours": plain, "pieces": functools.partial(plain, pieces=4), "cudnn": kernel}.items():
        for length in (64,) if tiny else LENGTHS:
            keys = jax.random.split(jax.random.key(0), 4)
            q, k, v, g = (jax.random.normal(key, (4, length, 16, 64), jnp.bfloat16) for key in keys)

            def both(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array, attend: Any = attend) -> Any:
                out, back = jax.vjp(attend, q, k, v)
                return out, back(g)

            run = jax.jit(both).lower(q, k, v, g).compile()

            def turn(run: Any = run, args: Any = (q, k, v, g)) -> float:
                for _ in range(19):
                    run(*args)
                jax.block_until_ready(run(*args))
                return 20

            ms = 1000 / speed(turn, 0 if tiny else 0.5)
            tell(side, **{f"{length}_ms": ms, f"{length}_MB": bytes_needed(run) / 1e6})


def theirs(tiny: bool) -> None:
    """Torch's fused attention, eager."""
    import torch  # pyright: ignore[reportMissingImports]

    where = "cpu" if tiny else "cuda"
    for length in (64,) if tiny else LENGTHS:
        if not tiny:
            torch.cuda.reset_peak_memory_stats()
        how: dict[str, Any] = {"dtype": torch.bfloat16, "device": where}
        q, k, v = (torch.randn(4, 16, length, 64, requires_grad=True, **how) for _ in range(3))
        g = torch.randn(4, 16, length, 64, **how)

        def turn(q: Any = q, k: Any = k, v: Any = v, g: Any = g) -> float:
            for _ in range(20):
                out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
                found = torch.autograd.grad(out, (q, k, v), g)
            found[0].sum().item()  # waits for all before it
            return 20

        ms = 1000 / speed(turn, 0 if tiny else 0.5)
        tell("torch", **{f"{length}_ms": ms, f"{length}_MB": torch.cuda.max_memory_allocated() / 1e6})
