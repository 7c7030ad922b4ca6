"""Hugging Face directories without transformers: written and read back, on any mesh, refused where they are wrong."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxmodel import weights
from jaxmodel.config import replace
from jaxmodel.errors import InputError
from jaxmodel.interop import tensors as files
from jaxmodel.interop.huggingface import directory
from jaxmodel.interop.huggingface.families import FAMILIES
from jaxmodel.interop.huggingface.table import computes, read_config, write_config
from jaxmodel.loading import config_of, load
from jaxmodel.models.presets import PRESETS
from jaxmodel.sharding import make_mesh
from tests.contract import GPT, PATTERN, same
from tests.golden import families

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
DECODER = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
SLIDING = {**DECODER, "sliding_window": 4}
JSON = {  # the least that config.json must say
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "llama": DECODER,
    "mistral": SLIDING,
    "qwen2": {**SLIDING, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": DECODER,
    "gemma2": SLIDING,
    "gemma3_text": SLIDING,
    "bert": {**SIZES, "max_position_embeddings": 64},
    "vit": {**SIZES, "image_size": 8, "patch_size": 2},
}
JSON |= {  # or as transformers said it
    path.stem: {
        key: value
        for key, value in families.read(path).config.items()
        if key not in ("architectures", "model_type", "dtype", "transformers_version")
    }
    for path in families.FOLDER.glob("*.npz")
    if path.stem not in JSON
}
ARCHITECTURES = [(name, each) for name, family in FAMILIES.items() for each in family.heads]


def said(name, architecture=None, **more):
    return {"model_type": name, "architectures": architecture and [architecture], **JSON[name], **more}


def written(folder, name="llama", architecture=None, dtype="float32", **more):
    """(model, params) of a random model, which is in the folder."""
    config, architecture = read_config(FAMILIES[name], said(name, architecture, **more), "here")
    model = config.build()
    params = random(model, dtype)
    kept = {"huggingface": {"config": said(name, architecture, **more)}}
    directory.write(folder, model, params, info=kept, state=model.start())
    return model, params


def random(model, dtype="float32"):
    """Params without a compilation."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda each: jnp.asarray(rng.normal(size=each.shape) * 0.1, dtype), shapes)


def test_every_family_is_here():
    assert set(JSON) == set(FAMILIES)


@pytest.mark.parametrize(("name", "architecture"), ARCHITECTURES)
def test_what_is_written_is_read_back(name, architecture, tmp_path):
    """With the config.json that it came with, and with one made anew; byte for byte both times."""
    model, params = written(tmp_path / "a", name, architecture)
    loaded = load(tmp_path / "a")
    assert loaded.model.config == model.config == config_of(tmp_path / "a")
    assert same(loaded.params, params) and loaded.info["huggingface"]["architecture"] == architecture
    state = loaded.model_state
    directory.write(tmp_path / "b", loaded.model, loaded.params, info=loaded.info, state=state)
    directory.write(tmp_path / "c", loaded.model, loaded.params, state=state, family=name)
    weights_a, *others = ((tmp_path / each / "model.safetensors").read_bytes() for each in "abc")
    assert all(each == weights_a for each in others)
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == {
        **said(name, architecture), "dtype": "float32"
    }  # fmt: skip
    found = directory.describe(tmp_path / "c")
    assert (found.family.name, found.architecture) == (name, architecture)
    assert computes(found.config) == computes(model.config)


def test_no_two_families_are_taken_for_one_another():
    """A family's own config is written as that family, whatever comes before it in the table."""
    for name, architecture in ARCHITECTURES:
        config, _ = read_config(FAMILIES[name], said(name, architecture), "here")
        again = write_config(FAMILIES[name], config)
        assert again is not None and again["architectures"] == [architecture]


def test_heads_of_a_recurrence_that_contradict_its_width_are_refused():
    config, _ = read_config(FAMILIES["mamba2"], said("mamba2"), "here")
    wide = config.recurrence.num_heads * config.recurrence.head_dim
    with pytest.raises(InputError, match=f"num_heads x head_dim is {2 * wide}: take the config.json"):
        read_config(FAMILIES["mamba2"], said("mamba2", head_dim=2 * config.recurrence.head_dim), "here")
    odd = replace(config, {"recurrence.head_dim": config.recurrence.head_dim + 1})
    assert write_config(FAMILIES["mamba2"], odd) is None  # no whole `expand` says it


def test_only_families_that_turn_a_part_of_a_head_say_so(tmp_path):
    """transformers' llama turns all of it, whatever its config.json says: phi3 computes the same, and does not."""
    config = replace(read_config(FAMILIES["llama"], said("llama"), "here")[0], {"attention.rope.fraction": 0.5})
    assert write_config(FAMILIES["llama"], config) is None
    directory.write(tmp_path, config.build(), random(config.build()))
    written_as = json.loads((tmp_path / "config.json").read_text())
    assert written_as["model_type"] == "phi3"
    assert written_as["rope_parameters"]["partial_rotary_factor"] == 0.5
    ignoring = said("llama", rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5})
    assert read_config(FAMILIES["llama"], ignoring, "here")[0].attention.rope.fraction == 1.0


def test_how_long_texts_were_may_stand_beside_positions():
    """As phi3 has it, and as transformers takes it from there for every kind that wants it; else it is `max_length`."""
    yarn = said("phi3", rope_parameters={"rope_type": "yarn", "factor": 2.0}, original_max_position_embeddings=8)
    assert read_config(FAMILIES["phi3"], yarn, "here")[0].attention.rope.original_length == 8
    del yarn["original_max_position_embeddings"]
    config, _ = read_config(FAMILIES["phi3"], yarn, "here")
    again = write_config(FAMILIES["phi3"], config)
    assert again is not None and again["original_max_position_embeddings"] == config.max_length


def test_weights_go_to_any_mesh_and_type(tmp_path):
    _, params = written(tmp_path, "qwen3", vocab_size=64, dtype="bfloat16")
    mesh = make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
    sharded = load(tmp_path, mesh=mesh)
    assert same(sharded.params, params) and sharded.params["stem"]["tokens"].dtype == jnp.bfloat16
    shard = sharded.params["stack"]["0"]["block"]["mlp"]["up"].addressable_shards[0]
    assert shard.data.shape == (3, 32 // 4, 48 // 2)
    wide = load(tmp_path, dtype="float32")
    assert same(wide.params, weights.cast(params, "float32"))
    tokens = {"tokens": jnp.arange(8, dtype=jnp.int32)[None]}
    narrow = load(tmp_path)
    near = narrow.model.apply(narrow.params, tokens)["logits"]
    np.testing.assert_allclose(near, wide.model.apply(wide.params, tokens)["logits"], rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="dtype=float64: choose one of float32, bfloat16, float16"):
        load(tmp_path, dtype="float64")


@pytest.mark.parametrize("name", ["gpt2", "llama3-8b", "gpt-oss-20b", "tiny"])
def test_our_own_presets(name, tmp_path):
    """Those that transformers has are written as such; the others are refused, and nothing is written."""
    config = replace(
        PRESETS[name], {"vocab_size": 64, "embed_dim": 32, "num_layers": 2, "max_length": 32, "mlp.dim": 48}
    )
    config = replace(config, {"attention.num_heads": 4, "attention.num_kv_heads": None})
    model = config.build()
    params = model.init(jax.random.key(0))
    if name == "tiny":
        with pytest.raises(InputError, match=r"no family of transformers .*: there are gpt2, llama"):
            directory.write(tmp_path / "out", model, params)
        assert not (tmp_path / "out").exists()
        return
    directory.write(tmp_path / "out", model, params)
    assert same(load(tmp_path / "out").params, params)


def test_experts_are_written_whatever_only_training_has():
    """Losses of routers, and an MLP that no layer has, are nothing that a family says."""
    model, _ = read_config(FAMILIES["mixtral"], said("mixtral"), "config.json")
    ours = replace(model, {"moe.balance_loss": 0.5, "moe.z_loss": 0.0, "mlp.dim": model.mlp.dim + 1})
    again = write_config(FAMILIES["mixtral"], ours)
    assert again is not None and again["intermediate_size"] == model.moe.dim
    assert write_config(FAMILIES["mixtral"], replace(ours, {"moe.normalize": False})) is None
    assert write_config(FAMILIES["mixtral"], replace(ours, {"moe": None})) is None


def test_adapted_and_quantized_weights_are_refused(tmp_path):
    model = GPT.build()
    params = weights.quantize(model.init(jax.random.key(0)), model.layout)
    with pytest.raises(
        InputError, match="is Quantized, transformers wants plain weights: merge adapters and dequantize"
    ):
        directory.write(tmp_path, model, params)
    model = PATTERN.build()
    with pytest.raises(InputError, match="no family of transformers"):
        directory.write(tmp_path, model, random(model))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "lama"}, r"config.json: model_type lama is not supported: there are llama, "),
        ({"architectures": ["LlamaForQuestionAnswering"]}, "architecture LlamaForQuestionAnswering is not supported: "
         "of llama there are LlamaForCausalLM, LlamaModel"),
        ({"pretraining_tp": 2}, "pretraining_tp=2 is not supported: only pretraining_tp=1 is"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config says that the weights are mxfp4, "
         "which is not supported: load them with transformers and its option dequantize=True"),
        ({"hidden_size": None}, None),
        ({"hidden_act": "gelu_10"}, "hidden_act='gelu_10' is not supported"),
        ({"num_attention_heads": 3}, "num_heads=3 is no multiple of model.attention.num_kv_heads=2"),
        ({"rope_scaling": {"type": "su"}}, "rope_type su: there are default, linear"),
        ({"rope_parameters": {"rope_type": "linear"}}, "lacks factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "x"}}, "factor"),
    ],
)  # fmt: skip
def test_a_config_that_is_not_ours_is_refused(changes, words, tmp_path):
    written(tmp_path)
    path = tmp_path / "config.json"
    found = json.loads(path.read_text()) | changes
    if words is None:
        del found["hidden_size"]
        words = "config.json lacks hidden_size: take the config.json that came with the weights"
    path.write_text(json.dumps(found))
    with pytest.raises(InputError, match=words) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_tensors_that_do_not_fit_are_named_all_of_them(tmp_path):
    written(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 2, "vocab_size": 65}))
    with pytest.raises(InputError) as error:
        load(tmp_path)
    words = str(error.value)
    assert "model.embed_tokens.weight is [64, 32], not [65, 32]" in words
    assert "lm_head.weight is [64, 32], not [65, 32]" in words
    assert "model.layers.2.mlp.up_proj.weight [48, 32] is unexpected" in words
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 4, "vocab_size": 64}))
    with pytest.raises(InputError, match=r"model.layers.3.mlp.up_proj.weight \[48, 32\] is missing"):
        load(tmp_path)


def test_names_without_the_prefix_of_their_body_are_known(tmp_path):
    """As published checkpoints of GPT-2 and of sentence encoders have them; and buffers of old ones are left alone."""
    _, params = written(tmp_path, "gpt2", "GPT2LMHeadModel")
    tensors = {name.removeprefix("transformer."): each for name, each in files.open_weights(tmp_path).items()}
    parts = [files.Tensor(name, each.dtype, each.shape, each.view) for name, each in tensors.items()]
    old = np.ones((1, 1, 64, 64), np.float32)
    parts.append(files.Tensor("h.0.attn.bias", old.dtype, old.shape, lambda: old))
    files.write_weights(tmp_path / "old", parts)
    (tmp_path / "old" / "config.json").write_text((tmp_path / "config.json").read_text())
    assert same(load(tmp_path / "old").params, params)


def test_pickles_are_refused(tmp_path):
    written(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin, a pickle, which can run code"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "older"),
    [
        ("bert", {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}),
        ("wav2vec2", {f"parametrizations.weight.original{i}": f"weight_{w}" for i, w in enumerate("gv")}),
    ],
)
def test_names_of_older_checkpoints_are_known(name, older, tmp_path):
    golden = families.read(families.FOLDER / f"{name}.npz")
    families.write_directory(tmp_path, golden)
    now = load(tmp_path).params
    weights_file = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(weights_file)
    for after, before in older.items():
        assert any(after in key for key in tensors)
        tensors = {key.replace(after, before): tensor for key, tensor in tensors.items()}
    safetensors.numpy.save_file(tensors, weights_file, {"format": "pt"})
    assert same(load(tmp_path).params, now)
