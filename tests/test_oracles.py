"""Forward and gradients against transformers: golden values, made by tests/golden/make_models.py."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel.models.configs import Transformer
from jaxmodel.models.parts import MLP, Attention, Norm, Stem
from tests.contract import relative

GOLDEN = Path(__file__).parent / "golden" / "models.npz"

GPT2 = Transformer(
    vocab_size=40,
    max_length=16,
    embed_dim=24,
    num_layers=2,
    attention=Attention(num_heads=3, bias=True, output_bias=True),
    mlp=MLP(dim=96, bias=True),
    norm=Norm(kind="layer", bias=True),
    stem=Stem(positions="learned"),
    tied=True,
)
LLAMA = Transformer(
    vocab_size=40,
    max_length=16,
    embed_dim=24,
    num_layers=2,
    attention=Attention(num_heads=4, num_kv_heads=2, head_dim=8, rotary=True, rope_theta=500000.0),
    mlp=MLP(dim=40, activation="swiglu"),
)


def gpt2_tree(of):
    """Our tree from transformers' tensors; GPT-2 stores its matrices [in, out] and fuses query, key and value."""

    def layers(name, shape=None, part=None):
        found = [of(f"transformer.h.{i}.{name}") for i in range(2)]
        found = [f if part is None else np.split(f, 3, axis=-1)[part] for f in found]
        return np.stack([f if shape is None else f.reshape(shape) for f in found])

    def norm(name):
        return {"scale": layers(f"{name}.weight"), "bias": layers(f"{name}.bias")}

    attention = {"output": layers("attn.c_proj.weight"), "output_bias": layers("attn.c_proj.bias")}
    for part, name in enumerate(("query", "key", "value")):
        attention[name] = layers("attn.c_attn.weight", part=part)
        attention[f"{name}_bias"] = layers("attn.c_attn.bias", (3, 8), part)
    mlp = {
        "up": layers("mlp.c_fc.weight"),
        "up_bias": layers("mlp.c_fc.bias"),
        "down": layers("mlp.c_proj.weight"),
        "down_bias": layers("mlp.c_proj.bias"),
    }
    block = {"attention": attention, "mlp": mlp, "attention_norm": norm("ln_1"), "mlp_norm": norm("ln_2")}
    return {
        "stem": {"tokens": of("transformer.wte.weight"), "positions": of("transformer.wpe.weight")},
        "stack": {"0": {"block": block}},
        "norm": {"scale": of("transformer.ln_f.weight"), "bias": of("transformer.ln_f.bias")},
    }


def llama_tree(of):
    """Our tree from transformers' tensors, which are stored [out, in]."""

    def layers(name):
        return np.stack([np.asarray(of(f"model.layers.{i}.{name}.weight")).T for i in range(2)])

    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    block = {
        "attention": {ours: layers(f"self_attn.{theirs}") for ours, theirs in names.items()},
        "mlp": {name: layers(f"mlp.{name}_proj") for name in ("gate", "up", "down")},
        "attention_norm": {"scale": layers("input_layernorm")},
        "mlp_norm": {"scale": layers("post_attention_layernorm")},
    }
    return {
        "stem": {"tokens": of("model.embed_tokens.weight")},
        "stack": {"0": {"block": block}},
        "norm": {"scale": of("model.norm.weight")},
        "head": {"logits": of("lm_head.weight").T},
    }


@pytest.mark.parametrize(("name", "config", "tree"), [("gpt2", GPT2, gpt2_tree), ("llama", LLAMA, llama_tree)])
def test_logits_loss_and_gradients(name, config, tree):
    golden = np.load(GOLDEN)
    model = config.build()
    params = jax.tree.map(jnp.asarray, tree(lambda key: golden[f"{name}|weight|{key}"]))
    tokens = jnp.asarray(golden[f"{name}|tokens"], jnp.int32)

    def loss(params):
        logits = model.apply(params, {"tokens": tokens}, train=True)["logits"]
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1)
        return -jnp.mean(picked), logits

    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert relative(logits, golden[f"{name}|logits"]) < 1e-5
    assert relative(value, golden[f"{name}|loss"]) < 1e-5

    expected = tree(lambda key: golden[f"{name}|gradient|{key}"])
    assert jax.tree.structure(grads) == jax.tree.structure(expected)
    largest = max(float(np.max(np.abs(g))) for g in jax.tree.leaves(expected))
    worst = jax.tree.map(lambda ours, theirs: float(np.max(np.abs(ours - theirs))), grads, expected)
    assert max(jax.tree.leaves(worst)) < 1e-5 * largest

    mask = jnp.asarray(golden[f"{name}|mask"], bool)
    padded = jax.jit(model.apply)(params, {"tokens": tokens, "mask": mask})["logits"]
    assert relative(padded[mask], golden[f"{name}|padded_logits"][np.asarray(mask)]) < 1e-5
