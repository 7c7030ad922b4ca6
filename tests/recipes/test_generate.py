"""`python -m recipes.generate`: what is printed is what the library generates."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxmodel.data.tokenizer import ByteTokenizer
from jaxmodel.generate import generate
from jaxmodel.loading import load
from recipes._flags import run
from recipes.generate import COMMAND, main
from tests.saved import classifier, language_model

ROOT = Path(__file__).parents[2]
NEW = 12


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def call(workdir, monkeypatch, capsys):
    """Runs the recipe in this process: arguments -> (exit code, stdout, stderr)."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))

    def call(*args: str, checkpoint: Path = workdir):
        flags = [f"--checkpoint={checkpoint}", f"--max_new_tokens={NEW}", *args]
        code = run(main, COMMAND, ["generate", *flags])
        return code, *capsys.readouterr()

    return call


def expected(workdir: Path, *prompts: str, **options) -> list[str]:
    """The texts, by the library."""
    loaded, tokenizer = load(workdir), ByteTokenizer()
    ids = [tokenizer.encode(prompt).tolist() or [tokenizer.separator_id] for prompt in prompts]
    new = generate(loaded.model, loaded.params, ids, max_new_tokens=NEW, stop=[tokenizer.separator_id], **options)
    return [prompt + tokenizer.decode(each) for prompt, each in zip(prompts, new, strict=True)]


def test_prompts_are_continued_and_written(call, workdir, tmp_path):
    prompts = ["Document, 7", "", "é "]
    texts = expected(workdir, *prompts, temperature=0.8, seed=3, top_k=20, top_p=0.9)
    said = [f"--prompt={prompts[0]}", "--prompt", prompts[1], f"--prompt={prompts[2]}"]
    code, out, err = call(*said, "--seed=3", "--top_k=20", "--top_p=0.9", f"--output={tmp_path / 'texts.jsonl'}")
    assert (code, err) == (0, "")
    assert out == "\n---\n".join(texts) + "\n"
    lines = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    assert [line["prompt"] + line["text"] for line in lines] == texts


def test_unsaid_is_what_the_model_has_room_for(call, workdir, capsys):
    loaded = load(workdir)
    prompt = "x" * (loaded.model.config.max_length - 3)
    with_flag = call(f"--prompt={prompt}", "--max_new_tokens=3", "--temperature=0")
    assert run(main, COMMAND, ["generate", f"--checkpoint={workdir}", f"--prompt={prompt}", "--temperature=0"]) == 0
    assert with_flag[0] == 0 and capsys.readouterr().out == with_flag[1]


def test_no_prompt_is_a_new_document(call, workdir):
    (text,) = expected(workdir, "")
    assert call("--temperature=0")[:2] == (0, text + "\n")


def test_a_flag_file_may_hold_the_prompt(call, workdir, tmp_path):
    (tmp_path / "g.flags").write_text("--prompt=Document\n--temperature=0\n")
    file = f"--flagfile={tmp_path / 'g.flags'}"
    assert call(file)[:2] == (0, expected(workdir, "Document")[0] + "\n")
    assert call(file, "--prompt=Other")[:2] == (0, expected(workdir, "Other")[0] + "\n")


def test_stop_cuts_the_text_but_not_the_prompt(call, workdir):
    (text,) = expected(workdir, "Document")
    added = text.removeprefix("Document")
    stop = added[4]
    code, out, _ = call("--temperature=0", "--prompt=Document", f"--stop={stop}")
    assert (code, out) == (0, "Document" + added.partition(stop)[0] + "\n")
    assert len(out) < len(text)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--prompt=" + "x" * 60], "prompt 0 has 60 tokens; with max_new_tokens=12 that is more than the model's "
         "max_length=64: ask for 4 at most, or shorten the prompt"),
        (["--top_p=0"], "top_p=0.0: must be above 0 and at most 1"),
        (["--top_k=0"], "--top_k=0: must be a whole number of at least 1, or none"),
        (["--output=/no/such/texts.jsonl"], "--output=/no/such/texts.jsonl: there is no folder /no/such: make it"),
        (["--prompt"], "--prompt"),
        (["--checkpoint=/no/such"], "/no/such: there is no such folder"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(call, args, words):
    code, out, err = call(*args)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert words in err


def test_what_has_no_tokenizer_is_refused(call, tmp_path):
    code, _, err = call(checkpoint=classifier(tmp_path / "conv"))
    assert code == 2
    assert err == f"error: --checkpoint={tmp_path / 'conv'} holds no tokenizer: name a language model's\n"


def test_help_does_not_wait_for_jax():
    code = "import sys, runpy; sys.argv[1:] = ['--help']; runpy.run_module('recipes.generate', run_name='__main__')"
    check = f"try:\n {code}\nexcept SystemExit as end:\n assert not end.code and 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--max_new_tokens" in done.stdout and "--mesh.tensor" in done.stdout
