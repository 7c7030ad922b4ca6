"""`python -m recipes.export`: from a run to an export that evaluates, generates and predicts like it."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmodel import export as exports
from jaxmodel.data.tokenizer import ByteTokenizer
from jaxmodel.errors import InputError
from jaxmodel.interop.huggingface import directory
from jaxmodel.interop.proof import Proof
from jaxmodel.loading import load
from recipes import eval as eval_recipe
from recipes import export as export_recipe
from recipes import generate as generate_recipe
from recipes import predict as predict_recipe
from recipes._flags import run
from tests.contract import batch_of
from tests.saved import classifier, language_model

RECIPES = {"eval": eval_recipe, "export": export_recipe, "generate": generate_recipe, "predict": predict_recipe}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a recipe in this process: name, arguments -> (exit code, stdout, stderr)."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.values["jax_compilation_cache_dir"])

    def call(recipe: str, *args: str):
        module = RECIPES[recipe]
        return run(module.main, module.COMMAND, [recipe, *args]), *capsys.readouterr()

    return call


@pytest.fixture
def unproved(monkeypatch):
    monkeypatch.setattr(exports, "prove", lambda *_: [Proof("nobody", 0.0)])


def test_a_language_model(call, workdir, tmp_path):
    output = tmp_path / "export"
    code, out, err = call(
        "export", f"--checkpoint={workdir}", "--quantize=int8", "--eval_batches=1000", f"--output={output}"
    )
    assert (code, err) == (0, "")
    told = json.loads((output / "export.json").read_text())
    assert (told["format"], told["quantize"], told["max_deviation"]) == ("stablehlo", "int8", 0.0)
    for part in (
        f"exporting step 5 of {workdir}",
        "weights: 0.0",
        "deviation from the jitted model: 0 (jax.export in a separate process, jax ",
        f"held-out perplexity: {told['perplexity']:.4f} (checkpoint: {told['checkpoint_perplexity']:.4f})",
        f"export: {output}\nnext: python -m recipes.generate --prompt='import ' --checkpoint={output}\n",
    ):
        assert part in out

    # What the recipes make of the export is what they make of the run, but for int8.
    for checkpoint, name in ((output, "perplexity"), (workdir, "checkpoint_perplexity")):
        assert call("eval", f"--checkpoint={checkpoint}", f"--output={tmp_path / 'e.json'}")[::2] == (0, "")
        found = json.loads((tmp_path / "e.json").read_text())
        assert found["perplexity"] == pytest.approx(told[name], rel=1e-5) and found["step"] == 5
    flags = ("--prompt=Document", "--max_new_tokens=5", "--temperature=0")
    texts = [call("generate", f"--checkpoint={path}", *flags) for path in (output, workdir)]
    assert [code for code, *_ in texts] == [0, 0] and texts[0][1].startswith("Document")

    refused = call("export", f"--checkpoint={output}", f"--output={tmp_path / 'again'}")
    assert refused[0] == 2 and "is an export: give the checkpoint that it was made from" in refused[2]


def test_a_classifier(call, tmp_path, unproved):
    workdir, output = classifier(tmp_path / "run"), tmp_path / "run" / "export"
    code, out, err = call("export", f"--checkpoint={workdir}", f"--output={output}")
    assert (code, err) == (0, "") and "perplexity" not in out
    assert f"next: python -m recipes.predict --input=batch.npz --output=out.npz --checkpoint={output}" in out
    np.savez(tmp_path / "batch.npz", images=batch_of("conv")["images"])
    found = []
    for path in (workdir, output):
        flags = (f"--checkpoint={path}", f"--input={tmp_path / 'batch.npz'}", f"--output={tmp_path / 'out.npz'}")
        assert call("predict", *flags)[::2] == (0, "")
        found.append(dict(np.load(tmp_path / "out.npz")))
    assert found[0].keys() - {"hidden"} == found[1].keys() == {"embedding", "logits"}
    for name in found[1]:
        np.testing.assert_array_equal(found[0][name], found[1][name])


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--group=16"], "--group=16 says how to quantize, and --quantize=none not to"),
        (["--quantize=int5"], "--quantize=int5: must be one of none, int8, int4"),
        (["--format=onnx"], "--format=onnx: must be one of stablehlo, huggingface"),
        (
            ["--format=huggingface", "--quantize=int8"],
            "--format=huggingface writes plain weights, and --quantize=int8 packed ones",
        ),
        (["--output=full"], "full is not empty and holds no export: name another directory, or empty it"),
        (["--format=huggingface", "--output=full"], "full is not empty and holds no export"),
        (["--checkpoint=nowhere"], "nowhere: there is no such folder"),
    ],
)
def test_what_cannot_be_is_one_line(call, workdir, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full", "file").touch()
    code, out, err = call("export", f"--checkpoint={workdir}", "--output=export", *flags)
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1
    assert os.listdir() == ["full"]


@pytest.fixture
def without_torch(monkeypatch, tmp_path):
    """In processes that start from here, torch cannot be imported, installed or not."""
    folder = tmp_path / "hidden"
    folder.mkdir()
    (folder / "torch.py").write_text("raise ImportError('there is no torch')")
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_a_hugging_face_directory(call, workdir, tmp_path, without_torch):
    output = tmp_path / "export"
    flags = (f"--checkpoint={workdir}", "--format=huggingface", f"--output={output}")
    for _ in range(2):  # an earlier export is replaced
        code, out, err = call("export", *flags)
        assert code == 0 and err.count("\n") == 1
        assert err.startswith("not proved") and "pip install torch transformers" in err
        assert f"export: {output}\nnext: python -m recipes.generate" in out
    assert sorted(os.listdir(tmp_path)) == ["export", "hidden"]
    told = json.loads((output / "export.json").read_text())
    assert told == {
        "format": "huggingface",
        "quantize": "none",
        "bytes": (output / "model.safetensors").stat().st_size,
        "consumer": None,
        "max_deviation": None,
    }
    config = json.loads((output / "config.json").read_text())
    separator = ByteTokenizer.separator_id
    assert config["architectures"] == ["GPT2LMHeadModel"] and "pad_token_id" not in config
    assert (config["bos_token_id"], config["eos_token_id"]) == (separator, separator)
    assert {"tokenizer.json", "tokenizer_config.json"} < set(os.listdir(output))

    ours, again = load(workdir), load(output)
    assert ours.tokenizer is not None and again.tokenizer is not None
    assert again.tokenizer.encode("é 1").tolist() == ours.tokenizer.encode("é 1").tolist()
    leaves = [jax.tree_util.tree_leaves_with_path(each.params) for each in (ours, again)]
    assert [path for path, _ in leaves[0]] == [path for path, _ in leaves[1]]
    for (_, left), (_, right) in zip(*leaves, strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def test_what_transformers_cannot_say_leaves_nothing(call, tmp_path):
    workdir, output = classifier(tmp_path / "run"), tmp_path / "export"
    flags = (f"--checkpoint={workdir}", "--format=huggingface", f"--output={output}")
    code, _, err = call("export", *flags)
    assert code == 2 and "no family of transformers that is known here" in err and err.count("\n") == 1
    assert os.listdir(tmp_path) == ["run"]


def test_weights_that_transformers_has_no_tensor_for_are_named(workdir, tmp_path):
    loaded = load(workdir)
    params = {**loaded.params, "more": {"bias": np.zeros(3, np.float32), "scale": np.ones(3, np.float32)}}
    with pytest.raises(InputError, match="no tensor in GPT2LMHeadModel for more/bias, more/scale"):
        directory.write(tmp_path / "written", loaded.model, params)
    assert os.listdir(tmp_path) == []


def test_ids_that_are_said_stay_and_others_are_added_where_the_model_knows_them(tmp_path):
    path = tmp_path / "config.json"
    for vocab_size, added in ((300, {"bos_token_id": ByteTokenizer.separator_id}), (256, {})):
        said = {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": [7, 9]}
        path.write_text(json.dumps(said))
        exports._say_ids(path, ByteTokenizer())
        assert json.loads(path.read_text()) == said | added
