"""Sources: what is read, in which order; a split that is stable and never empty; the words of the errors."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmodel.data.sources import documents
from jaxmodel.errors import InputError


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def test_a_file_is_one_document(tmp_path):
    write(tmp_path, {"a.txt": b"\xef\xbb\xbfone\r\n\r\ntwo \xc3\xa9"})
    assert list(documents(tmp_path / "a.txt")) == [("a.txt", "one\r\n\r\ntwo é")]


def test_a_folder_is_its_files(tmp_path):
    write(
        tmp_path,
        {
            "b.txt": "b",
            "a/z.py": "z",
            "a/y.txt": "y",
            "empty.txt": "",
            "blank.txt": " \n",
            ".hidden.txt": "h",
            ".git/x.txt": "x",
            "c.jsonl": '{"text": "c1"}\n\n{"text": ""}\n{"text": "c4"}\n',
        },
    )
    everything = [("a/y.txt", "y"), ("a/z.py", "z"), ("b.txt", "b"), ("c.jsonl:1", "c1"), ("c.jsonl:4", "c4")]
    assert list(documents(tmp_path)) == everything
    assert [name for name, _ in documents(tmp_path, pattern="*.txt")] == ["a/y.txt", "b.txt"]
    assert [name for name, _ in documents(tmp_path, pattern="a/*")] == ["a/y.txt", "a/z.py"]
    assert list(documents(str(tmp_path))) == everything


def test_jsonl_is_a_document_a_line(tmp_path):
    lines = [json.dumps({"body": text, "n": 1}) for text in ("one", "two\nlines", "drei ß")]
    write(tmp_path, {"d.jsonl": "\ufeff" + "\r\n".join(lines)})
    texts = [text for _, text in documents(tmp_path / "d.jsonl", text_field="body")]
    assert texts == ["one", "two\nlines", "drei ß"]


def test_the_built_in_text_is_the_standard_library():
    found = dict(documents())
    assert "json/decoder.py" in found and "argparse.py" in found
    assert not [name for name in found if "test" in name.split("/") or "site-packages" in name]
    assert len(found) > 400 and sum(map(len, found.values())) > 5e6


@given(st.integers(2, 60), st.floats(0.001, 0.999))
def test_a_split_parts_the_documents_and_neither_is_empty(tmp_path_factory, count, heldout):
    path = tmp_path_factory.getbasetemp() / f"{count}.jsonl"
    path.write_text("".join(f'{{"text": "{i}"}}\n' for i in range(count)))
    train, held = (list(part) for part in documents(path).split(heldout))
    assert train and held
    assert sorted(train + held) == sorted(documents(path))


def test_about_the_fraction_asked_for_is_held_out(tmp_path):
    write(tmp_path, {"d.jsonl": '{"text": "x"}\n' * 4000})
    train, held = documents(tmp_path / "d.jsonl").split(0.1)
    assert 340 < len(list(held)) < 460
    assert len(list(train)) + len(list(held)) == 4000


def test_the_split_is_the_same_on_every_machine_and_for_ever(tmp_path):
    write(tmp_path, {f"{name}.txt": name for name in "abcdefghijklmnopqrst"})
    _, held = documents(tmp_path).split(0.25)
    assert "".join(text for _, text in held) == "acdgjnos"


def test_a_new_document_moves_no_other_across_the_split(tmp_path):
    write(tmp_path, {f"{i}.txt": "x" for i in range(100)})
    before = {name for name, _ in documents(tmp_path).split(0.2)[1]}
    write(tmp_path, {f"new{i}.txt": "x" for i in range(20)})
    assert {name for name, _ in documents(tmp_path).split(0.2)[1] if "new" not in name} == before


@pytest.mark.parametrize(
    ("text", "heldout", "train", "held"),
    [
        ("one\ntwo\nthree\nfour\n", 0.3, "one\ntwo\n", "three\nfour\n"),
        ("a" * 10, 0.2, "a" * 8, "aa"),  # no line break to cut at
        ("a\n" + "é" * 98, 0.05, "a\n" + "é" * 93, "é" * 5),  # one, but too far away
        ("ab", 0.01, "a", "b"),
    ],
)
def test_a_single_document_has_its_tail_held_out(tmp_path, text, heldout, train, held):
    write(tmp_path, {"a.txt": text})
    parts = documents(tmp_path / "a.txt").split(heldout)
    assert [[document.text for document in part] for part in parts] == [[train], [held]]


def test_listing_notices_change(tmp_path):
    path = write(tmp_path, {"a.txt": "one", "b.txt": "two"})
    listings = [documents(path).listing()]
    assert documents(path).listing() == listings[0]
    write(path, {"a.txt": "three"})
    listings.append(documents(path).listing())
    os.utime(path / "b.txt", (1, 1))
    listings.append(documents(path).listing())
    (path / "b.txt").unlink()
    listings.append(documents(path).listing())
    assert len({json.dumps(listing) for listing in listings}) == 4


@pytest.mark.parametrize(
    ("files", "path", "words"),
    [
        ({"corpus.txt": "x"}, "corpus.tx", r"'.*corpus\.tx' does not exist; did you mean '.*corpus\.txt'\?"),
        ({"corpus.txt": "x"}, "zzz", "does not exist; give a text file, a folder, a .jsonl, or nothing"),
        ({"corpus.txt": "x"}, "no/such/folder", "does not exist; give a text file"),
        ({"d/.hidden": "x"}, "d", "the folder '.*d' holds no text; give a file or folder that does"),
        ({"d/empty.txt": ""}, "d", "the folder '.*d' holds no text"),
        ({"d/blank.txt": " \n"}, "d", "'.*d' holds no text; give a file or folder that does"),
        ({"a.txt": ""}, "a.txt", "'.*a.txt' holds no text; give"),
        ({"a.txt": " \n\n"}, "a.txt", "'.*a.txt' holds no text; give"),
        ({"a.jsonl": "\n"}, "a.jsonl", "'.*a.jsonl' holds no text; give"),
        ({"d/a.txt": "x", "d/b.bin": b"GIF\0\1"}, "d", r"b.bin' is binary, not text \(byte 3 is zero\); leave it out"),
        ({"a.txt": "é".encode("latin1")}, "a.txt", r"a.txt' is not UTF-8 \(byte 0 is 0xe9\); convert it.*iconv"),
        ({"a.txt": b"\xef\xbb\xbfab\xff"}, "a.txt", r"not UTF-8 \(byte 5 is 0xff\)"),
        ({"a.txt": "abc".encode("utf-16")}, "a.txt", "a.txt' is UTF-16, not UTF-8; convert it: iconv -f utf-16"),
        ({"a.jsonl": '{"text": "x"}\n{"text": '}, "a.jsonl", "line 2 of '.*a.jsonl' is not JSON .*object a line"),
        ({"a.jsonl": "\n[1]"}, "a.jsonl", "line 2 of '.*' is a list; give a JSON object a line"),
        (
            {"a.jsonl": '{"title": "x", "body": "y"}'},
            "a.jsonl",
            r"line 1 of '.*' has no field 'text'; set data\.text_field \(it has: body, title\)",
        ),
        ({"a.jsonl": '{"text": 3}'}, "a.jsonl", "the field 'text' in line 1 of '.*' is a int; give a string"),
        ({"a.jsonl": b'{"text": "\xe9"}'}, "a.jsonl", r"line 1 of '.*' is not UTF-8 \(byte 10 is 0xe9\)"),
        ({"a.jsonl": b"PAR1\0\0"}, "a.jsonl", "line 1 of '.*' is binary"),
        ({"a.jsonl": '{"text": "ab\\ud800"}'}, "a.jsonl", r"half a surrogate pair \(character 2\)"),
    ],
)
def test_words_of_the_errors(tmp_path, files, path, words):
    write(tmp_path, files)
    with pytest.raises(InputError, match=words) as caught:
        documents(tmp_path / path).split(0.5)
    assert str(caught.value).startswith("data.path: ")
    assert "\n" not in str(caught.value)


def test_words_for_a_pattern_that_matches_nothing(tmp_path):
    write(tmp_path, {"a.txt": "x"})
    with pytest.raises(InputError, match=r"holds no text in files that match data\.pattern=\*\.md; give"):
        documents(tmp_path, pattern="*.md")


def test_words_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe or a device; save it to a file first"):
        documents(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_words_for_what_may_not_be_read(tmp_path, monkeypatch, name):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    source = documents(write(tmp_path, {name: "x"}) / name)
    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=f"cannot read '.*{name}': Permission denied; see to its permissions"):
        source.split(0.5)


@pytest.mark.parametrize("count", [1, 5])
def test_all_may_be_held_out(tmp_path, count):
    for i in range(count):
        (tmp_path / f"{i}.txt").write_text(f"text {i}")
    train, held = documents(tmp_path).split(1)
    assert (len(list(train)), len(list(held))) == (0, count)


@pytest.mark.parametrize("heldout", [0, -0.1, 1.5])
def test_words_for_a_fraction_that_is_none(tmp_path, heldout):
    write(tmp_path, {"a.txt": "some text"})
    with pytest.raises(
        InputError, match=f"data.heldout={heldout}: give the fraction to hold out, above 0 and at most 1"
    ):
        documents(tmp_path).split(heldout)
