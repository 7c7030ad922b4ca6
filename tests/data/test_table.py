"""Tables: fitted on the training part, from text to arrays and from outputs back to answers."""

import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import preprocessing

from jaxmodel.data.delimited import Columns
from jaxmodel.data.fitting import fit_table, held_out, task_of
from jaxmodel.data.table import Label, Table
from jaxmodel.errors import InputError
from jaxmodel.model import Outputs
from jaxmodel.options import Data, Task
from jaxmodel.tasks import TASKS

X = [1.5, -2, 0.25, 40, 3, 7, -1e3, 12, 0, 2.125]
Y = [0, 1] * 5


def columns_of(flag: str = "data.path", **columns: Any) -> Columns:
    """A table in memory, as if read from t.csv with a header."""
    cells = {name: np.array(list(map(str, column)), object) for name, column in columns.items()}
    size = len(next(iter(cells.values())))
    origins = np.stack([np.zeros(size), np.arange(size) + 2], axis=1).astype(np.int32)
    return Columns("'t.csv'", flag, cells, ("t.csv",), origins, (), "0" * 16)


def fit(columns, task=None, log=lambda line: None, **options) -> Table:
    return fit_table(columns, Data(**options), task=task, log=log)


def refused(words):
    return pytest.raises(InputError, match=words)


# Numbers


@pytest.mark.parametrize(
    ("kind", "scaler"),
    [
        ("auto", preprocessing.StandardScaler()),
        ("standard", preprocessing.StandardScaler()),
        ("minmax", preprocessing.MinMaxScaler()),
        ("robust", preprocessing.RobustScaler()),
        ("none", preprocessing.FunctionTransformer()),
    ],
)
def test_scaling_is_that_of_scikit_learn(kind, scaler):
    train = np.array([X, [0.1] * 10, [1e9 + x for x in X]]).T  # the second does not differ, but for rounding
    other = train[:3] * 1.5 - 0.25
    names = ("x", "flat", "far")
    table = fit(columns_of(**_named(names, train), label=Y), scaling=kind)
    scaler.fit(train)
    found = table.encode(columns_of(**_named(names, other)), need_label=False).arrays
    assert set(found) == {"features"} and found["features"].dtype == np.float32
    np.testing.assert_allclose(found["features"], scaler.transform(other), rtol=1e-6)


def _named(names, rows):
    return {name: column.tolist() for name, column in zip(names, rows.T, strict=True)}


@pytest.mark.parametrize("word", ["", "NA", "n/a", "NaN", "null", "None", "?", "-nan"])
def test_what_is_missing_becomes_the_median_and_a_feature_of_its_own(word):
    train = columns_of(a=[1, 2, 4, word, 9], b=[1, 2, 3, 4, 5], label=[0, 1, 0, 1, 0])
    table = fit(train)
    present = np.array([1, 2, 4, 9])
    encoded = table.encode(columns_of(a=[word, 2], b=[word, 3]), need_label=False)
    a, b = (np.array([3, 2]) - present.mean()) / present.std(), (np.array([3, 3]) - 3) / np.sqrt(2)
    # In `b` nothing was missing in training: it is filled in, and no feature says so.
    np.testing.assert_allclose(encoded.arrays["features"], np.stack([a, b, [1, 0]], 1), rtol=1e-6)
    assert encoded.missing == {"a": 1, "b": 1}
    assert list(encoded.lines("new.csv")) == ["table: new.csv: missing values: a 1, b 1"]
    assert table.facts == {"inputs": ("features",), "num_features": 3, "categories": (), "num_outputs": 1}


def test_what_is_missing_may_be_refused():
    table = fit(columns_of(a=[1, 2, 3], c=["u", "u", "v"], label=[0, 1, 1]), missing="error")
    for row in ({"a": [1, "?"], "c": ["u", "u"]}, {"a": [1, 2], "c": ["u", ""]}):
        with refused(r"line 3 of 't.csv', column [ac]: '\??' is missing: fill it in, or train with data.missing"):
            table.encode(columns_of(**row), need_label=False)


# Categories


def test_categories_by_how_often_they_are_seen_and_zero_for_all_others():
    colors = ["red"] * 2 + ["blue"] * 3 + ["green"] * 2 + ["rare", "?"]
    table = fit(columns_of(color=colors, label=[0, 1, 1] * 3))
    assert table.categorical[0].categories == ("blue", "green", "red")
    encoded = table.encode(columns_of(color=["red", "rare", "new", "", "blue"]), need_label=False)
    np.testing.assert_array_equal(encoded.arrays["categories"], [[3], [0], [0], [0], [1]])
    assert encoded.arrays["categories"].dtype == np.int32 and "features" not in encoded.arrays
    assert (encoded.unknown, encoded.missing) == ({"color": 2}, {"color": 1})
    assert list(encoded.lines("t"))[1] == "table: t: unknown or rare categories: color 2"
    assert table.facts == {"inputs": ("categories",), "num_features": 0, "categories": (4,), "num_outputs": 1}


def test_numbers_may_be_names():
    train = columns_of(zip=[10, 10, 20, 20], x=[1, 2, 3, 4], label=[0, 1, 0, 1])
    assert fit(train).facts["num_features"] == 2
    table = fit(train, categorical=("zip",))
    assert (table.facts["num_features"], table.categorical[0].categories) == (1, ("10", "20"))


def test_columns_are_found_by_name_and_others_left_out():
    train = columns_of(a=X, c=["u", "v"] * 5, b=X[::-1], label=Y)
    table = fit(train)
    shuffled = columns_of(label=Y, extra=X, b=X[::-1], c=["u", "v"] * 5, a=X)
    one, other = table.encode(train), table.encode(shuffled)
    for name in ("features", "categories", "targets"):
        np.testing.assert_array_equal(one.arrays[name], other.arrays[name])
    assert (one.ignored, other.ignored) == ((), ("extra",))
    assert list(other.lines("t.csv")) == ["table: t.csv: columns left out: extra"]
    assert fit(train, ignore=("a",)).numeric[0].name == "b"


def test_empty_columns_and_names_of_rows_are_told_of():
    told = []
    size = 204
    train = columns_of(
        nothing=["?"] * size, key=[f"k{i}" for i in range(size)], x=range(size), label=[0, 1] * (size // 2)
    )
    table = fit(train, log=told.append)
    assert told == [
        "table: column nothing holds nothing, and is left out",
        "table: column key has 204 categories in 204 rows: data.ignore=key?",
    ]
    assert [each.name for each in table.numeric] == ["x"] and table.categorical[0].size == 1


# Labels


LABELS = [
    ([0, 1, 1, 0], "binary", ("0", "1")),
    (["no", "yes", "no", "yes"], "binary", ("no", "yes")),
    (["none", "mild", "severe", "none"], "classification", ("mild", "none", "severe")),
    ([10, 9, 2, 2.0], "classification", ("2", "9", "10")),  # in the order of numbers
    ([-1.5, 2.5, -1.5, 2.5], "binary", ("-1.5", "2.5")),
    ([1.5, 2, 3, 3], "regression", ()),
    (range(101), "regression", ()),
    (range(100), "classification", tuple(map(str, range(100)))),
    ([f"c{i:03}" for i in range(150)], "classification", tuple(f"c{i:03}" for i in range(150))),
]


@pytest.mark.parametrize(("labels", "task", "classes"), LABELS)
def test_what_a_label_is_for(labels, task, classes):
    train = columns_of(x=range(len(labels)), label=labels)
    assert task_of(train, "label") == task
    label = fit(train).label
    assert (label.task, label.classes) == (task, classes)
    targets = fit(train).encode(train).arrays["targets"]
    if task == "regression":
        values = np.array(labels, np.float64)
        np.testing.assert_allclose(targets, (values - values.mean()) / values.std(), rtol=1e-6)
        assert targets.dtype == np.float32
    else:
        spelled = {name: i for i, name in enumerate(classes)}
        assert targets.tolist() == [spelled[str(int(x) if x == 2.0 else x)] for x in labels]
        assert targets.dtype == np.int32


@pytest.mark.parametrize(
    ("labels", "task", "num_outputs"),
    [([0, 1, 1, 0], "classification", 2), ([0, 1, 1, 0], "regression", 1), (["a", "b", "c"], None, 3)],
)
def test_the_task_may_be_said(labels, task, num_outputs):
    table = fit(columns_of(x=range(len(labels)), label=labels), task=task)
    assert (table.label.task, table.facts["num_outputs"]) == (task or "classification", num_outputs)


def test_labels_are_numbers_or_names():
    table = fit(columns_of(x=[1, 2, 3], label=[1, 2, 3]))
    assert table.encode(columns_of(x=[1, 1], label=["3.0", "01"])).arrays["targets"].tolist() == [2, 0]
    with refused("line 3 .*, column label: '4' is none of the classes of training: 1, 2, 3"):
        table.encode(columns_of(x=[1, 1], label=["3", "4"]))
    with refused("line 2 .*, column label: 'x' is none of the classes"):
        table.encode(columns_of(x=[1], label=["x"]))


@pytest.mark.parametrize(
    ("label", "logits", "expected"),
    [
        (
            Label("y", "binary", ("no", "yes")),
            [[2.0], [-1.0]],
            {"prediction": ["yes", "no"], "probability_yes": [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(1))]},
        ),
        (
            Label("y", "classification", ("a", "b")),
            [[0, np.log(3)], [100, 0]],
            {"prediction": ["b", "a"], "probability_a": [0.25, 1.0], "probability_b": [0.75, 0.0]},
        ),
        (Label("y", "regression", (), 10.0, 4.0), [[0.5], [-1.0]], {"prediction": [12, 6]}),
    ],
)
def test_answers(label, logits, expected):
    outputs = Outputs({"logits": jnp.asarray(logits, jnp.float32)})
    found = Table(label, ()).answers(TASKS[label.task].predict(outputs, Task()))
    assert list(found) == list(expected)
    for name, column in expected.items():
        if isinstance(column[0], str):
            assert found[name].tolist() == column
        else:
            np.testing.assert_allclose(found[name], column, rtol=1e-6, atol=1e-30)


def test_quantiles_are_answered_one_by_one():
    found = Table(Label("y", "regression", (), 10.0, 4.0), ()).answers({"prediction": np.array([[-1, 0, 1]])})
    assert {name: value.tolist() for name, value in found.items()} == {
        "prediction_0": [6],
        "prediction_1": [10],
        "prediction_2": [14],
    }


# Images


@pytest.mark.parametrize(("shape", "want"), [((2, 3), (2, 3, 1)), ((1, 2, 3), (1, 2, 3))])
def test_images_are_rows_of_numbers_on_one_scale(shape, want):
    pixels = np.array([[0, 1, 2, 3, 4, 8], [0, 5, 0, 5, 0, 5]])
    train = columns_of(label=[0, 1], **{f"p{i}": column.tolist() for i, column in enumerate(pixels.T)})
    table = fit(train, image_shape=shape)
    found = table.encode(train).arrays
    assert set(found) == {"images", "targets"}
    np.testing.assert_array_equal(found["images"], pixels.reshape(2, *want) / np.float32(8))
    assert table.facts == {"inputs": ("images",), "channels": want[2], "num_outputs": 1}
    standard = fit(train, image_shape=shape, scaling="standard").encode(train).arrays["images"]
    np.testing.assert_allclose(standard.mean(), 0, atol=1e-7)
    np.testing.assert_allclose(standard.std(), 1, rtol=1e-6)


# Written down


def test_a_table_is_written_down_and_read_back():
    table = fit(columns_of(a=[*X[:9], "?"], c=["ü", "v"] * 5, label=Y), scaling="robust", missing="impute")
    text = table.to_json()
    assert Table.from_json(text) == table and "ü" in text
    assert json.loads(text)["type"] == "Table"


@pytest.mark.parametrize("text", ["", "{}", "[1", '{"type": "Data"}', '{"type": "Table", "label": 3}'])
def test_what_is_no_table_is_refused(text):
    with refused("table.json (is not as it was written|holds a Data).*: take another checkpoint"):
        Table.from_json(text)


@given(
    st.lists(
        st.tuples(st.floats(-1e30, 1e30) | st.none(), st.sampled_from(["u", "v", "w", "?"]), st.integers(0, 3)),
        min_size=2,
    ).filter(lambda rows: len({row[2] for row in rows}) > 1 and any(row[0] is not None for row in rows)),
    st.sampled_from(["standard", "minmax", "robust", "none"]),
)
def test_any_table_becomes_finite_arrays(rows, kind):
    x, c, y = zip(*rows, strict=True)
    train = columns_of(x=["" if each is None else repr(each) for each in x], c=c, label=y)
    table = fit(train, scaling=kind, categorical=("c",))
    arrays = Table.from_json(table.to_json()).encode(train).arrays
    if "features" in arrays:
        assert np.isfinite(arrays["features"]).all()
    if "categories" in arrays:
        assert 0 <= arrays["categories"].min() <= arrays["categories"].max() < table.facts["categories"][0]
    assert [table.label.classes[i] for i in arrays["targets"]] == [str(each) for each in y]


# Held out


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.2, 0.25, 0.5])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_fixed_part_is_held_out_of_every_class(fraction, task):
    rng = np.random.default_rng(0)
    labels = np.concatenate([rng.permuted([0] * 100 + [1] * 31 + [2] * 4 + [3] * 2), [4]])
    held = held_out(columns_of(label=labels), "label", task, fraction)
    assert abs(held.sum() - fraction * len(labels)) <= 1
    if task == "classification":
        counts = np.bincount(labels[held], minlength=5)
        assert (np.abs(counts - fraction * np.bincount(labels)) <= 1).all()
        assert (counts < np.bincount(labels)).all()  # every class is left to learn from
    np.testing.assert_array_equal(held, held_out(columns_of(label=labels), "label", task, fraction))


def test_what_is_held_out_never_changes_silently():
    held = held_out(columns_of(label=Y * 2), "label", "binary", 0.25)
    assert np.flatnonzero(held).tolist() == [2, 4, 7, 10, 11]


# Mistakes

ERRORS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"x": [*range(19), "abc"]}, {}, "line 21 of 't.csv', column x: 'abc' is text in a numeric column: mend it, leave "
        "it empty, or set data.categorical=x"),
    ({"x": [1, 2, "inf"]}, {}, "line 4 of 't.csv', column x: 'inf' is no finite float32 number"),
    ({"x": [1, "-1e39", "1e40"]}, {}, r"line 3 .*'-1e39' is no finite float32 number.* \(so are 1 more"),
    ({"x": [1, 2], "label": [0, 0]}, {}, "column label of 't.csv' holds nothing but 0: there is nothing to tell"),
    ({"x": [1, 2], "label": ["a", ""]}, {}, "line 3 .*, column label: '' is no label: fill it in"),
    ({"x": [1, 2, 3], "label": [1, "NA", 0]}, {}, "line 3 .*, column label: 'NA' is no label"),
    ({"x": [1, 2]}, {"label": "lable"}, "'t.csv' has no column lable: did you mean label?"),
    ({"x": [1, 2]}, {"label": "quality"}, "'t.csv' has no column quality: it has x, label"),
    ({"1.5": [1, 2], "2": [1, 2]}, {"label": "y"}, "numbers for names: .* set data.header=false, and"),
    ({"x": [1, 2]}, {"ignore": ("z",)}, "has no column z: it has x, label"),
    ({"x": [1, 2]}, {"ignore": ("x",)}, "'t.csv' has no column beside label to learn from"),
    ({"x": [1, 2]}, {"image_shape": (2, 2)}, "data.image_shape=2,2 needs 4 numeric columns, and 't.csv' has 1"),
    ({"x": ["a", "b"]}, {"image_shape": (1, 1)}, "a pixel, and column x of 't.csv' holds text: set data.ignore=x"),
    ({"x": [1, 2], "label": ["a", "b"]}, {"task": "regression"}, "holds text: task.name=regression needs numbers"),
    ({"x": [1, 2, 3], "label": [1, 2, 3]}, {"task": "binary"}, "holds 3 values: task.name=binary needs two"),
    ({"x": [1, 2]}, {"task": "seq2seq"}, "task.name=seq2seq is not for a table with one label: choose from"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "options", "words"), ERRORS, ids=[words[:40] for _, _, words in ERRORS])
def test_words_of_the_errors(columns, options, words):
    size = len(next(iter(columns.values())))
    labels = {} if "label" in columns or "1.5" in columns else {"label": [i % 2 for i in range(size)]}
    with refused(words) as error:
        fit(columns_of(**(columns | labels)), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"a": [1, "x"], "c": ["u", "v"]}, "^input: line 3 of 't.csv', column a: 'x' is not a number"),
        ({"a": [1, "1e60"], "c": ["u", "v"]}, "column a: '1e60' is no finite float32 number"),
        ({"a": [1, "3e38"], "c": ["u", "v"]}, "column a: '3e38' is too large, once scaled as in training"),
        ({"b": [1]}, "^input: 't.csv' lacks a, c, which the model was trained on: give a table with the columns a, c"),
    ],
)
def test_words_about_other_tables(columns, words):
    table = fit(columns_of(a=[0, 1e-3] * 2, c=["u", "v"] * 2, label=[0, 1] * 2))
    with refused(words):
        table.encode(columns_of("input", **columns), need_label=False)


def test_a_column_that_is_mostly_text_is_of_categories():
    table = fit(columns_of(x=[*range(18), "a", "a"], label=Y * 2))
    assert table.categorical[0].categories == ("a",)
