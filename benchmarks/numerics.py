"""What small models compute on a GPU against the same on the CPU; python -m benchmarks.gpu runs it."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.duel import device, tell

# Presets that are made small: four layers or a whole pattern, 256 wide.
SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"attention.num_heads": 4, "mlp.dim": 1024},
    "llama-3.2-1b": {"attention.num_heads": 8, "attention.num_kv_heads": 2, "attention.head_dim": 32, "mlp.dim": 1024},
    "mixtral-8x7b": {"attention.num_heads": 8, "attention.num_kv_heads": 2, "attention.head_dim": 32, "moe.dim": 512},
    "gemma-3-270m": {"attention.head_dim": 64, "stem.scale": 16.0, "mlp.dim": 1024, "num_layers": 6},
}
WINDOW = 32  # of gemma's local blocks, in texts of 128 tokens


def compare(tiny: bool) -> None:
    """Logits and gradients of small models, dense and quantized, and the tokens they generate: GPU against CPU."""
    device(tiny)
    with ThreadPoolExecutor(2 if tiny else len(SMALL)) as pool:  # compiling is most of it
        list(pool.map(functools.partial(_compare, tiny=tiny), SMALL))


def _compare(name: str, tiny: bool) -> None:
    """Errors over norms, against float32 on the CPU; `leaf` is the worst of any weight's gradient."""
    import jax
    import numpy as np

    from jaxmodel import tasks, weights
    from jaxmodel.config import replace
    from jaxmodel.generate import generate
    from jaxmodel.models.configs import Variant
    from jaxmodel.models.presets import PRESETS

    local = (Variant("local", (("attention.window", WINDOW),)), Variant("global", (("attention.rope_theta", 1e6),)))
    sizes = {"num_layers": 4, "embed_dim": 256, "vocab_size": 512 if tiny else 8192, "max_length": 256}
    variants = {"variants": local} if PRESETS[name].variants else {}
    model = replace(PRESETS[name], sizes | variants | SMALL[name]).build()
    loss, rng = tasks.language_model(model), np.random.default_rng(0)
    tokens = rng.integers(0, sizes["vocab_size"], (4, 129), np.int32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    cpu, gpu = jax.devices("cpu")[0], jax.devices()[0]

    def forward(params: Any) -> jax.Array:
        return model.apply(params, {"tokens": batch["tokens"]})["logits"]

    def objective(params: Any) -> jax.Array:
        result = loss(params, batch, {}, None, True)
        return result.sum / result.weight

    def on(where: Any, run: Callable[[Any], Any], params: Any, precision: str = "highest") -> Any:
        with jax.default_matmul_precision(precision):
            return jax.device_get(run(jax.device_put(params, where)))

    def error(found: Any, right: Any, least: float = 0.0) -> float:
        return float(np.linalg.norm(found - right) / max(np.linalg.norm(right), least))

    with jax.default_device(cpu):
        params = jax.jit(model.init)(jax.random.key(0))
        narrow = {kind: weights.quantize(params, model.layout, kind) for kind in ("int8", "int4")}
    both, logits_of = jax.jit(lambda params: (forward(params), jax.grad(objective)(params))), jax.jit(forward)
    logits, grads = on(cpu, both, params)
    whole = np.concatenate([each.ravel() for each in jax.tree.leaves(grads)])
    least = 1e-4 * float(np.linalg.norm(whole))  # some gradients, such as those of GPT-2's key biases, are zero
    for precision in ("highest", "default"):
        mine, more = on(gpu, both, params, precision)
        leaves = jax.tree.leaves(jax.tree.map(lambda a, b: error(a, b, least), more, grads))
        all_of_it = np.concatenate([each.ravel() for each in jax.tree.leaves(more)])
        errors = {"logits": error(mine, logits), "grads": error(all_of_it, whole), "leaf": max(leaves)}
        tell(f"{name}_{precision}", **errors)
    for kind, each in narrow.items():
        tell(name, **{kind: error(on(gpu, logits_of, each), on(cpu, logits_of, each))})
    prompts, new = batch["tokens"][:, :16].tolist(), 4 if tiny else 32
    run = functools.partial(generate, model, prompts=prompts, max_new_tokens=new)
    texts = [np.array(on(where, lambda params: run(params=params), params)) for where in (gpu, cpu)]
    tell(name, same_tokens=float(np.mean(texts[0] == texts[1])))
