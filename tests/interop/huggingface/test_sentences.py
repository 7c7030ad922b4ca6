"""Directories of sentence-transformers: pooled as modules.json says, written back; what is not known is named."""

import hashlib
import json

import jax
import numpy as np
import pytest

from jaxmodel.config import replace
from jaxmodel.errors import InputError
from jaxmodel.interop.huggingface import directory
from jaxmodel.loading import config_of, load
from jaxmodel.models.parts import Pool
from tests import minilm
from tests.contract import same
from tests.saved import huggingface

TOKENS = np.random.default_rng(0).integers(5, 190, (3, 7)).astype(np.int32)
MASK = np.arange(7) < np.array([[7], [4], [1]])
MODULES = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")


def sentences(folder, modules=MODULES, name="bert", architecture="BertModel", **pooling):
    """A directory with modules.json."""
    huggingface(folder, name, architecture, dim=32, n_layers=2, n_heads=4, hidden_dim=48)  # as DistilBERT says them
    types = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in modules]
    (folder / "modules.json").write_text(json.dumps([{"idx": i, **each} for i, each in enumerate(types)]))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    (folder / "1_Pooling").mkdir()
    said = {"word_embedding_dimension": 32, **pooling}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(said, indent=3))
    return folder


def embedded(loaded, **batch):
    return jax.jit(loaded.model.apply)(loaded.params, batch).values


@pytest.mark.parametrize(
    ("pooling", "kind"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_pooled_as_it_says_and_written_back(pooling, kind, tmp_path):
    """A text's own tokens alone count; a layer of BERT's own pool stays, though nothing reads it."""
    folder = sentences(tmp_path / "a", MODULES if kind != "max" else MODULES[:2], **pooling)
    loaded = load(folder)
    assert loaded.model.config == config_of(folder)
    assert loaded.model.config.pool == Pool(kind, normalize=kind != "max", spare=True)
    found = embedded(loaded, tokens=TOKENS, mask=MASK)
    hidden = np.asarray(found["hidden"])
    reduce = {
        "first": lambda rows: rows[0],
        "last": lambda rows: rows[-1],
        "mean": lambda rows: rows.mean(0),
        "max": lambda rows: rows.max(0),
    }[kind]
    expected = np.stack([reduce(row[real]) for row, real in zip(hidden, MASK, strict=True)])
    if kind != "max":
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found["embedding"], expected, rtol=1e-5, atol=1e-6)

    directory.write(tmp_path / "b", loaded.model, loaded.params, info=loaded.info)
    names = ("model.safetensors", "config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json")
    for name in names:
        assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes(), name


def test_other_pooling_is_written_anew(tmp_path):
    loaded = load(sentences(tmp_path / "a", pooling_mode_mean_tokens=True))
    changed = replace(loaded.model.config, {"pool.kind": "last", "pool.normalize": False}).build()
    directory.write(tmp_path / "b", changed, loaded.params, info=loaded.info)
    again = load(tmp_path / "b")
    assert again.model.config == changed.config and same(again.params, loaded.params)
    assert (tmp_path / "b" / "sentence_bert_config.json").exists()


def test_without_a_layer_of_its_own_and_whatever_architecture_is_named(tmp_path):
    """Of a masked language model the body alone is saved; its prefix, and its config.json, are as they were."""
    folder = sentences(tmp_path / "a", name="distilbert", architecture="DistilBertModel", pooling_mode="cls")
    path = folder / "config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "architectures": ["DistilBertForMaskedLM"]}))
    loaded = load(folder)
    assert loaded.model.config.pool == Pool("first", normalize=True) and loaded.model.config.head is None
    directory.write(tmp_path / "b", loaded.model, loaded.params, info=loaded.info)
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == said
    assert same(load(tmp_path / "b").params, loaded.params)


@pytest.mark.parametrize(
    ("modules", "pooling", "words"),
    [
        ((*MODULES[:2], ("Dense", "2_Dense")), {"pooling_mode": "mean"}, "Pooling, Dense is not supported: only"),
        ((("CLIPModel", ""),), {}, "CLIPModel is not supported: only Transformer, Pooling is, and perhaps Normalize"),
        ((("Transformer", "0_Transformer"), *MODULES[1:]), {"pooling_mode": "mean"}, "is in '0_Transformer'"),
        ((MODULES[0], ("Pooling", "1_Pool")), {}, "1_Pool/config.json is missing, which modules.json names"),
        (MODULES, {"pooling_mode_mean_sqrt_len_tokens": True}, "pooling_mode_mean_sqrt_len_tokens is not supported"),
        (MODULES, {"pooling_mode_weightedmean_tokens": True}, "pooling_mode_weightedmean_tokens is not supported"),
        (MODULES, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
         "pooling_mode_cls_token and pooling_mode_mean_tokens is not supported"),
        (MODULES, {}, "no pooling mode is not supported: one of cls_token, mean_tokens, max_tokens"),
        (MODULES, {"pooling_mode": "mean", "include_prompt": False}, "include_prompt=false is not supported"),
        (MODULES, {"pooling_mode": "mean", "word_embedding_dimension": 48}, "embeddings of 48 do not fit the model, "
         "which has 32"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(modules, pooling, words, tmp_path):
    sentences(tmp_path / "a", modules, **pooling)
    with pytest.raises(InputError) as error:
        load(tmp_path / "a")
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[", "{}", '[{"path": ""}]'])
def test_a_damaged_list_of_modules_is_named(text, tmp_path):
    sentences(tmp_path / "a", pooling_mode="mean")
    (tmp_path / "a" / "modules.json").write_text(text)
    with pytest.raises(InputError, match=r"modules\.json"):
        load(tmp_path / "a")


@minilm.needed
def test_minilm_gives_what_is_published():
    """all-MiniLM-L6-v2, whatever else is in the batch."""
    weights = (minilm.DIRECTORY / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest().startswith("53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fa")
    loaded = load(minilm.DIRECTORY)
    assert loaded.tokenizer is not None
    ids = [loaded.tokenizer.encode_input(text) for text in minilm.SENTENCES]
    tokens = np.stack([np.pad(each, (0, 16 - len(each))) for each in ids])
    mask = np.arange(16) < np.array([[len(each)] for each in ids])
    found = np.asarray(embedded(loaded, tokens=tokens, mask=mask)["embedding"])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found[0, :6], minilm.FIRST, atol=1e-6)
    np.testing.assert_allclose(found[0] @ found[1:].T, minilm.COSINES, atol=1e-5)
