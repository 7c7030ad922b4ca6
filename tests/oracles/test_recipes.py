"""`python -m recipes.export --format=huggingface`: transformers itself runs what was written."""

import json

import numpy as np
import pytest
import torch
import transformers

from jaxmodel.interop import proof
from jaxmodel.loading import load
from recipes import export
from recipes._flags import run
from tests.oracles.harness import Case, made, text
from tests.saved import language_model


def exported(checkpoint, output, capsys):
    flags = [f"--checkpoint={checkpoint}", "--format=huggingface", f"--output={output}"]
    code = run(export.main, export.COMMAND, ["export", *flags])
    out, err = capsys.readouterr()
    assert (code, err) == (0, ""), err  # nor does transformers warn of anything
    told = json.loads((output / "export.json").read_text())
    assert 0 <= told["max_deviation"] < 1e-5 and told["consumer"] in out
    return told


def test_a_run_is_what_transformers_runs(tmp_path, capsys):
    workdir = language_model(tmp_path / "run")
    told = exported(workdir, tmp_path / "export", capsys)
    assert told["consumer"] == (
        f"GPT2LMHeadModel in a separate process, transformers {transformers.__version__}, torch {torch.__version__}"
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    tokens = text(model.config.vocab_size)["tokens"]
    with torch.no_grad():
        theirs = model(input_ids=torch.as_tensor(tokens).long()).logits.numpy()
    ours = load(workdir)
    expected = np.asarray(ours.model.apply(ours.params, {"tokens": tokens})["logits"])
    assert np.max(np.abs(theirs - expected)) < 1e-5 * np.max(np.abs(expected))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    assert tokenizer("Document 3", add_special_tokens=False)["input_ids"] == list(b"Document 3")
    assert tokenizer.eos_token_id == model.config.eos_token_id


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CASES = [
    Case("a classifier, bfloat16", "llama", "LlamaForSequenceClassification", {**SMALL, "vocab_size": 61}, "bfloat16"),
    Case("the body", "bert", "BertModel", {**SMALL, "vocab_size": 61}),
    Case("images", "vit", "ViTForImageClassification", {**SMALL, "image_size": 16, "patch_size": 8}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_directory_of_theirs(case, tmp_path, capsys):
    made(case).to(getattr(torch, case.dtype)).save_pretrained(tmp_path / "theirs")
    capsys.readouterr()
    assert exported(tmp_path / "theirs", tmp_path / "export", capsys)["consumer"].startswith(case.architecture)


def test_other_tensors_are_found_out(tmp_path):
    """The proof fails where the directory does not hold the model that it is said to hold."""
    case = CASES[1]
    made(case).save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    stem = loaded.params["stem"]
    params = {**loaded.params, "stem": {**stem, "tokens": stem["tokens"][::-1]}}
    with pytest.raises(RuntimeError, match="of transformers deviate by"):
        proof.prove_transformers(proof.Subject(tmp_path / "theirs", loaded.model, params))
