"""One door for text and tables: sources, facts for the model, and the same rows held out again later."""

import dataclasses
import json

import numpy as np
import pytest

from jaxmodel import config
from jaxmodel.data.dataset import kind_of, open_dataset, read_columns
from jaxmodel.data.loader import Source, sequential
from jaxmodel.data.packing import Windows
from jaxmodel.data.table import Table
from jaxmodel.data.text import prepare_text
from jaxmodel.data.tokenizer import ByteTokenizer, Tokenizer
from jaxmodel.errors import InputError
from jaxmodel.models.presets import PRESETS
from jaxmodel.options import Data


def quiet(line):
    pass


@pytest.fixture
def folder(tmp_path):
    """Two tables of one kind, and a text."""
    rng = np.random.default_rng(0)
    for name, size in (("train", 100), ("test", 30), ("more.of.it", 7)):
        lines = [f"{i},{rng.normal():.3f},{rng.choice(['u', 'v'])},{i % 3}" for i in range(size)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["id,x,c,label", *lines]))
    (tmp_path / "a.txt").write_text("some text\n" * 50)
    return tmp_path


def rows_of(source):
    return len(source), source.gather(np.arange(len(source)))


def test_a_table(folder):
    told = []
    data = open_dataset(Data(path=str(folder / "train.csv"), ignore=("id",)), log=told.append)
    assert (data.title, data.task, data.noun, data.num_train, data.per_example) == (
        f"'{folder / 'train.csv'}'", "classification", "rows", 80, 1)  # fmt: skip
    assert data.facts == {
        "inputs": ("features", "categories"), "num_features": 1, "categories": (3,), "num_outputs": 3}  # fmt: skip
    size, batch = rows_of(data.train)
    assert (size, {name: array.shape for name, array in batch.items()}) == (
        80, {"weights": (80,), "features": (80, 1), "categories": (80, 1), "targets": (80,)})  # fmt: skip
    np.testing.assert_allclose(batch["features"].std(), 1, rtol=1e-6)  # scaled by the training part alone
    assert list(data.heldout) == ["eval"] and len(data.heldout["eval"]) == 20
    assert isinstance(data.fitted, Table) and Table.from_json(data.texts["table.json"]) == data.fitted
    assert told[-1] == (
        f"table: '{folder / 'train.csv'}': 80 rows to train on, held out: eval 20; 1 features, 1 columns of "
        "categories; label: classification of 0, 1, 2"
    )
    assert "table: training: columns left out: id" in told
    assert data.extra_metrics({"loss": 1.0, "mae": 1.0}) == {} and data.text is None


def test_what_was_fitted_is_used_again(folder):
    options = Data(path=str(folder / "train.csv"))
    first = open_dataset(options, log=quiet)
    again = open_dataset(options, stored=first.fitted, log=quiet)
    for one, other in ((first.train, again.train), (first.heldout["eval"], again.heldout["eval"])):
        for name, array in rows_of(one)[1].items():
            np.testing.assert_array_equal(array, rows_of(other)[1][name])
    assert again.fingerprint == first.fingerprint
    # Another table, all of it, as `recipes.eval` has it.
    other = dataclasses.replace(options, path=str(folder / "test.csv"), heldout=1.0)
    data = open_dataset(other, stored=first.fitted, log=quiet)
    assert data.train is None and len(data.heldout["eval"]) == 30
    assert data.fitted == first.fitted and data.fingerprint != first.fingerprint


def test_the_fingerprint_follows_the_rows_and_how_they_are_read(folder):
    options = Data(path=str(folder / "train.csv"))
    changes = [{}, {"heldout": 0.5}, {"ignore": ("id",)}, {"scaling": "minmax"}, {"path": str(folder / "test.csv")}]
    marks = [open_dataset(dataclasses.replace(options, **each), log=quiet).fingerprint for each in changes]
    assert len(set(marks)) == len(changes) and all(len(mark) == 16 for mark in marks)


def test_other_files_to_evaluate_on(folder):
    options = Data(
        path=str(folder / "train.csv"),
        eval_path=(str(folder / "test.csv"), str(folder / "more.of.it.csv"), str(folder / "train.csv")),
    )
    options.check()
    data = open_dataset(options, log=quiet)
    assert {name: len(source) for name, source in data.heldout.items()} == {"eval": 30, "more": 7, "train": 100}
    assert data.num_train == 100 and data.train is not None and len(data.train) == 100
    assert [len(batch["targets"]) for batch in sequential(data.heldout["more"], 4)] == [4, 4]


def test_a_regression_tells_its_errors_in_the_units_of_its_label(tmp_path):
    values = [10.5, 20, 30, 40, 60]
    (tmp_path / "t.csv").write_text("\n".join(["x,label", *(f"{i},{y}" for i, y in enumerate(values))]))
    data = open_dataset(Data(path=str(tmp_path / "t.csv"), eval_path=(str(tmp_path / "t.csv"),)), log=quiet)
    assert data.task == "regression" and data.facts["num_outputs"] == 1
    found = data.extra_metrics({"loss": 9.0, "mae": 0.5, "mse": 4.0})
    assert found == pytest.approx({"mae_in_units": 0.5 * np.std(values), "rmse_in_units": 2 * np.std(values)})
    assert data.extra_metrics({"rmse": 3.0}) == pytest.approx({"rmse_in_units": 3 * np.std(values)})


def test_the_task_may_be_said(folder):
    data = open_dataset(Data(path=str(folder / "train.csv")), task="regression", log=quiet)
    assert (data.task, data.facts["num_outputs"]) == ("regression", 1)
    assert rows_of(data.train)[1]["targets"].dtype == np.float32


@pytest.mark.parametrize("heldout", [None, 0.3, 1.0])
def test_text_is_what_it_was(folder, heldout):
    options = Data(path=str(folder / "a.txt"), tokenizer="byte", length=8, heldout=heldout, cache=str(folder / "cache"))
    data = open_dataset(options, log=quiet)
    plain = dataclasses.replace(options, heldout=0.05 if heldout is None else heldout)
    text = prepare_text(plain, log=quiet)
    assert data.fingerprint == text.fingerprint and data.text is not None
    assert (data.task, data.noun, data.per_example) == ("language_model", "tokens", 8)
    assert data.facts == {"inputs": ("tokens",), "vocab_size": 257, "length": 8}
    pairs: list[tuple[Source, Source]] = [(data.heldout["eval"], Windows(text.heldout, 8, partial=True))]
    if heldout == 1:
        assert data.train is None and data.num_train == 0
    else:
        assert data.train is not None
        pairs.append((data.train, Windows(text.train, 8)))
        assert data.num_train == text.train.num_targets
    for one, other in pairs:
        for name, array in rows_of(one)[1].items():
            np.testing.assert_array_equal(array, rows_of(other)[1][name])
    assert data.extra_metrics({"loss": 2.0}) == {"bits_per_byte": text.heldout.bits_per_byte(2.0)}
    stored = Tokenizer.from_json(data.texts["tokenizer.json"])
    assert open_dataset(options, stored=stored, log=quiet).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (Data(), "text"),
        (Data(path="a.txt"), "text"),
        (Data(path="a.csv.gz"), "table"),
        (Data(path="a.txt", kind="table"), "table"),
        (Data(path="a.csv", kind="text"), "text"),
    ],
)
def test_kinds(options, kind):
    assert kind_of(options) == kind


def test_the_columns_of_a_table_to_predict_on_are_read_in_the_same_way(tmp_path):
    (tmp_path / "new.txt").write_text("made by hand\n1;2\n3;4\n")
    columns = read_columns(Data(header=False, skip_rows=1), tmp_path / "new.txt", "input")
    assert list(columns.columns) == ["0", "1"] and columns.flag == "input"


ERRORS = [
    ({"path": "train.csv", "heldout": 0.0}, "data.heldout=0 of the 100 rows of '.*' leaves none to evaluate on: raise"),
    ({"path": "train.csv", "heldout": 1.0}, "data.heldout=1 leaves no rows to fit the table on"),
    ({"path": "train.csv", "eval_path": ("test.csv", "eval.csv")}, "data.eval_path names eval twice"),
    ({"path": "train.csv", "eval_path": ("tset.csv",)}, "^data.eval_path: 'tset.csv' does not exist; did you mean"),
    ({"path": "a.txt", "image_shape": (2, 2)}, "data.kind=text and data.image_shape=2,2 contradict"),
    ({"kind": "table"}, "data.path is missing: name a .csv"),
]


@pytest.mark.parametrize(("options", "words"), ERRORS, ids=[words[:40] for _, words in ERRORS])
def test_words_of_the_errors(folder, monkeypatch, options, words):
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=words):
        open_dataset(Data(**options), log=quiet)


def test_what_was_fitted_must_be_of_the_same_kind(folder):
    with pytest.raises(InputError, match=r"data.path=.*train.csv is a table, and the checkpoint's model"):
        open_dataset(Data(path=str(folder / "train.csv")), stored=ByteTokenizer(), log=quiet)
    table = open_dataset(Data(path=str(folder / "train.csv")), log=quiet).fitted
    with pytest.raises(InputError, match=r"data.path=.*a.txt is text, and the checkpoint's model"):
        open_dataset(Data(path=str(folder / "a.txt")), stored=table, log=quiet)


# scikit-learn's data, as recipes/flags/ name it


def test_the_data_of_scikit_learn():
    data = open_dataset(
        Data(path="package:sklearn/datasets/data/breast_cancer.csv", header=False, skip_rows=1, label="30"), log=quiet
    )
    assert (data.task, data.num_train, len(data.heldout["eval"])) == ("binary", 455, 114)
    model = PRESETS["mlp"].fitted(data.facts)
    assert (model.num_features, model.categories, model.num_outputs) == (30, (), 1)
    data = open_dataset(
        Data(
            path="package:sklearn/datasets/data/digits.csv.gz",
            header=False,
            label="64",
            image_shape=(8, 8),
            heldout=0.25,
        ),
        log=quiet,
    )
    batch = rows_of(data.train)[1]
    assert batch["images"].shape == (1348, 8, 8, 1) and (batch["images"].min(), batch["images"].max()) == (0, 1)
    model = PRESETS["resnet-tiny"].fitted(data.facts)
    assert (model.num_classes, model.channels) == (10, 1)
    assert json.loads(data.texts["table.json"]) == config.to_dict(data.fitted)
