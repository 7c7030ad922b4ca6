"""Old checkpoints still load: a golden one of every schema before this one."""

import dataclasses
import json
import shutil

import jax
import pytest

from jaxmodel import checkpoint
from jaxmodel.checkpoint.migrations import MIGRATIONS, SCHEMA, Migration, migrate
from jaxmodel.config import from_dict, replace, to_dict
from jaxmodel.data.tokenizer import ByteTokenizer
from jaxmodel.errors import InputError
from jaxmodel.loading import load
from tests.contract import CAUSAL
from tests.golden import make_checkpoints as golden
from tests.test_checkpoint import equal, silent

OLDER = range(1, SCHEMA)


def test_every_older_schema_has_a_migration_and_a_golden_checkpoint():
    assert set(MIGRATIONS) == set(OLDER) and OLDER
    for schema in OLDER:
        folder = golden.HERE / f"schema{schema}" / "checkpoints" / str(golden.STEP)
        assert json.loads((folder / "model.json").read_text())["versions"]["schema"] == schema
        assert checkpoint.damage(folder) is None
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 60_000


@pytest.mark.parametrize("schema", OLDER)
def test_a_golden_checkpoint_loads(schema):
    loaded = load(golden.HERE / f"schema{schema}", log=silent)
    wanted = golden.training_state(golden.CONFIG.build())
    assert loaded.model.config == golden.CONFIG and loaded.step == golden.STEP
    assert equal(loaded.params, wanted.params) and loaded.model_state == {}
    assert isinstance(loaded.tokenizer, ByteTokenizer) and loaded.info == {"task": "language_model"}


@pytest.mark.parametrize("schema", OLDER)
def test_a_run_goes_on_from_a_golden_checkpoint(schema, tmp_path):
    shutil.copytree(golden.HERE / f"schema{schema}", tmp_path, dirs_exist_ok=True)
    model = golden.CONFIG.build()
    wanted = golden.training_state(model)
    with checkpoint.Checkpointer(tmp_path, model, log=silent) as checkpointer:
        state = checkpointer.restore(jax.tree.map(jax.numpy.zeros_like, wanted))
        assert equal(state, wanted)
        checkpointer.save(golden.STEP + 1, state)
    names = [
        set(checkpoint.read_record(tmp_path / "checkpoints" / str(step)).stored.values())
        for step in checkpoint.steps(tmp_path / "checkpoints")
    ]
    old = "attn" if schema == 1 else "attention"
    assert f"params/stack/0/block/{old}/query" in names[0] and "params/stack/0/block/attention/query" in names[1]


def test_schema_1_changes_only_the_attention_of_blocks():
    _, path = migrate({}, 1)
    assert path("opt_state/mean/stack/3/local/attn/key") == "opt_state/mean/stack/3/local/attention/key"
    for name in ("params/attn/stack", "params/stack/0/block/mlp/attn", "params/stack/0/attn/attn_norm", "step"):
        assert path(name) == name


def test_schema_2_had_no_stem_and_no_head():
    old = to_dict(CAUSAL["pattern"])
    wanted = replace(CAUSAL["pattern"], {"stem.norm": True, "stem.positions": "learned", "head.bias": True})
    for name in ("stem", "head", "pool", "images"):
        del old[name]
    old |= {"embed_norm": True, "learned_positions": True, "head_bias": True, "logit_softcap": 30.0}
    old["attention"]["qk_norm"] = True
    old["variants"][0]["overrides"].append(["attention.qk_norm", False])
    chained = {"type": "Chain", "parts": [["body", old]]}
    found = from_dict(migrate({"config": chained}, 2)[0]["config"])
    (_, transformer), variants = found.parts[0], wanted.variants
    assert transformer.variants[0].overrides == (*variants[0].overrides, ("attention.qk_norm", "none"))
    assert transformer == dataclasses.replace(wanted, variants=transformer.variants)


def test_migrations_follow_one_another(monkeypatch):
    monkeypatch.setitem(
        MIGRATIONS, SCHEMA, Migration(lambda path: path + "2", lambda data: data | {"a": data["a"] * 2})
    )
    monkeypatch.setitem(
        MIGRATIONS, SCHEMA + 1, Migration(lambda path: path + "3", lambda data: data | {"b": data["a"]})
    )
    monkeypatch.setattr("jaxmodel.checkpoint.migrations.SCHEMA", SCHEMA + 2)
    data, path = migrate({"a": 1}, SCHEMA)
    assert data == {"a": 2, "b": 2} and path("x") == "x23"


def test_a_newer_schema_is_refused(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"versions": {"schema": SCHEMA + 1, "jaxmodel": "9.0"}}))
    with pytest.raises(InputError, match=rf"written by jaxmodel 9\.0 in schema {SCHEMA + 1};.*up to {SCHEMA}: upgrade"):
        checkpoint.read_record(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(InputError, match=r"model\.json cannot be read"):
        checkpoint.read_record(tmp_path)
