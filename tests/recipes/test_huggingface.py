"""Every recipe on Hugging Face directories: cast, fine-tuned, evaluated, exported; what is wrong is one line."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodel import sharding, weights
from jaxmodel.generate import generate
from jaxmodel.interop import tensors as on_disk
from jaxmodel.interop.proof import Unproved
from jaxmodel.loading import load
from jaxmodel.sharding import make_mesh
from recipes._flags import run
from tests.contract import same
from tests.golden import families
from tests.saved import huggingface, language_model

ROOT = Path(__file__).parents[2]
TEXT = "".join(f"line {i} says {i * i}\n" for i in range(60))


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a recipe in this process: name, arguments -> (exit code, stdout, stderr)."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.values["jax_compilation_cache_dir"])

    def call(recipe: str, *args: object):
        module = importlib.import_module(f"recipes.{recipe}")
        return run(module.main, module.COMMAND, [recipe, *map(str, args)]), *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama") / "llama"
    return huggingface(folder, dtype="bfloat16", num_key_value_heads=2, max_position_embeddings=160)


@pytest.fixture(scope="module")
def runs(llama, tmp_path_factory):
    return {"theirs": llama, "ours": language_model(tmp_path_factory.mktemp("ours") / "run")}


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "corpus.txt").write_text(TEXT)
    return f"--data.path={tmp_path / 'corpus.txt'}", f"--data.cache={tmp_path / 'cache'}", "--data.length=24"


# --dtype


@pytest.mark.parametrize("which", ["theirs", "ours"])
def test_weights_are_cast_as_they_are_loaded(which, runs, call, tmp_path, corpus):
    """By every recipe that runs a model: what it gives is what the cast weights give."""
    checkpoint, dtype = runs[which], "float16"
    flags = f"--checkpoint={checkpoint}", f"--dtype={dtype}"
    loaded = load(checkpoint, dtype=dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)} == {dtype}
    tokens = np.random.default_rng(0).integers(0, 250, (3, 9))
    np.savez(tmp_path / "in.npz", tokens=tokens)
    assert call("predict", *flags, f"--input={tmp_path / 'in.npz'}", f"--output={tmp_path / 'out.npz'}")[::2] == (0, "")
    expected = jax.jit(loaded.model.apply)(loaded.params, {"tokens": jnp.asarray(tokens, "int32")})["logits"]
    written = np.load(tmp_path / "out.npz")["logits"]
    np.testing.assert_allclose(written, expected, rtol=1e-5, atol=1e-5)
    plain = load(checkpoint)
    other = jax.jit(plain.model.apply)(plain.params, {"tokens": jnp.asarray(tokens, "int32")})["logits"]
    assert which == "theirs" or np.any(written != other)  # what bfloat16 holds, float16 does mostly

    again = "--temperature=0", "--max_new_tokens=4", "--prompt=line"
    assert call("generate", *flags, *again)[::2] == (0, "")

    losses = {}
    for each in ("float32", "bfloat16"):
        output = tmp_path / f"{each}.json"
        code, _, err = call("eval", flags[0], f"--dtype={each}", *corpus, f"--output={output}")
        assert (code, err) == (0, "")
        losses[each] = json.loads(output.read_text())["loss"]
    assert losses["float32"] == pytest.approx(losses["bfloat16"], rel=1e-2)
    assert (losses["float32"] == losses["bfloat16"]) == (which == "theirs")  # whose weights are bfloat16 anyway


@pytest.mark.parametrize("which", ["theirs", "ours"])
def test_an_export_has_the_type_that_was_asked_for(which, runs, call, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxmodel.export.prove_transformers", _unproved)
    flags = f"--checkpoint={runs[which]}", "--dtype=bfloat16", f"--output={tmp_path / 'out'}"
    assert call("export", *flags, "--format=huggingface")[0] == 0
    found = load(tmp_path / "out").params
    assert same(found, weights.cast(load(runs[which]).params, "bfloat16"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def _unproved(*_):
    raise Unproved("nobody looks")


@pytest.mark.parametrize("recipe", ["eval", "export", "generate", "predict"])
def test_a_type_that_no_weight_has_is_refused(recipe, llama, call, tmp_path):
    more = {"export": [f"--output={tmp_path / 'o'}"]}
    more["predict"] = [*more["export"], "--input=in.npz"]
    code, out, err = call(recipe, f"--checkpoint={llama}", "--dtype=float64", *more.get(recipe, []))
    assert (code, out) == (2, "") and not (tmp_path / "o").exists()
    assert err == "error: --dtype=float64: must be one of float32, bfloat16, float16, or none (did you mean float16?)\n"


# --init_from


QUICK = "--train.steps=20", "--train.batch_size=4", "--optimizer.learning_rate=3e-3"


@pytest.fixture
def one_device(monkeypatch):
    """A step for eight of them takes long to compile."""
    monkeypatch.setattr(sharding, "make_mesh", lambda sizes: make_mesh(sizes, jax.devices()[:1]))


def losses_of(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["split"] == "train"]


def test_a_bfloat16_directory_is_fine_tuned_evaluated_exported_and_read_again(
    llama, call, tmp_path, corpus, monkeypatch, one_device
):
    monkeypatch.setattr("jaxmodel.export.prove_transformers", _unproved)
    workdir, output = tmp_path / "run", tmp_path / "export"
    assert call("train", f"--init_from={llama}", *corpus, *QUICK, f"--workdir={workdir}")[0] == 0
    losses, trained = losses_of(workdir), load(workdir)
    assert losses[-1] < 0.8 * losses[0]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trained.params)} == {"float32"}
    assert trained.tokenizer is not None and trained.tokenizer.extras.files  # that of the directory
    assert call("eval", f"--checkpoint={workdir}")[::2] == (0, "")
    assert json.loads((workdir / "eval.json").read_text())["loss"] < losses[0]

    flags = f"--checkpoint={workdir}", "--dtype=bfloat16", "--format=huggingface", f"--output={output}"
    assert call("export", *flags)[0] == 0
    again = load(output)
    assert again.info["huggingface"]["config"]["model_type"] == "llama"
    assert same(again.params, weights.cast(trained.params, "bfloat16"))
    assert (output / "tokenizer.json").read_bytes() == (llama / "tokenizer.json").read_bytes()


@pytest.mark.slow
def test_hidden_tokens_are_the_mask_token_of_the_directory(call, tmp_path, corpus, one_device):
    checkpoint, workdir = huggingface(tmp_path / "bert", "bert", "BertForMaskedLM"), tmp_path / "run"
    flags = f"--init_from={checkpoint}", *corpus, *QUICK, f"--workdir={workdir}"
    code, _, err = call("train", *flags)
    assert code == 2 and "set --model.attention.causal=true, or --task.name=masked_language_model" in err
    assert call("train", *flags, "--task.name=masked_language_model")[0] == 0
    assert losses_of(workdir)[-1] < losses_of(workdir)[0]
    for each in (checkpoint, workdir):
        assert call("eval", f"--checkpoint={each}", *corpus, f"--output={tmp_path / 'e.json'}")[::2] == (0, "")
        assert json.loads((tmp_path / "e.json").read_text())["task"] == "masked_language_model"


@pytest.mark.slow
def test_a_classifier_of_images_is_fine_tuned_on_a_table(call, tmp_path, one_device):
    rng = np.random.default_rng(0)
    names = ",".join(f"p{i}" for i in range(64))
    rows = [(label, rng.normal(2 * label, 1, 64)) for label in range(3) for _ in range(30)]
    lines = [",".join([*(f"{x:.3f}" for x in pixels), f"kind {label}"]) for label, pixels in rows]
    (tmp_path / "images.csv").write_text("\n".join([f"{names},label", *lines]) + "\n")
    more = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 3}
    vit = huggingface(tmp_path / "vit", "vit", "ViTForImageClassification", "bfloat16", **more)
    workdir = tmp_path / "run"
    data = f"--data.path={tmp_path / 'images.csv'}", "--data.image_shape=8,8"
    assert call("train", f"--init_from={vit}", *data, *QUICK, f"--workdir={workdir}")[0] == 0
    assert losses_of(workdir)[-1] < losses_of(workdir)[0]


def test_weights_of_tokens_need_their_tokenizer(llama, call, tmp_path, corpus, one_device):
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bare" / name).write_bytes((llama / name).read_bytes())
    flags = f"--init_from={tmp_path / 'bare'}", *corpus, f"--workdir={tmp_path / 'run'}"
    code, out, err = call("train", *flags)
    assert (code, out) == (2, "") and err.count("\n") == 1 and not (tmp_path / "run").exists()
    assert "bare holds no tokenizer" in err and "put the tokenizer.json" in err


# Arrays in, arrays out


DAILY = ("bert", "vit", "clip", "t5")
FRAMES = "whisper"  # its golden file holds frames, which the recipe's model makes of `audio` itself
MANY = "llava"  # a row of its golden file has two images, and one has none
GOLDENS = [
    pytest.param(path, id=path.stem, marks=() if path.stem in DAILY else pytest.mark.slow)
    for path in sorted(families.FOLDER.glob("*.npz"))
    if path.stem != FRAMES
]


@pytest.mark.parametrize("path", GOLDENS)
def test_what_a_directory_gives_is_predicted_in_pieces(path, call, tmp_path):
    """Every value that transformers gives for the arrays that the family reads, whatever the size of a batch."""
    golden = families.read(path)
    families.write_directory(tmp_path / "dir", golden)
    times = 3
    arrays: dict[str, Any] = {name: np.concatenate([a] * times) for name, a in golden.batch.items()}
    np.savez(tmp_path / "in.npz", **arrays)
    flags = (f"--checkpoint={tmp_path / 'dir'}", f"--input={tmp_path / 'in.npz'}", f"--output={tmp_path / 'out.npz'}")
    size = len(next(iter(golden.batch.values()))) + 1  # the last piece is filled up
    code, _, err = call("predict", *flags, f"--batch_size={size}")
    if path.stem == MANY:
        assert code == 2 and "row 0 of tokens holds 18 image tokens, an image takes 9: give each row one image" in err
        code, _, err = call("predict", *flags, f"--batch_size={times * size}")
    assert (code, err) == (0, "")
    written = np.load(tmp_path / "out.npz")
    pairwise = {"logits"} if "image_embedding" in golden.values else set()
    assert not pairwise & {*written}
    for name, expected in golden.values.items():
        if name in pairwise:
            continue
        assert written[name].dtype == np.float32
        paired = "decoder_mask" in golden.batch and name != "encoder_hidden"
        mask = golden.batch.get("decoder_mask" if paired else "mask")
        for found in np.split(written[name], times):
            real = mask is not None and expected.ndim == 3 and expected.shape[:2] == mask.shape
            ours, theirs = (found[mask], expected[mask]) if real else (found, expected)
            assert np.max(np.abs(ours - theirs)) < 1e-5 * np.max(np.abs(theirs)), name


def test_arrays_that_a_directory_does_not_read_are_named(llama, call, tmp_path):
    flags = f"--checkpoint={llama}", f"--input={tmp_path / 'in.npz'}", f"--output={tmp_path / 'out.npz'}"
    images = np.zeros((2, 8, 8, 3), np.float32)
    tried: tuple[tuple[dict[str, Any], str], ...] = (
        ({"images": images}, "the model does not read images: it reads tokens, segments, positions, mask"),
        ({"mask": np.ones((2, 4), bool)}, "tokens is missing: the model reads tokens int32[batch, length]"),
    )
    for arrays, words in tried:
        np.savez(tmp_path / "in.npz", **arrays)
        code, out, err = call("predict", *flags)
        assert (code, out) == (2, "") and not (tmp_path / "out.npz").exists()
        assert words in err and err.count("\n") == 1


# --messages, --chat, and what ends a text


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% for t in tools or [] %}[{{ t.name }}]{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]


def copied(checkpoint, folder, **files):
    """The directory with a chat template, and files of JSON laid over what is there."""
    shutil.copytree(checkpoint, folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    for name, said in files.items():
        path = folder / f"{name}.json"
        there = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(there | said))
    return folder


def greedy(checkpoint, text, count=8):
    """(ids of the text, ids that are added where nothing ends it)."""
    loaded = load(checkpoint)
    assert loaded.tokenizer is not None
    ids = loaded.tokenizer.encode(text).tolist()
    (new,) = generate(loaded.model, loaded.params, [ids], max_new_tokens=count)
    return loaded.tokenizer, ids, new


def test_what_ends_a_text_is_as_the_directory_says(llama, call, tmp_path):
    """One id or several, in config.json or generation_config.json, which has the last word."""
    tokenizer, _, new = greedy(llama, "line 3")
    cut = next(i for i in range(2, 8) if new[i] not in new[:i])
    whole = tokenizer.decode(new)
    assert 256 not in new
    for i, (files, kept) in enumerate(
        (
            ({"config": {"eos_token_id": new[cut]}}, cut),
            ({"config": {"eos_token_id": [287, new[cut]]}}, cut),
            ({"config": {"eos_token_id": new[cut]}, "generation_config": {"eos_token_id": [256, new[1]]}},
             new.index(new[1])),
            ({}, 8),
        )
    ):  # fmt: skip
        folder = copied(llama, tmp_path / str(i), **files)
        flags = "--temperature=0", "--max_new_tokens=8", "--prompt=line 3"
        code, out, err = call("generate", f"--checkpoint={folder}", *flags)
        assert (code, err) == (0, "")
        assert out == "line 3" + tokenizer.decode(new[:kept]) + "\n" and (kept == 8) == (out[6:-1] == whole)


def test_conversations_are_answered(llama, call, tmp_path):
    """By the directory's template: of .json and .jsonl alike; a prompt with --chat is what a user says."""
    folder = copied(llama, tmp_path / "chat")
    tools = [{"name": "clock"}]
    asked = [*TALK, {"role": "assistant", "content": "Yes?"}, {"role": "tool", "content": "12:00"}]
    answers = []
    for text in ("<system>Be kind.<user>Hi<assistant>", 
                 "<system>Be kind.<user>Hi<assistant>Yes?<tool>12:00[clock]<assistant>",
                 "<user>Hi<assistant>"):  # fmt: skip
        tokenizer, _, new = greedy(folder, text)
        answers.append(tokenizer.decode(new))
    lines = [TALK, {"messages": asked, "tools": tools}]
    (tmp_path / "one.json").write_text(json.dumps(TALK))
    (tmp_path / "two.json").write_text(json.dumps(lines))
    (tmp_path / "two.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    output = tmp_path / "answers.jsonl"
    flags = f"--checkpoint={folder}", "--temperature=0", "--max_new_tokens=8"
    for more, expected in (
        ([f"--messages={tmp_path / 'one.json'}"], answers[:1]),
        ([f"--messages={tmp_path / 'two.json'}"], answers[:2]),
        (["--chat", "--prompt=Hi"], answers[2:]),
        ([f"--messages={tmp_path / 'two.jsonl'}", f"--output={output}"], answers[:2]),
    ):
        assert call("generate", *flags, *more) == (0, "\n---\n".join(expected) + "\n", "")
    first, second = map(json.loads, output.read_text().splitlines())
    assert first == {"messages": [*TALK, {"role": "assistant", "content": answers[0]}]}
    assert (second["tools"], len(second["messages"])) == (tools, 5)
    # What was written is a file to go on with.
    assert call("generate", *flags, f"--messages={output}", f"--output={output}")[0] == 0
    assert len(json.loads(output.read_text().splitlines()[0])["messages"]) == 4


@pytest.mark.parametrize(
    ("content", "args", "words"),
    [
        (None, ["--messages=/no/such.json"], "--messages=/no/such.json: No such file or directory: give a .json or"),
        ("[{", [], "chat.json is not JSON ("),
        ("[]", [], "chat.json holds no conversation: give a list of messages, as in [{"),
        ('{"tools": []}', [], "chat.json holds no conversation"),
        ('[{"role": "usr", "content": "Hi"}]', [], "message 0 has the role usr: did you mean user?"),
        ('[{"role": "user", "content": "Hi"}, {"content": "Hi"}]', [],
         "message 1 has no role: give it one of system, developer, user, assistant, tool"),
        ('{"messages": [{"role": "user", "content": "Hi"}], "tools": {}}', [], "tools is a dict: give a list"),
        ('[{"role": "user", "content": "Hi"}]', ["--prompt=Hi"], "beside which --prompt=Hi means nothing: leave one"),
        ('[{"role": "user", "content": "Hi"}]', ["--chat"], "beside which --chat means nothing: leave one"),
        (None, ["--chat"], "--chat answers a user, who says nothing: give --prompt too"),
        (None, ["--chat", "--prompt=Hi"], "the tokenizer has no chat template: take a checkpoint that was tuned"),
    ],
)  # fmt: skip
def test_a_conversation_that_cannot_be_answered(content, args, words, llama, call, tmp_path):
    if content is not None:
        (tmp_path / "chat.json").write_text(content)
        args = [f"--messages={tmp_path / 'chat.json'}", *args]
    code, out, err = call("generate", f"--checkpoint={llama}", *args)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    assert words in err


def test_a_template_that_refuses_is_quoted(llama, call, tmp_path):
    folder = copied(llama, tmp_path / "chat")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must take turns') }}")
    code, _, err = call("generate", f"--checkpoint={folder}", "--chat", "--prompt=Hi")
    assert code == 2 and "does not take this conversation: roles must take turns" in err


# An encoder and a decoder


def test_a_decoder_writes_while_it_looks_at_the_prompt(call, tmp_path):
    sizes: dict[str, Any] = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    }
    folder = huggingface(tmp_path / "t5", "t5", **sizes)
    loaded = load(folder)
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    ids = [tokenizer.encode_input(text).tolist() for text in ("line", "says more")]
    expected = generate(loaded.model, loaded.params, ids, max_new_tokens=6, stop=tokenizer.stop_ids)
    flags = (f"--checkpoint={folder}", "--temperature=0", "--max_new_tokens=6", f"--output={tmp_path / 'a.jsonl'}")
    code, out, err = call("generate", *flags, "--prompt=line", "--prompt=says more")
    assert (code, err) == (0, "")
    texts = [tokenizer.decode(each) for each in expected]
    assert out == "\n---\n".join(texts) + "\n"
    written = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert written == [{"prompt": p, "text": t} for p, t in zip(("line", "says more"), texts, strict=True)]


# What is wrong


def said(folder, **changes):
    """Lay keys over config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def retold(folder, change):
    """Write the tensors anew, by name, as `change` leaves them."""
    tensors = {name: np.array(each.view()) for name, each in on_disk.open_weights(folder).items()}
    change(tensors)
    parts = [on_disk.Tensor(name, each.dtype, each.shape, lambda e=each: e) for name, each in tensors.items()]
    on_disk.write_weights(folder, parts)


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def indexed(folder):
    """In two files, of which the second is not there."""
    names = list(on_disk.open_weights(folder))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    where = {name: f"model-0000{1 + (i > 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


NORM = "model.norm.weight"
WRONG = {
    "an unknown family": (
        lambda folder: said(folder, model_type="lama"),
        "config.json: model_type lama is not supported: there are llama, ",
    ),
    "no family": (lambda folder: (folder / "config.json").write_text("{}"), "config.json lacks model_type: take the"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON ("),
    "another architecture": (
        lambda folder: said(folder, architectures=["LlamaForQuestionAnswering"]),
        "architecture LlamaForQuestionAnswering is not supported: of llama there are LlamaForCausalLM, ",
    ),
    "an unknown value": (
        lambda folder: said(folder, hidden_act="gelu_10"),
        "config.json: hidden_act='gelu_10' is not supported (",
    ),
    "a contradiction": (
        lambda folder: said(folder, num_key_value_heads=3),
        "model.attention.num_heads=4 is no multiple of model.attention.num_kv_heads=3: change one of them",
    ),
    "a missing tensor": (
        lambda folder: retold(folder, lambda tensors: tensors.pop(NORM)),
        f"the weights are not those of config.json: {NORM} [32] is missing: take both from one place",
    ),
    "a misshapen tensor": (
        lambda folder: retold(folder, lambda tensors: tensors.update({NORM: tensors[NORM][:30]})),
        f"{NORM} is [30], not [32]",
    ),
    "an unexpected tensor": (
        lambda folder: retold(folder, lambda tensors: tensors.update({"model.more": tensors[NORM]})),
        "model.more [32] is unexpected",
    ),
    "a file cut short": (cut, "model.safetensors is damaged or cut short ("),
    "a file that the index alone has": (
        indexed,
        "model.safetensors.index.json names 'model-00002-of-00002.safetensors', which is not in ",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "a pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "pytorch_model.bin, a pickle, which can run code",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_directory_that_is_wrong_is_one_line_and_nothing_is_written(name, llama, call, tmp_path, corpus, one_device):
    harm, words = WRONG[name]
    folder = copied(llama, tmp_path / "dir")
    harm(folder)
    before = sorted(tmp_path.iterdir())
    for recipe, *flags in (
        ("export", f"--checkpoint={folder}", f"--output={tmp_path / 'out'}"),
        ("train", f"--init_from={folder}", *corpus, f"--workdir={tmp_path / 'run'}"),
    ):
        code, out, err = call(recipe, *flags)
        assert (code, out) == (2, "")
        assert err.startswith("error: ") and err.count("\n") == 1 and words in err
        assert sorted(tmp_path.iterdir()) == before
