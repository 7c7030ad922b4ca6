"""The train recipe as a user runs it: it learns, saves, resumes bit for bit, and says what is wrong in one line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxmodel import checkpoint
from jaxmodel.config import replace
from jaxmodel.loading import config_of, load
from recipes import train
from recipes._flags import run
from tests.contract import same

ROOT = Path(__file__).parents[2]
STEPS = 24
SMALL = [
    "--model=tiny",
    "--model.num_layers=2",
    "--model.embed_dim=32",
    "--model.attention.num_heads=2",
    "--model.mlp.dim=32",
    "--model.vocab_size=257",
    "--data.tokenizer=byte",
    "--data.length=32",
    "--data.heldout=0.2",
    "--train.batch_size=8",
    f"--train.steps={STEPS}",
    "--train.log_every=4",
    "--optimizer.learning_rate=1e-2",
    "--mesh.data=1",
    "--mesh.fsdp=8",
]


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.txt").write_text("".join(f"line {j} of file {i}\n" for j in range(40)))
    return [f"--data.path={folder}", f"--data.cache={tmp_path / 'cache'}"]


def command(workdir, corpus, *more):
    return ["train", *SMALL, *corpus, f"--workdir={workdir}", *more]


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def last_state(workdir):
    """Every array of the newest checkpoint."""
    loaded = load(workdir)
    return loaded.params


def test_it_learns_and_leaves_a_whole_run_behind(tmp_path, corpus, capsys):
    workdir = tmp_path / "run"
    assert run(train.main, train.COMMAND, command(workdir, corpus)) == 0
    out = capsys.readouterr().out
    assert f"next: python -m recipes.eval --checkpoint={workdir}" in out
    found = lines_of(workdir)
    assert [line["step"] for line in found if line["split"] == "train"] == [1, 4, 8, 12, 16, 20, 24]
    losses = [line["loss"] for line in found if line["split"] == "train"]
    assert losses[-1] < 0.75 * losses[0]
    (measured,) = [line for line in found if line["split"] == "eval"]
    # One token a byte, and one for the end of each document: bits per byte follow from the loss.
    assert measured["bits_per_byte"] == pytest.approx(measured["loss"] / np.log(2), rel=0.01)
    assert (workdir / "loss.png").read_bytes().startswith(b"\x89PNG")
    record = checkpoint.read_record(workdir / "checkpoints" / str(STEPS))
    assert record.info["data"]["length"] == 32 and record.info["task"] == "language_model"

    assert run(train.main, train.COMMAND, command(workdir, corpus)) == 0
    assert "has made its 24 steps already: raise --train.steps" in capsys.readouterr().out


def test_stopped_by_sigterm_and_resumed_is_never_stopped(tmp_path, corpus, capsys):
    """Exit code 42, and then the same command gives the same weights, bit for bit."""
    slow = ("--train.log_every=1", "--train.steps=200")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(train.main, train.COMMAND, command(whole, corpus, *slow)) == 0

    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    }
    arguments = [sys.executable, "-m", "recipes.train", *command(stopped, corpus, *slow)[1:]]
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    metrics = stopped / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 42, errors
    assert "run the same command again: stopped after step" in errors
    (step,) = checkpoint.steps(stopped / "checkpoints")
    assert 3 <= step < 200

    assert run(train.main, train.COMMAND, command(stopped, corpus, *slow)) == 0
    assert f"going on from step {step}" in capsys.readouterr().out
    assert same(last_state(stopped), last_state(whole))
    strip = [{k: v for k, v in line.items()} for line in lines_of(stopped)]
    assert strip == lines_of(whole)


def test_it_starts_from_other_weights(tmp_path, corpus):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(train.main, train.COMMAND, command(first, corpus)) == 0
    without_model = [flag for flag in command(second, corpus) if not flag.startswith("--model")]
    assert run(train.main, train.COMMAND, [*without_model, f"--init_from={first}"]) == 0
    assert lines_of(second)[0]["loss"] < 0.8 * lines_of(first)[0]["loss"]


@pytest.mark.slow
def test_it_starts_from_other_weights_with_parts_of_the_model_changed(tmp_path, corpus, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(train.main, train.COMMAND, [*command(first, corpus), "--train.steps=1"]) == 0
    without_model = [flag for flag in command(second, corpus) if not flag.startswith("--model")]
    again = [*without_model, "--train.steps=1", f"--init_from={first}"]
    capsys.readouterr()
    assert run(train.main, train.COMMAND, [*again, "--model.mlp.dim=48"]) == 2
    errors = capsys.readouterr().err
    assert "stack/0/block/mlp/down: [2, 32, 32] in the checkpoint, [2, 48, 32] in the model" in errors
    assert errors.count("\n") == 1 and not second.exists()
    more = ["--model.dropout=0.5", "--model.execution.remat=true", "--model.max_length=1024"]
    assert run(train.main, train.COMMAND, [*again, *more, "--train.dtype=bfloat16"]) == 0
    wanted = {"dropout": 0.5, "execution.remat": True, "execution.dtype": "bfloat16", "max_length": 1024}
    assert config_of(second) == replace(config_of(first), wanted)
    named = [*command(tmp_path / "third", corpus), f"--init_from={first}", *more]
    capsys.readouterr()
    assert run(train.main, train.COMMAND, named) == 2
    assert "dropout: 0.0 in" in (errors := capsys.readouterr().err) and "leave --model out" in errors


@pytest.mark.slow
def test_experts_with_room_for_so_many_tokens(tmp_path, corpus):
    experts = ["--model.moe.num_experts=4", "--model.moe.dim=16", "--model.moe.capacity_factor=1.0"]
    more = [*experts, "--mesh.fsdp=4", "--mesh.expert=2", "--optimizer.learning_rate=2e-2"]
    assert run(train.main, train.COMMAND, command(tmp_path / "run", corpus, *more)) == 0
    losses = [line["loss"] for line in lines_of(tmp_path / "run") if line["split"] == "train"]
    assert losses[-1] < 0.75 * losses[0]
    assert config_of(tmp_path / "run").moe.capacity_factor == 1.0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--train.batch_size=12"], "mesh.fsdp=8 does not divide train.batch_size"),
        (["--mesh.tensor=3"], "mesh.fsdp=8 * mesh.tensor=3 does not fit 8 devices: make the product 8"),
        (["--model.embed_dim=36"], "mesh.fsdp=8 does not divide embed = 36 of"),
        (["--model.attention.num_heads=5"], "is no multiple of model.attention.num_heads=5"),
        (["--model.moe.num_experts=4", "--model.moe.dim=8", "--model.moe.num_groups=3"], "model.moe.num_experts=4 do "
         "not make model.moe.num_groups=3 of 2 or more"),
        (["--model.moe.num_experts=4", "--model.moe.dim=8", "--model.moe.capacity_factor=-1"],
         "model.moe.capacity_factor"),
        (["--data.length=1024"], "--data.length=1024 is longer than --model.max_length=512"),
        (["--model.vocab_size=100"], "the tokenizer has 257 tokens, --model.vocab_size=100 is smaller"),
        (["--data.path=nowhere"], "data.path: 'nowhere' does not exist"),
        (["--train.stesp=3"], "unknown flag --train.stesp: did you mean --train.steps?"),
        (["--train.steps=many"], "--train.steps"),
        (["--model=tinny"], "did you mean tiny"),
        (["--optimizer.warmup=30"], "optimizer.warmup=30 takes up all of train.steps=24"),
        (["--init_from=nowhere"], "nowhere: there is no such folder"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, corpus, capsys, more, words):
    workdir = tmp_path / "run"
    assert run(train.main, train.COMMAND, command(workdir, corpus, *more)) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and errors.startswith("error: ") and words in errors
    assert not workdir.exists() or not any(workdir.iterdir())


def test_a_workdir_of_another_run_is_left_alone(tmp_path, corpus, capsys):
    workdir, other = tmp_path / "run", tmp_path / "other.txt"
    assert run(train.main, train.COMMAND, command(workdir, corpus)) == 0
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    other.write_text("something else altogether\n" * 200)
    for more, words in (
        (["--model.num_layers=3"], "num_layers: 2 in the checkpoint, 3 asked for"),
        ([f"--data.path={other}"], "holds a run on other data"),
    ):
        assert run(train.main, train.COMMAND, command(workdir, corpus, *more)) == 2
        errors = capsys.readouterr().err
        assert words in errors and "name another --workdir" in errors
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_a_workdir_that_cannot_be_made(tmp_path, corpus, capsys):
    file = tmp_path / "file"
    file.write_text("")
    assert run(train.main, train.COMMAND, command(file / "run", corpus)) == 2
    assert f"{file} is a file; name a folder" in capsys.readouterr().err


def test_a_refused_run_leaves_no_folder(tmp_path, corpus, capsys):
    wrong = [*command(tmp_path / "run", corpus), "--data.length=100000"]
    assert run(train.main, train.COMMAND, wrong) == 2
    assert "--data.length=100000 is longer than --model.max_length" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_masked_language_model_is_trained_and_evaluated(tmp_path, corpus, capsys):
    masked = ["--task.name=masked_language_model", "--model.vocab_size=258", "--train.steps=4"]
    both_ways = [*masked, "--model.attention.causal=false"]
    assert run(train.main, train.COMMAND, command(tmp_path / "run", corpus, *both_ways)) == 0
    last = lines_of(tmp_path / "run")[-1]
    assert last["split"] == "eval" and last["perplexity"] > 1 and "bits_per_byte" not in last
    capsys.readouterr()
    for flags, words in (
        (masked, "--model.attention.causal=true only back: set --model.attention.causal=false"),
        (["--model.attention.causal=false"], "would see what it predicts: set --model.attention.causal=true"),
    ):
        assert run(train.main, train.COMMAND, command(tmp_path / "other", corpus, *flags)) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and words in err


@pytest.mark.slow
def test_the_batch_is_as_large_as_memory_holds(corpus, tmp_path, monkeypatch, capsys):
    """Less memory, a smaller batch; a run that goes on keeps its own, whatever the memory is by then."""
    monkeypatch.setattr("jaxmodel.batch_size.memory_of_a_device", lambda: memory)
    short = ("--train.batch_size=auto", "--train.epochs=1", "--train.accumulate=2", "--train.log_every=1")
    asked = [each for each in command(tmp_path / "run", corpus, *short) if "steps" not in each]
    memory = 10**12
    assert run(train.main, train.COMMAND, [*asked, "--optimizer.find_lr=true", "--train.epochs=50"]) == 0
    why = r"batch size (\d+): the largest of 16, 32, 64, … that (\d+) examples fill; 900 GB may be used \(needs "
    ((whole, rows),) = re.findall(why, capsys.readouterr().out)
    whole, rows = int(whole), int(rows)
    assert whole % 16 == 0 and whole <= rows < 2 * whole
    memory = 2_000_000
    assert run(train.main, train.COMMAND, asked) == 0
    out = capsys.readouterr().out
    why = r"batch size (\d+): the largest of 16, 32, 64, … whose step fits in 0\.0018 GB \(needs (\S+) GB\)"
    ((found, needs),) = re.findall(why, out)
    found = int(found)
    assert found in (16, 32, 64) and found < whole and 0 < float(needs) <= 0.0018
    assert f"{found * 32:,} a step" in out
    info = checkpoint.read_record(tmp_path / "run" / "checkpoints" / str(-(-rows // found))).info
    assert info["train"]["batch_size"] == found
    memory = 10**12
    assert run(train.main, train.COMMAND, [*asked, "--train.epochs=2"]) == 0
    assert f"batch size {found}: that of the run in" in capsys.readouterr().out
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] == -(-2 * rows // found)
    for pieces, words in (
        (3, "into train.accumulate=3 equal pieces"),
        (found, "train.batch_size / train.accumulate=1:"),
    ):
        assert run(train.main, train.COMMAND, [*asked, f"--train.accumulate={pieces}"]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_trial_and_one_batch_find_their_size_too(corpus, tmp_path, capsys):
    """With the memory that this machine has, from weights that there are."""
    first = tmp_path / "first"
    assert run(train.main, train.COMMAND, command(first, corpus, "--train.steps=1")) == 0
    asked = command(tmp_path / "run", corpus, "--train.batch_size=auto", f"--init_from={first}", "--train.steps=1")
    for more in ("--train.fast_dev_run=true", "--train.overfit_one_batch=true"):
        capsys.readouterr()
        assert run(train.main, train.COMMAND, [*asked, more]) == 0
        assert "the largest of 8, 16, 32, … that " in capsys.readouterr().out
    assert "--train.batch_size=auto" in (tmp_path / "run" / "train.flags").read_text().splitlines()
    with pytest.raises(SystemExit) as done:
        run(train.main, train.COMMAND, [*asked, "--print_config"])
    assert done.value.code == 0 and "--train.batch_size=auto\n" in capsys.readouterr().out


def test_a_batch_that_no_memory_holds_is_refused(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxmodel.batch_size.memory_of_a_device", lambda: 1000)
    assert run(train.main, train.COMMAND, command(tmp_path / "run", corpus, "--train.batch_size=auto")) == 2
    error = capsys.readouterr().err
    assert "train.batch_size=auto: a batch of 8 needs" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert run(train.main, train.COMMAND, command(tmp_path / "run", corpus, "--train.batch_size=atuo")) == 2
    assert "a whole number of at least 1, or auto (did you mean auto?)" in capsys.readouterr().err
