"""The recipes on tables and images from them: learn, evaluate another file, answer a raw csv; mistakes in one line."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recipes import eval as evaluate
from recipes import export, predict, train
from recipes._flags import run

ROOT = Path(__file__).parents[2]
FLAGS = ROOT / "recipes" / "flags"
SLOPES = np.random.default_rng(0).normal(size=10)


def write_csv(path, rows, seed, label: str | None = "label"):
    """Ten random features; the label says on which side of a plane they lie."""
    features = np.random.default_rng(seed).normal(size=(rows, 10))
    labels = np.where(features @ SLOPES > 0, "yes", "no")
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"x{i}" for i in range(10)), *([label] if label else [])])
        for x, y in zip(features, labels, strict=True):
            writer.writerow([*(f"{v:.5f}" for v in x), *([y] if label else [])])
    return labels


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("csv")
    write_csv(folder / "train.csv", 1000, 1)
    write_csv(folder / "test.csv", 200, 2)
    write_csv(folder / "new.csv", 100, 3, label=None)
    return folder


@pytest.fixture(autouse=True)
def compile_cache(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))


def call(recipe, *args):
    return run(recipe.main, recipe.COMMAND, [recipe.__name__, *map(str, args)])


def evaluated(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "eval"][-1]


@pytest.fixture(scope="module")
def workdir(files, tmp_path_factory):
    """A run of the seed story: 1,000 rows, Dense(64, relu), Dense(1, sigmoid), Adam, 10 epochs of batches of 32."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
        code = call(
            train, f"--flagfile={FLAGS / 'tabular.flags'}", f"--data.path={files / 'train.csv'}",
            f"--data.eval_path={files / 'test.csv'}", f"--workdir={folder}", "--mesh.data=8",
        )  # fmt: skip
    assert code == 0
    return folder


def test_a_table_is_learnt_and_every_row_seen_in_every_epoch(workdir):
    found = evaluated(workdir)
    assert found["step"] == 313  # ceil(10 * 1000 / 32)
    assert found["accuracy"] > 0.93 and found["roc_auc"] > 0.98
    last = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()][-2]
    assert (last["step"], last["tokens"]) == (313, 10 * 1000 - 312 * 32)  # what fills the last batch counts nothing


def test_another_file_is_evaluated_as_in_training(workdir, files, tmp_path, capsys):
    output = tmp_path / "numbers.json"
    code = call(
        evaluate, f"--checkpoint={workdir}", f"--data.path={files / 'test.csv'}", f"--output={output}", "--batch_size=7"
    )
    assert code == 0 and "on 200 rows" in capsys.readouterr().out
    found, before = json.loads(output.read_text()), evaluated(workdir)
    for name in ("loss", "accuracy", "roc_auc", "average_precision", "f1"):
        assert found[name] == pytest.approx(before[name], rel=1e-5), name


def answers(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_new_rows_are_answered_in_the_words_of_the_label(workdir, files, tmp_path):
    output = tmp_path / "answers.csv"
    assert call(predict, f"--checkpoint={workdir}", f"--input={files / 'new.csv'}", f"--output={output}") == 0
    found = answers(output)
    assert len(found) == 100 and {row["prediction"] for row in found} == {"yes", "no"}
    features = np.array([[float(v) for v in row.values()] for row in answers(files / "new.csv")])
    right = np.where(features @ SLOPES > 0, "yes", "no")
    assert np.mean(right == [row["prediction"] for row in found]) > 0.9
    assert all((float(row["probability_yes"]) >= 0.5) == (row["prediction"] == "yes") for row in found)


def test_columns_may_come_in_another_order_and_with_others(workdir, files, tmp_path, capsys):
    rows = answers(files / "new.csv")
    names = [*reversed(rows[0]), "note"]
    with open(tmp_path / "other.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="hello")
        writer.writeheader()
        writer.writerows(rows)
    outputs = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for source, output in zip((files / "new.csv", tmp_path / "other.csv"), outputs, strict=True):
        assert call(predict, f"--checkpoint={workdir}", f"--input={source}", f"--output={output}") == 0
    assert answers(outputs[0]) == answers(outputs[1])
    assert "columns left out: note" in capsys.readouterr().out


def test_an_export_answers_a_raw_table_too(workdir, files, tmp_path):
    folder = tmp_path / "export"
    assert call(export, f"--checkpoint={workdir}", "--quantize=none", f"--output={folder}") == 0
    outputs = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for checkpoint, output in zip((workdir, folder), outputs, strict=True):
        assert call(predict, f"--checkpoint={checkpoint}", f"--input={files / 'new.csv'}", f"--output={output}") == 0
    first, second = map(answers, outputs)
    assert [row["prediction"] for row in first] == [row["prediction"] for row in second]


@pytest.mark.parametrize(
    ("name", "bounds", "devices"),
    [("breast_cancer", {"accuracy": 0.96, "roc_auc": 0.99}, 8), ("digits", {"accuracy": 0.985}, 2)],
    ids=["breast_cancer", "digits"],
)
def test_the_flag_files_learn_what_they_say(name, bounds, devices, tmp_path):
    workdir = tmp_path / "run"
    # Compiled as for users: compiled quickly, as in other tests, it would run for minutes.
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [
        sys.executable, "-m", "recipes.train", f"--flagfile={FLAGS / f'{name}.flags'}", f"--workdir={workdir}",
        "--mesh.data=1", f"--mesh.fsdp={devices}",
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    found = evaluated(workdir)
    assert all(found[metric] >= bound for metric, bound in bounds.items()), found


def test_a_stopped_run_goes_on_to_the_same_numbers(files, tmp_path, workdir):
    """Twice the command, the first with fewer epochs: the schedule is constant, so that both take the same steps."""
    shorter = tmp_path / "run"
    common = [
        f"--flagfile={FLAGS / 'tabular.flags'}", f"--data.path={files / 'train.csv'}",
        f"--data.eval_path={files / 'test.csv'}", f"--workdir={shorter}", "--mesh.data=8",
    ]  # fmt: skip
    assert call(train, *common, "--train.epochs=none", "--train.steps=100") == 0
    assert call(train, *common) == 0
    assert evaluated(shorter) == evaluated(workdir)


def lines(path):
    return path.read_text().splitlines()


def changed(files, tmp_path, edit):
    """train.csv with its lines edited."""
    path = tmp_path / "wrong.csv"
    path.write_text("\n".join(edit(lines(files / "train.csv"))) + "\n")
    return path


def cell(text):
    """An edit that puts `text` into line 8, column x3."""

    def edit(rows):
        fields = rows[7].split(",")
        return [*rows[:7], ",".join([*fields[:3], text, *fields[4:]]), *rows[8:]]

    return edit


MISTAKES = [
    (lambda rows: [*rows[:5], rows[5] + ",1", *rows[6:]], [], ("line 6", "12", "11")),
    (cell("much"), [], ("line 8", "x3", "much")),
    (cell("inf"), [], ("line 8", "x3", "inf")),
    (cell("nan"), ["--data.missing=error"],
     ("line 8", "x3")),
    (lambda rows: rows[:1], [], ("wrong.csv",)),
    (lambda rows: rows, ["--data.label=lable"], ("lable", "did you mean label")),
    (lambda rows: rows, ["--task.name=language_model"], ("task.name=language_model", "binary")),
    (lambda rows: rows, ["--model=tiny"], ("features", "--model=mlp")),
    (lambda rows: rows, ["--train.steps=5"], ("train.steps=5", "train.epochs=10")),
    (lambda rows: rows, ["--optimizer.momentum=0.9"], ("optimizer.momentum=0.9", "adam")),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "args", "words"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_one_line_and_leaves_nothing(edit, args, words, files, tmp_path, capsys):
    path = changed(files, tmp_path, edit)
    flags = args if "--model=tiny" in args else [f"--flagfile={FLAGS / 'tabular.flags'}", *args]
    assert call(train, *flags, f"--data.path={path}", f"--workdir={tmp_path / 'run'}", "--mesh.data=8") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert all(word in err for word in words), err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda rows: [row.partition(",")[2] for row in rows], ("lacks x0",)),
        (lambda rows: [rows[0], rows[1].rpartition(",")[0] + ",maybe", *rows[2:]], ("maybe", "no, yes")),
    ],
    ids=["missing column", "unknown label"],
)
def test_what_does_not_fit_the_training_is_refused(edit, words, workdir, files, tmp_path, capsys):
    path = changed(files, tmp_path, edit)
    assert call(evaluate, f"--checkpoint={workdir}", f"--data.path={path}", f"--output={tmp_path / 'o.json'}") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(word in err for word in words), err
    assert not (tmp_path / "o.json").exists()


def test_a_trial_runs_all_of_it_and_keeps_nothing(files, tmp_path, capsys):
    flags = [f"--flagfile={FLAGS / 'tabular.flags'}", f"--data.path={files / 'train.csv'}", "--mesh.data=8"]
    assert call(train, *flags, f"--workdir={tmp_path / 'run'}", "--train.fast_dev_run=true") == 0
    told = capsys.readouterr()
    assert "step 2/2" in told.err and "eval: loss" in told.err and "nothing of it is kept" in told.out
    assert not (tmp_path / "run").exists()


def test_one_batch_alone_is_learnt_by_heart(files, tmp_path):
    flags = [f"--flagfile={FLAGS / 'tabular.flags'}", f"--data.path={files / 'train.csv'}", "--mesh.data=8"]
    more = [
        "--train.overfit_one_batch=true",
        "--train.epochs=none",
        "--train.steps=200",
        "--optimizer.learning_rate=0.01",
    ]
    assert call(train, *flags, *more, f"--workdir={tmp_path / 'run'}") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] == "train"][-1]
    assert last["loss"] < 0.02 and last["accuracy"] == 1
    assert lines[-1]["loss"] > 0.1  # and what was held out is not


def test_a_range_test_suggests_a_rate_and_trains_nothing(files, tmp_path, capsys):
    flags = [f"--flagfile={FLAGS / 'tabular.flags'}", f"--data.path={files / 'train.csv'}", "--mesh.data=8"]
    assert call(train, *flags, f"--workdir={tmp_path / 'run'}", "--optimizer.find_lr=true") == 0
    found = json.loads((tmp_path / "run" / "learning_rates.json").read_text())
    assert 1e-4 < found["suggestion"] < 1 and len(found["rates"]) == len(found["losses"]) > 50
    assert (tmp_path / "run" / "learning_rates.png").stat().st_size > 5000
    assert f"--optimizer.learning_rate={found['suggestion']:.2g}" in capsys.readouterr().out
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_ends_with_its_best_step_and_says_so(files, tmp_path, capsys):
    """All habits at once: what is evaluated, shipped and loaded is the average at the best step."""
    workdir = tmp_path / "run"
    flags = [f"--flagfile={FLAGS / 'tabular.flags'}", f"--data.path={files / 'train.csv'}", "--mesh.data=8"]
    habits = [
        "--train.monitor=loss", "--train.patience=2", "--train.eval_every=25", "--train.average=0.9",
        "--train.skip_nonfinite=true", "--train.rollback=2", "--optimizer.learning_rate=0.03", "--train.epochs=40",
    ]  # fmt: skip
    command = [*flags, *habits, f"--workdir={workdir}"]
    assert call(train, *command) == 0
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    evaluations = {line["step"]: line for line in lines if line["split"] == "eval"}
    best = json.loads((workdir / "checkpoints" / "chosen.json").read_text())
    assert best["stopped_early"] and best["value"] == min(line["loss"] for line in evaluations.values())
    assert max(evaluations) == best["step"] + 50 < 1000  # patience, in evaluations
    assert all(line["skipped"] == 0 for line in lines if line["split"] == "train")
    assert call(evaluate, f"--checkpoint={workdir}") == 0
    found = json.loads((workdir / "eval.json").read_text())
    assert (found["step"], found["loss"]) == (best["step"], pytest.approx(best["value"], rel=1e-5))
    capsys.readouterr()
    assert call(train, *command) == 0
    out = capsys.readouterr().out
    assert f"ended with its best step, {best['step']}: to go on from step " in out
    assert f"raise --train.patience and delete {workdir / 'checkpoints' / 'chosen.json'}" in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--train.monitor=acuracy"], "--train.monitor=acuracy is no metric of binary: did you mean accuracy?"),
        (["--train.patience=3"], "train.patience=3 needs a metric: set train.monitor"),
        (["--train.spike=3"], "train.spike=3 says when to go back: set train.rollback"),
        (["--train.profile=5"], "train.profile=5: give the first and the last step"),
        (["--checkpoint.keep_best=3"], "--checkpoint.keep_best=3 needs a metric: set --train.monitor"),
        (["--train.average=1"], "train.average=1: must be between 0 and 1"),
    ],
    ids=["monitor", "patience", "spike", "profile", "keep_best", "average"],
)
def test_a_wrong_habit_is_one_line(args, words, files, tmp_path, capsys):
    flags = [f"--flagfile={FLAGS / 'tabular.flags'}", f"--data.path={files / 'train.csv'}", "--mesh.data=8"]
    assert call(train, *flags, *args, f"--workdir={tmp_path / 'run'}") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and words in err, err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("loss", ["mse", pytest.param("quantile", marks=pytest.mark.slow)])
def test_a_number_is_predicted_in_the_units_of_its_column(loss, tmp_path):
    features = np.random.default_rng(0).normal(size=(400, 3))
    prices = 100 + 20 * features[:, 0] - 5 * features[:, 1] + np.random.default_rng(1).normal(size=400)
    with open(tmp_path / "prices.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "c", "price"])
        writer.writerows([*(f"{v:.4f}" for v in x), f"{y:.3f}"] for x, y in zip(features, prices, strict=True))
    workdir, output = tmp_path / "run", tmp_path / "out.csv"
    flags = ["--model=mlp", f"--data.path={tmp_path / 'prices.csv'}", "--data.label=price", "--train.epochs=20"]
    task = ["--task.name=regression", f"--task.loss={loss}", "--mesh.data=8"]
    assert call(train, *flags, *task, f"--workdir={workdir}") == 0
    assert evaluated(workdir)["mae_in_units"] < 3 and evaluated(workdir)["r2"] > 0.95
    assert call(predict, f"--checkpoint={workdir}", f"--input={tmp_path / 'prices.csv'}", f"--output={output}") == 0
    found = np.array([[float(v) for v in row.values()] for row in answers(output)])
    assert found.shape == (400, 3 if loss == "quantile" else 1)
    assert np.abs(found[:, found.shape[1] // 2] - prices).mean() < 3
    if loss == "quantile":
        below = np.mean(prices[:, None] < found, axis=0)
        assert below[0] < 0.25 and below[2] > 0.75
