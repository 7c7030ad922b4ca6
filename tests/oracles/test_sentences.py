"""Sentence encoders with real weights: transformers' hidden values, pooled as sentence-transformers does."""

import json

import jax
import numpy as np
import safetensors.numpy
import torch
import transformers

from jaxmodel.interop.huggingface import directory
from jaxmodel.loading import load
from tests import minilm


@minilm.needed
def test_minilm_agrees_and_is_written_back(tmp_path):
    loaded = load(minilm.DIRECTORY)
    assert loaded.tokenizer is not None
    ids = [loaded.tokenizer.encode_input(text) for text in minilm.SENTENCES]
    length = max(map(len, ids))
    tokens = np.stack([np.pad(each, (0, length - len(each))) for each in ids])
    mask = np.arange(length) < np.array([[len(each)] for each in ids])
    ours = jax.jit(loaded.model.apply)(loaded.params, {"tokens": tokens, "mask": mask})

    directory.write(tmp_path, loaded.model, loaded.params, loaded.tokenizer, loaded.info)
    for folder in (minilm.DIRECTORY, tmp_path):
        theirs, said = transformers.BertModel.from_pretrained(folder, output_loading_info=True)
        assert not said["missing_keys"] and not said["mismatched_keys"]
        given = {"input_ids": torch.as_tensor(tokens).long(), "attention_mask": torch.as_tensor(mask).long()}
        with torch.no_grad():
            hidden = theirs.eval()(**given).last_hidden_state.numpy()
        near = np.max(np.abs(np.asarray(ours["hidden"]) - hidden)[mask])
        assert near < 1e-5 * np.max(np.abs(hidden[mask]))
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        assert np.max(np.abs(np.asarray(ours["embedding"]) - mean)) < 1e-5 * np.max(np.abs(mean))

    was, found = (safetensors.numpy.load_file(each / "model.safetensors") for each in (minilm.DIRECTORY, tmp_path))
    assert set(was) - set(found) == {"embeddings.position_ids"}
    assert all(np.array_equal(was[name], each) and was[name].dtype == each.dtype for name, each in found.items())
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (minilm.DIRECTORY / name).read_bytes()
    was = json.loads((minilm.DIRECTORY / "config.json").read_text())
    assert json.loads((tmp_path / "config.json").read_text()) == {**was, "dtype": "float32"}
