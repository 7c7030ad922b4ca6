"""A path is enough: config, types of weights and tokenizer come from the checkpoint."""

import re
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tensorstore

from jaxmodel import weights
from jaxmodel.checkpoint import Checkpointer
from jaxmodel.config import replace, to_dict
from jaxmodel.data.tokenizer import ByteTokenizer, train_bpe
from jaxmodel.errors import InputError
from jaxmodel.loading import READERS, Loaded, Reader, config_of, load
from jaxmodel.model import Model, chain, from_function, frozen
from jaxmodel.sharding import Partitioning, make_mesh
from jaxmodel.train import TrainState
from tests.contract import GPT, VOCAB, batch_of, built, params_of, same
from tests.test_checkpoint import equal, filled, saved, silent, state_of, tiny


def save(workdir: Path, model: Model, state: TrainState, **options) -> Path:
    with Checkpointer(workdir, model, **options) as checkpointer:
        checkpointer.save(5, state)
    return workdir


# Law 4
@pytest.mark.parametrize("kind", ["int8", "int4+lora"])
def test_what_is_loaded_computes_what_was_saved(tmp_path, kind):
    model = built("gpt")
    params = weights.quantize(params_of("gpt"), model.layout, kind[:4])
    if "lora" in kind:
        params = weights.lora(params, model.layout, rank=2, key=jax.random.key(1))
    batch = {"tokens": batch_of("gpt")["tokens"]}
    wanted = jax.jit(model.apply)(params, batch)["logits"]
    loaded = load(save(tmp_path, model, TrainState(jnp.int32(5), params, (), {})), log=silent)
    assert loaded.model.config == GPT and loaded.step == 5
    assert equal(loaded.params, params)
    assert same(jax.jit(loaded.model.apply)(loaded.params, batch)["logits"], wanted)


def test_a_workdir_its_checkpoints_and_a_step_will_do_wherever_they_are(tmp_path, monkeypatch):
    model = tiny()[0]
    folder = saved(tmp_path / "run", 3, 4)
    shutil.copytree(folder, tmp_path / "elsewhere")
    shutil.copytree(folder / "3", tmp_path / "best")
    monkeypatch.chdir(tmp_path)
    for path, step in (("run", 4), (folder, 4), ("elsewhere", 4), ("run/checkpoints/3", 3), ("best", 3)):
        loaded = load(path, model=model, log=silent)
        assert loaded.step == step and equal(loaded.params, tiny(step)[1].params)
        assert equal(loaded.model_state, tiny(step)[1].model_state)


@pytest.mark.parametrize("name, kind", [("gpt", "int4+lora"), ("conv", "dense")])
def test_onto_a_mesh(tmp_path, name, kind):
    model, state = built(name), state_of(name, kind)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    loaded = load(save(tmp_path, model, state), mesh=mesh, log=silent)
    assert equal((loaded.params, loaded.model_state), (state.params, state.model_state))
    wanted = Partitioning(mesh).shardings(model.layout, state.params)
    assert jax.tree.all(jax.tree.map(lambda array, where: array.sharding == where, loaded.params, wanted))
    everywhere = [array.sharding for array in jax.tree.leaves(loaded.model_state)]
    assert everywhere == [Partitioning(mesh).replicated()] * len(everywhere)


def test_a_mesh_that_does_not_divide_the_weights_is_told(tmp_path):
    workdir = save(tmp_path, built("conv"), state_of("conv", "dense"))
    with pytest.raises(InputError, match=r"mesh\.fsdp=3 does not divide filters"):
        load(workdir, mesh=make_mesh({"fsdp": 3}, jax.devices()[:3]))


@pytest.mark.parametrize(
    "tokenizer", [ByteTokenizer(), train_bpe(["ab ab abc"] * 9, 260), None], ids=["byte", "bpe", "none"]
)
def test_the_tokenizer_comes_along(tmp_path, tokenizer):
    model, state = tiny(1)
    found = load(save(tmp_path, model, state, fitted=tokenizer), model=model).tokenizer
    if tokenizer is None:
        assert found is None
    else:
        assert found is not None and list(found.encode("abc ab")) == list(tokenizer.encode("abc ab"))


def test_compositions_are_built_again(tmp_path):
    model = chain(body=frozen(built("gpt")), head=built("gpt"))
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = TrainState(jnp.int32(1), filled(params), (), {})
    loaded = load(save(tmp_path, model, state, info={"task": "test"}), log=silent)
    assert loaded.model.config == model.config and loaded.model.layout == model.layout
    assert equal(loaded.params, state.params) and loaded.info == {"task": "test"}


def test_a_model_made_from_code_must_be_passed(tmp_path):
    saved(tmp_path, 1)
    words = r"the model \(function\) was made from code, which no checkpoint holds: make it again and pass it"
    with pytest.raises(InputError, match=words):
        load(tmp_path)
    model = built("nnx")
    state = state_of("nnx", "dense")
    loaded = load(save(tmp_path / "nnx", model, state), model=model)
    assert loaded.model is model and equal((loaded.params, loaded.model_state), (state.params, state.model_state))


def test_where_nothing_is_all_that_was_looked_for_is_said(tmp_path):
    with pytest.raises(InputError, match=rf"^{re.escape(str(tmp_path / 'nowhere'))}: there is no such folder$"):
        load(tmp_path / "nowhere")
    kinds = (
        "an export (forward.stablehlo)",
        "a step (model.json)",
        "a workdir (checkpoints/)",
        "a Hugging Face directory (config.json)",
    )
    looked = f"holds no model: looked for {re.escape('; '.join(kinds))}; found"
    with pytest.raises(InputError, match=rf"{looked} nothing$"):
        load(tmp_path)
    for name in "jihgfedcba":
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=rf"{looked} a/, b/, c/, d/, e/, f/, g/, h/, …$"):
        load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=rf"{looked} a file$"):
        load(tmp_path / "file")
    (tmp_path / "checkpoints" / "3.saving").mkdir(parents=True)
    lines = []
    with pytest.raises(InputError, match=r"holds no committed step: looked for .*checkpoints/STEP/manifest\.json$"):
        load(tmp_path, log=lines.append)
    assert len(lines) == 1 and lines[0].endswith("step 3 is not committed (it has no manifest.json); there is no other")


def test_another_kind_of_thing_is_another_row(tmp_path, monkeypatch):
    there = Loaded(tiny()[0], {}, {}, None, 0, {})
    row = Reader(
        "a pickle (model.pkl)",
        lambda path: (path / "model.pkl").exists(),
        lambda path, request: there,
        lambda path: to_dict(GPT),
    )
    monkeypatch.setattr(sys.modules[load.__module__], "READERS", [row, *READERS])
    with pytest.raises(InputError, match=r"looked for a pickle \(model\.pkl\); an export"):
        load(tmp_path)
    (tmp_path / "model.pkl").touch()
    assert load(tmp_path) is there and config_of(tmp_path) == GPT


def test_a_config_is_read_without_the_weights(tmp_path):
    workdir = save(tmp_path / "run", built("gpt"), state_of("gpt", "dense"))
    step = workdir / "checkpoints" / "5"
    for path in (workdir, workdir / "checkpoints", step):
        assert config_of(path) == GPT
    shutil.rmtree(step / "weights")
    assert config_of(step) == GPT
    with pytest.raises(InputError, match=r"run holds no whole step: looked for .*checkpoints/STEP/manifest"):
        config_of(workdir)
    with pytest.raises(InputError, match=r"nowhere: there is no such folder"):
        config_of(tmp_path / "nowhere")
    saved(tmp_path / "code", 1)
    with pytest.raises(InputError, match=r"the model \(function\) was made from code"):
        config_of(tmp_path / "code")


def test_another_model_may_take_the_same_weights(tmp_path):
    state = state_of("gpt", "int4+lora")
    workdir = save(tmp_path, built("gpt"), state)
    other = replace(GPT, {"dropout": 0.25, "execution.remat": True, "attention.window": 3}).build()
    loaded = load(workdir, model=other, log=silent)
    assert loaded.model is other and equal(loaded.params, state.params)
    larger = replace(GPT, {"vocab_size": VOCAB + 1}).build()
    words = (
        rf"stem/tokens: \[{VOCAB}, {GPT.embed_dim}\] in the checkpoint, "
        rf"\[{VOCAB + 1}, {GPT.embed_dim}\] in the model.*ask for a model whose weights have the shapes"
    )
    with pytest.raises(InputError, match=words):
        load(workdir, model=larger, log=silent)


# A part of it


def bytes_read() -> int:
    """That this process has read from files through TensorStore, which Orbax reads with."""
    found = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(each["values"][0]["value"] for each in found)


@pytest.mark.parametrize("select", ["body/stem/*", "body/stack/0/block/mlp/up", "head/*"])
@pytest.mark.parametrize("on_mesh", [False, True])
def test_a_part_of_it_of_any_type_of_weights(tmp_path, select, on_mesh):
    model = chain(body=built("gpt"), head=built("conv"))
    params = {"body": state_of("gpt", "int4+lora").params, "head": state_of("conv", "dense").params}
    statistics = {"head": state_of("conv", "dense").model_state}
    workdir = save(tmp_path, model, TrainState(jnp.int32(1), params, (), statistics))
    mesh = make_mesh({"fsdp": 8}) if on_mesh else None
    loaded = load(workdir, select=select, mesh=mesh, log=silent)
    part, whole = loaded.params, params
    for name in [name for name in select.split("/") if name != "*"]:
        assert list(part) == [name]  # and nothing beside it
        part, whole = part[name], whole[name]
    assert equal(part, whole)
    assert equal(loaded.model_state, statistics if select == "head/*" else {})


def test_a_part_costs_the_bytes_of_that_part(tmp_path):
    large = 1 << 20
    model = from_function(
        lambda key: {"stem": jnp.ones(64), "stack": (jnp.ones((2, large)), jnp.ones(2))}, lambda params, batch: {}
    )
    params = model.init(jax.random.key(0))
    workdir = save(tmp_path, model, TrainState(jnp.int32(1), params, (), {}))
    before = bytes_read()
    assert equal(load(workdir, model=model, select="stem").params, {"stem": params["stem"]})
    part = bytes_read() - before
    assert equal(load(workdir, model=model, select="stack/1").params, {"stack": (None, params["stack"][1])})
    assert equal(load(workdir, model=model).params, params)
    assert 0 < part < large / 8 < 8 * large < bytes_read() - before


def test_a_part_needs_only_that_part_to_be_alike(tmp_path):
    workdir = save(
        tmp_path,
        chain(body=built("gpt"), head=built("conv")),
        composed := TrainState(
            jnp.int32(1),
            {"body": params_of("gpt"), "head": params_of("conv")},
            (),
            {"head": state_of("conv", "dense").model_state},
        ),
    )
    other = chain(body=built("gpt"), top=built("perceptron"))
    loaded = load(workdir, model=other, select="body/*", log=silent)
    assert equal(loaded.params, {"body": composed.params["body"]}) and loaded.model_state == {}
    with pytest.raises(InputError, match=r"top/hidden0: not in the checkpoint"):
        load(workdir, model=other, select="top/*", log=silent)
    with pytest.raises(InputError, match=r"select='nothing/\*' matches no weight: this model has body/"):
        load(workdir, select="nothing/*", log=silent)
