"""StableHLO exports: a process without jaxmodel computes, bit for bit, what the jitted model does."""

import functools
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from safetensors.numpy import load_file

from jaxmodel import weights
from jaxmodel.checkpoint import Checkpointer
from jaxmodel.config import replace
from jaxmodel.errors import InputError
from jaxmodel.generate import generate
from jaxmodel.interop import stablehlo
from jaxmodel.interop.proof import Subject, prove
from jaxmodel.interop.signature import cache_of, flat, inputs_of, limits_of, of_config
from jaxmodel.loading import load
from jaxmodel.model import Model, Outputs, chain, from_function, frozen
from jaxmodel.models.parts import Latent
from jaxmodel.nn.stack import unstack, unstack_layout
from jaxmodel.train import TrainState
from tests.contract import CAUSAL, DIM, GPT, PATTERN, batch_of, built, compiled, params_of, same

FEATURES = {"features": ("float32", ("batch", DIM))}


# "shallow" has one block of each of the pattern model's kinds, and so less to compile.
LATENT = {
    "latent": Latent(kv_rank=12, rope_dim=4, value_dim=8),
    "head_dim": 12,
    "num_kv_heads": None,
    "qk_norm": "none",
}
OTHERS = {
    "shallow": replace(PATTERN, {"num_layers": 2}),
    "bfloat16": replace(GPT, {"execution.dtype": "bfloat16"}),
    "latent": replace(GPT, {f"attention.{name}": value for name, value in {**LATENT, "rotary": True}.items()}),
}


@functools.cache
def model_of(name: str) -> Model:
    return OTHERS[name].build() if name in OTHERS else built(name)


def transformed(name: str, kind: str):
    layout = model_of(name).layout
    params = jax.jit(model_of(name).init)(jax.random.key(0))
    if "int" in kind:
        params = weights.quantize(params, layout, kind[:4])
    if "lora" in kind:
        params = weights.lora(params, layout, rank=2, key=jax.random.key(1), select="*")
        filled = jax.tree.map(lambda a: jnp.where(a == 0, 0.01, a) if a.dtype == jnp.float32 else a, params)
        params = filled  # updates that do something
    return params


def statistics_of(model: Model):
    """Batch statistics that are not those a model starts with."""
    return jax.tree.map(lambda a: a + 0.25, model.start())


def write(directory: Path, name: str, kind: str = "dense") -> Subject:
    directory.mkdir()
    model = model_of(name)
    params, state = transformed(name, kind), statistics_of(model)
    inputs = FEATURES if name in ("nnx", "function") else None
    stablehlo.write(directory, model, params, state, inputs=inputs, step=3, info={"task": "a"})
    return Subject(directory, model, params, state)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory) -> Subject:
    return write(tmp_path_factory.mktemp("exports") / "gpt", "gpt", "int8")


# Law 6
SOME = [("shallow", "int4"), ("conv", "int8"), ("function", "dense")]
REST = [
    [(name, kind) for kind in ("dense", "int8", "int4+lora")]
    for name in ("gpt", "pattern", "mixture", "reuse", "conv", "perceptron", "nnx", "bfloat16", "latent")
]


@pytest.mark.parametrize("table", [SOME, *(pytest.param(each, marks=pytest.mark.slow, id=each[0][0]) for each in REST)])
def test_another_process_computes_the_same_bits(tmp_path, table):
    subjects = [write(tmp_path / f"{name}-{kind}", name, kind) for name, kind in table]
    for proof in prove(*subjects):
        assert proof.max_deviation == 0
        assert proof.consumer == f"jax.export in a separate process, jax {jax.__version__}, cpu"


def test_other_weights_are_found_out(tmp_path):
    subject = write(tmp_path / "function", "function")
    params = subject.params | {"bias": subject.params["bias"] + 1e-6}
    with pytest.raises(RuntimeError, match=r"deviates from the jitted model by .* in call 0/logits"):
        prove(subject._replace(params=params))
    (tmp_path / "function" / "weights.safetensors").unlink()
    with pytest.raises(RuntimeError, match=r"(?s)consumer of the export failed.*weights\.safetensors"):
        prove(subject)


def test_programs_take_any_size_on_any_platform_and_hold_no_weights(gpt):
    names = {file.stem for file in gpt.directory.glob("*.stablehlo")}
    assert names == {"forward", "packed", "prefill", "decode"}
    for name in names:
        exported = jax_export.deserialize(bytearray((gpt.directory / f"{name}.stablehlo").read_bytes()))
        assert exported.platforms == ("cpu", "cuda", "tpu")
        held, batch, *cache = jax.tree.unflatten(exported.in_tree, exported.in_avals)[0]
        assert held.keys() == flat({"params": unstack(gpt.params, gpt.model.start(1, 1))}).keys()
        assert [str(d) for d in batch["tokens"].shape] == ["batch", "1" if name == "decode" else "length"]
        assert bool(cache) == (name in ("prefill", "decode"))
        shapes = re.findall(r"stablehlo.constant .*: tensor<([\dx]*)", exported.mlir_module())
        assert shapes and max(math.prod(map(int, filter(None, s.split("x")))) for s in shapes) <= DIM


def test_weights_are_packed(tmp_path):
    write(tmp_path / "e", "function", "int4")
    params = transformed("function", "int4")
    assert same(load_file(tmp_path / "e" / "weights.safetensors"), flat({"params": params}))
    assert params["up"].values.dtype == jnp.uint8
    assert (tmp_path / "e" / "weights.safetensors").stat().st_mode == (tmp_path / "e" / "model.json").stat().st_mode


def test_what_is_read_computes_what_was_written(gpt):
    loaded, model, start = load(gpt.directory), gpt.model, gpt.model.start(1, 1)
    params = unstack(gpt.params, start)
    assert loaded.model.config == model.config and loaded.step == 3
    assert loaded.info == {"format": "stablehlo", "task": "a"} and loaded.tokenizer is None
    assert same(loaded.params, params)
    assert loaded.model.layout == unstack_layout(model.layout, start)
    tokens = batch_of("gpt")["tokens"]
    segments = np.repeat([[1] * 6 + [2] * 7 + [0] * 3], len(tokens), axis=0).astype(np.int32)
    positions = np.where(segments == 2, np.arange(16) - 6, np.arange(16)).astype(np.int32)
    packed = {"tokens": tokens, "segments": segments, "positions": positions}
    for batch in ({"tokens": tokens}, {"tokens": tokens[:1, :5], "mask": tokens[:1, :5] > 9}, packed):
        found, want = (compiled(m.apply)(p, batch) for m, p in ((loaded.model, loaded.params), (model, params)))
        assert list(found.values) == ["logits"]
        assert jnp.array_equal(found["logits"], want["logits"])


@pytest.mark.parametrize("kind", [*(pytest.param(each, marks=pytest.mark.slow) for each in ("dense", "int8")), "int4"])
def test_an_export_generates_what_its_checkpoint_does(tmp_path, kind):
    """Token for token, drawn or the likeliest, past the window of the model's sliding layer."""
    subject = write(tmp_path / "export", "shallow", kind)
    with Checkpointer(tmp_path, subject.model) as checkpointer:
        checkpointer.save(3, TrainState(jnp.int32(3), subject.params, (), {}))
    exported, checkpoint = load(subject.directory), load(tmp_path)
    assert kind == "dense" or any(array.dtype in (jnp.int8, jnp.uint8) for array in jax.tree.leaves(exported.params))
    prompts = [[3, 1, 4], [1], [5, 9, 2, 6, 5, 3]]
    hows: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 0.9, "top_k": 40, "seed": 1}]
    for how in hows:
        found, want = (
            generate(held.model, held.params, prompts, max_new_tokens=12, **how) for held in (exported, checkpoint)
        )
        assert found == want and len({tuple(text) for text in want}) == len(prompts)


def test_what_an_export_refuses(gpt):
    model, params = (loaded := load(gpt.directory)).model, loaded.params
    tokens = jnp.zeros((1, 4), jnp.int32)
    cases = [
        (lambda: model.init(jax.random.key(0)), "cannot make new ones"),
        (lambda: model.apply(params, {"tokens": tokens}, train=True), "does not train"),
        (lambda: model.apply(params, {"tokens": jnp.zeros((1, 33), jnp.int32)}), "a length of 33 is more than the 32"),
        (lambda: model.start(1, 33), "a capacity of 33 is more than the 32"),
        (lambda: model.apply(params, {"mask": tokens > 0}), "tokens is missing: the model reads tokens int32"),
        (lambda: model.apply(params, {"tokens": tokens[0]}), r"tokens is int32\[4\], the model reads int32"),
        (lambda: model.apply(params, {"tokens": tokens / 2}), "tokens is float"),
        (lambda: model.apply(params, {"tokens": tokens, "mask": tokens[:, 1:] > 0}), "mask is bool.* make them"),
        (lambda: model.apply(params, {"tokens": tokens, "segments": tokens}), "lacks 'positions'"),
        (
            lambda: model.apply(params, {"tokens": tokens, "segments": tokens, "positions": tokens}, model.start(1, 8)),
            "one sequence a row",
        ),
    ]
    for call, words in cases:
        with pytest.raises(InputError, match=words):
            call()
    from jaxmodel.sharding import make_mesh

    with pytest.raises(InputError, match="without a mesh"):
        load(gpt.directory, mesh=make_mesh({"data": 8}))
    with pytest.raises(InputError, match="which is read whole: load it without select"):
        load(gpt.directory, select="stem/*")


def test_statistics_are_weights_of_the_export(tmp_path):
    subject = write(tmp_path / "conv", "conv")
    loaded = load(subject.directory)
    batch = batch_of("conv")
    found = jax.jit(loaded.model.apply)(loaded.params, batch, loaded.model_state)
    want = jax.jit(subject.model.apply)(subject.params, batch, subject.state)
    assert jnp.array_equal(found["logits"], want["logits"]) and same(found.state, loaded.model_state)
    assert same(loaded.model.start(), loaded.model_state)
    with pytest.raises(InputError, match="keeps batch statistics"):
        loaded.model.apply(loaded.params, batch)
    (tmp_path / "again").mkdir()
    with pytest.raises(InputError, match="keeps batch statistics"):
        stablehlo.write(tmp_path / "again", subject.model, subject.params)


def test_a_model_made_from_code_must_say_what_it_reads(tmp_path):
    with pytest.raises(InputError, match="function does not say what it reads: pass inputs="):
        stablehlo.write(tmp_path, built("function"), params_of("function"))
    loaded = load(write(tmp_path / "e", "function").directory)
    assert loaded.model.config == built("function").config
    batch = batch_of("function")
    want = jax.jit(built("function").apply)(params_of("function"), batch)["logits"]
    assert jnp.array_equal(jax.jit(loaded.model.apply)(loaded.params, batch)["logits"], want)


def test_what_is_damaged_or_newer_is_said(tmp_path):
    directory = write(tmp_path / "e", "function").directory

    def broken(name: str, change) -> Path:
        copy = tmp_path / name
        shutil.copytree(directory, copy)
        change(copy)
        return copy

    def newer(copy: Path) -> None:
        about = json.loads((copy / "model.json").read_text())
        (copy / "model.json").write_text(json.dumps(about | {"schema": stablehlo.SCHEMA + 1}))

    def flipped(copy: Path) -> None:
        data = bytearray((copy / "weights.safetensors").read_bytes())
        data[-1] ^= 1
        (copy / "weights.safetensors").write_bytes(data)

    for name, change, words in (
        ("newer", newer, "was exported by jaxmodel .*: upgrade"),
        ("torn", lambda copy: (copy / "model.json").write_text("{"), r"damaged export: model\.json: .*export again"),
        ("other", lambda copy: (copy / "model.json").write_text("{}"), "damaged export: model.json: 'schema'"),
        ("flipped", flipped, r"damaged export: weights\.safetensors is not as it was written; export again"),
        ("gone", lambda copy: (copy / "weights.safetensors").unlink(), "weights.safetensors is not as it was"),
    ):
        with pytest.raises(InputError, match=words):
            load(broken(name, change))


@pytest.mark.parametrize("name", CAUSAL)
def test_the_empty_cache_is_that_of_start(name):
    cache = cache_of(built(name))
    found = cache.empty({}, batch=2, capacity=16)
    started = built(name).start(2, 16)
    assert same(found, unstack(started, started))


@pytest.mark.parametrize("window", [30, 31, 32])
def test_a_window_almost_as_long_as_the_longest_cache(window):
    config = replace(PATTERN, {"num_layers": 2, "attention.window": window, "pattern": ("block",)})
    cache = cache_of(config.build())
    slots = {array.shape[1] for name, array in cache.arrays.items() if name.endswith("positions")}
    assert slots == ({30} if window == 30 else {"capacity"})
    started = config.build().start(2, 16)
    assert window == 30 or same(cache.empty({}, batch=2, capacity=16), unstack(started, started))


def test_a_wrapped_model_reads_what_its_base_reads():
    model = frozen(built("gpt"))
    assert inputs_of(model) == inputs_of(built("gpt")) and limits_of(model) == {"length": 32, "capacity": 32}


def test_the_first_part_reads_and_the_first_that_says_so_limits():
    front = from_function(lambda key: {}, lambda params, batch: {"tokens": batch["words"]}, name="front")
    model = frozen(chain(front, chain(frozen(built("pattern")), built("gpt"))))
    assert limits_of(model) == {"length": 32} and of_config(model.config, "vocab_size") == 64
    assert of_config(model.config, "widths") is None
    with pytest.raises(InputError, match="front does not say what it reads: pass inputs="):
        inputs_of(model)
    assert set(inputs_of(chain(built("conv"), front))) == {"images"}


def test_only_what_feeds_the_head_is_left_out():
    values = {"hidden": jnp.zeros(1), "embedding": jnp.zeros(1)}
    assert stablehlo.values_of(Outputs(values)).keys() == {"hidden", "embedding"}
    assert stablehlo.values_of(Outputs(values | {"logits": jnp.zeros(1)})).keys() == {"embedding", "logits"}
