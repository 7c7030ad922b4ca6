"""Prepared folders: what training on the text itself would see, whatever the shards, the threads and the accidents."""

import dataclasses
import errno
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from jaxmodel.data import plan as plan_module
from jaxmodel.data import prepare as prepare_module
from jaxmodel.data import text as text_module
from jaxmodel.data.corpus import Joined
from jaxmodel.data.loader import Loader
from jaxmodel.data.packing import Windows
from jaxmodel.data.prepare import Preparation, prepare
from jaxmodel.data.sources import decode, stream
from jaxmodel.data.text import prepare_text
from jaxmodel.data.tokenizer import ByteTokenizer, pieces, stream_pieces, train_bpe
from jaxmodel.errors import InputError
from jaxmodel.options import Data

WORDS = "größer words, né e\u0301 <|endoftext|> and ﬁne"


def quiet(_):
    pass


@pytest.fixture
def small_pieces(monkeypatch):
    for module in (plan_module, prepare_module, text_module):
        monkeypatch.setattr(module, "PIECE", 100)
    for module in (prepare_module, text_module):
        monkeypatch.setattr(module, "SAMPLE", 30)
    monkeypatch.setattr(text_module, "BATCH", 400)
    monkeypatch.setattr(prepare_module, "EVERY", 0.0)


def folder(root: Path) -> Path:
    for i in range(30):
        path = root / "in" / f"{i:02}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(("\ufeff" * (i % 2) + f"Document {i}: {WORDS}\r\n" * (i % 9)).encode())
    return root / "in"


def lines(root: Path) -> Path:
    path = root / "in.jsonl"
    rows = [json.dumps({"text": f"Line {i}: {WORDS} " * (i % 12)}) for i in range(40)]
    path.write_text("\n\n".join(rows) + "\n")
    return path


def long_file(root: Path) -> Path:
    path = root / "long.txt"
    path.write_text("\ufeff" + "".join(f"{i}: {WORDS}\n" for i in range(200)), encoding="utf-8")
    return path


def one_line(root: Path) -> Path:
    path = root / "one_line.txt"
    path.write_text(f"{WORDS} " * 100, encoding="utf-8")
    return path


def one_record(root: Path) -> Path:
    path = root / "one.jsonl"
    path.write_text(json.dumps({"text": "".join(f"{i}: {WORDS}\n" for i in range(50))}))
    return path


def call(source: Path, output: Path, log=quiet, **options):
    options = {"tokenizer": "byte", "heldout": 0.2, "shard_mb": 0.001} | options
    return prepare(Preparation(input=str(source), output=str(output), **options), log)


def opened(path: Path, stored=None, **options):
    return prepare_text(Data(path=str(path), **options), stored, log=quiet)


def files(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in sorted(path.iterdir()) if each.name != ".lock"}


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
@pytest.mark.parametrize("make", [folder, lines, long_file, one_line, one_record])
def test_the_shards_are_what_the_text_gives(tmp_path, small_pieces, make, tokenizer):
    source = make(tmp_path)
    index = call(source, tmp_path / "out", tokenizer=tokenizer, vocab_size=300)
    raw = opened(source, tokenizer=tokenizer, vocab_size=300, heldout=0.2, cache=str(tmp_path))
    made = opened(tmp_path / "out")
    assert sum(map(len, index.parts.values())) > 2 or make is one_record  # which lies in one line
    assert made.fingerprint == raw.fingerprint
    assert made.tokenizer.to_json() == raw.tokenizer.to_json()
    assert made.heldout_bytes() == raw.heldout_bytes() and made.heldout_bytes(7) == raw.heldout_bytes(7)
    for one, other in ((raw.train, made.train), (raw.heldout, made.heldout)):
        np.testing.assert_array_equal(one.tokens, other.tokens[:])
        np.testing.assert_array_equal(one.starts, other.starts)
        assert (one.num_bytes, one.num_targets) == (other.num_bytes, other.num_targets)
    for one, other in zip(*(batches(data) for data in (raw, made)), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def batches(data):
    """Two epochs in the global order, and all that is held out."""
    train = Windows(data.train, 16)
    with Loader(train, 4, seed=5) as loader:
        found = [batch for _, batch in itertools.islice(loader, 2 * len(train) // 4)]
    heldout = Windows(data.heldout, 16, partial=True)
    return [*found, heldout.gather(np.arange(len(heldout)))]


def test_joined_arrays_are_read_like_one():
    whole = np.arange(10, dtype=np.uint16)
    joined = Joined([whole[:3], whole[3:3], whole[3:9], whole[9:]])
    assert len(joined) == 10 and joined.dtype == np.uint16
    assert [joined[i] for i in range(-10, 10)] == [whole[i] for i in range(-10, 10)]
    for start, stop in itertools.product([None, *range(-11, 12)], repeat=2):
        np.testing.assert_array_equal(joined[start:stop], whole[start:stop])
        assert joined[start:stop].dtype == np.uint16
    with pytest.raises(IndexError):
        joined[10]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1000])
def test_blocks_change_neither_the_text_nor_its_pieces(tmp_path, block):
    path = tmp_path / "a.txt"
    text = "a b\n\nc  d\n e\nfgh " * 20 + "größer\n"
    path.write_text("\ufeff" + text, encoding="utf-8")
    assert "".join(stream(path, block=block)) == text or block < 3  # a mark cut in two is no mark
    blocks = [text[i : i + block] for i in range(0, len(text), block)]
    for size in (1, 5, 50, 1000):
        assert list(stream_pieces(blocks, size)) == list(pieces(text, size))


@pytest.mark.parametrize(
    "data",
    [b"abc\0def", b"abcdef\xff", b"abcde\xc3", b"ab\xe2\x82", "größer".encode("latin1"), "größer".encode("utf-16")],
)
def test_a_stream_finds_the_same_mistakes_at_the_same_place(tmp_path, data):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(InputError) as whole:
        decode(data, f"'{path}'")
    for block in (2, 3, 4, 100):
        with pytest.raises(InputError) as streamed:
            list(stream(path, block=block))
        assert str(streamed.value) == str(whole.value)


def test_several_threads_write_the_same_bytes_as_one(tmp_path, small_pieces):
    source, found = folder(tmp_path), []
    for workers in (1, 2, 5):
        call(source, tmp_path / f"{workers}", tokenizer="bpe", vocab_size=300, workers=workers)
        found.append(files(tmp_path / f"{workers}"))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 10 and not any(name.endswith((".part", ".jsonl")) for name in found[0])


def test_cleaning_is_counted_and_is_that_of_clean_text(tmp_path, small_pieces):
    source, clean = tmp_path / "in", tmp_path / "clean"
    source.mkdir()
    clean.mkdir()
    texts = {
        "a": "ﬁrst e\u0301 " * 60,
        "b": "second document\n" * 5,
        "c": "second document\n" * 5,  # a copy
        "d": "ﬁrst \u00e9 " * 60,  # a copy of the first once it is normalized
        "e": " \n",  # nothing
        "f": "tiny",
        "g": "ﬁve5",  # five characters once the ligature is two
        "h": "third document\n" * 9,
        "i": "fourth",
    }
    for name, text in texts.items():
        (source / f"{name}.txt").write_text(text, encoding="utf-8")
    for name in "abghi":
        text = texts[name].replace("ﬁ", "fi").replace("e\u0301", "\u00e9")
        (clean / f"{name}.txt").write_text(text, encoding="utf-8")
    said = []
    index = call(source, tmp_path / "out", said.append, normalize="NFKC", dedupe=True, min_chars=5)
    assert index.counts == {"documents": 9, "blank": 1, "short": 1, "duplicates": 2, "normalized": 3}
    assert (
        "text: of 9 documents: 1 without text dropped, 1 of fewer than 5 characters dropped, "
        "2 dropped as copies, 3 changed by NFKC" in said
    )
    call(clean, tmp_path / "out2")
    assert opened(tmp_path / "out").fingerprint == opened(tmp_path / "out2").fingerprint
    assert call(source, tmp_path / "out3").counts["documents"] == 9
    assert opened(tmp_path / "out3").fingerprint != opened(tmp_path / "out").fingerprint


def test_what_is_complete_is_not_made_again(tmp_path, small_pieces, monkeypatch):
    """Stopped after two shards, at a torn line of the journal, with another shard damaged: only those are written."""
    source, write, written = folder(tmp_path), prepare_module._write_shard, []

    def failing(plan, tokenizer, part, name, *rest):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(name)
        return write(plan, tokenizer, part, name, *rest)

    options = {"tokenizer": "bpe", "vocab_size": 300, "workers": 1}
    monkeypatch.setattr(prepare_module, "_write_shard", failing)
    with pytest.raises(InputError, match=r"output=.*out: No space left on device: free some space and run the same"):
        call(source, tmp_path / "out", **options)
    with pytest.raises(InputError, match=r"data\.path: '.*out' is only half prepared: run recipes\.prepare again"):
        opened(tmp_path / "out")
    before = files(tmp_path / "out")
    with open(tmp_path / "out" / "journal.jsonl", "a") as journal:
        journal.write('{"name": "train-00003", "docu')
    damaged = tmp_path / "out" / f"{written[1]}.tokens"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    again = []

    def noting(plan, tokenizer, part, name, *rest):
        again.append(name)
        return write(plan, tokenizer, part, name, *rest)

    monkeypatch.setattr(prepare_module, "_write_shard", noting)
    monkeypatch.setattr(prepare_module, "train_on", None)  # its tokenizer is kept too
    index = call(source, tmp_path / "out", **options)
    everything = [shard.name for shards in index.parts.values() for shard in shards]
    assert again == [name for name in everything if name not in (written[0], written[2])]
    monkeypatch.undo()
    after = files(tmp_path / "out")
    assert {name: after[name] for name in before if name in after and name != damaged.name} == {
        name: data for name, data in before.items() if name in after and name != damaged.name
    }
    said = []
    assert call(source, tmp_path / "out", said.append, **options) == index
    assert said == [f"text: '{tmp_path / 'out'}' is prepared already: {len(everything)} shards, all whole"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "name", "words"),
    [
        (flip, "train-00001.tokens", r"train-00001\.tokens' is damaged \(its checksum is another\): run recipes"),
        (flip, "train-00002.starts", r"train-00002\.starts' is damaged"),
        (flip, "heldout-00000.txt", r"heldout-00000\.txt' is damaged"),
        (lambda path: os.truncate(path, 5), "train-00000.tokens", r"train-00000\.tokens' is damaged \(5 bytes instead"),
        (Path.unlink, "train-00000.tokens", r"train-00000\.tokens' is missing: run recipes\.prepare again with the"),
        (flip, "tokenizer.json", r"tokenizer\.json' is missing or damaged: run recipes\.prepare again"),
    ],
)
def test_damage_is_named_and_mended_by_the_same_command(tmp_path, small_pieces, damage, name, words):
    source = folder(tmp_path)
    call(source, tmp_path / "out")
    before = files(tmp_path / "out")
    damage(tmp_path / "out" / name)
    with pytest.raises(InputError, match=words):
        opened(tmp_path / "out")
    call(source, tmp_path / "out")
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps({"format": 99})])
def test_words_for_an_index_that_says_nothing(tmp_path, text):
    source = folder(tmp_path)
    call(source, tmp_path / "out")
    (tmp_path / "out" / "index.json").write_text(text)
    words = r"index\.json' is damaged: delete the folder and prepare the text anew|in format 99, this version reads"
    for read in (lambda: opened(tmp_path / "out"), lambda: call(source, tmp_path / "out")):
        with pytest.raises(InputError, match=words):
            read()


def test_a_journal_that_says_nothing_keeps_nothing(tmp_path, small_pieces):
    source = folder(tmp_path)
    index = call(source, tmp_path / "out")
    (tmp_path / "out" / "index.json").unlink()
    (tmp_path / "out" / "journal.jsonl").write_text('{"settings": \n{"tokenizer": 5}\n')
    assert call(source, tmp_path / "out") == index


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vocab_size": 400}, r"data\.vocab_size=400 contradicts .*out, which was prepared with vocab_size=300"),
        ({"tokenizer": "byte"}, r"data\.tokenizer=byte contradicts .* with tokenizer=bpe: leave data\.tokenizer out"),
        ({"heldout": 0.1}, r"data\.heldout=0\.1 contradicts .* prepared with heldout=0\.2: leave"),
        ({"pattern": "*.md"}, r"data\.pattern=\*\.md contradicts .* pattern=\*"),
        ({"text_field": "body"}, r"data\.text_field=body contradicts .* text_field=text"),
    ],
)
def test_words_for_options_that_contradict_the_folder(tmp_path, options, words):
    call(folder(tmp_path), tmp_path / "out", tokenizer="bpe", vocab_size=300)
    opened(tmp_path / "out", vocab_size=300, heldout=0.2)
    with pytest.raises(InputError, match=words):
        opened(tmp_path / "out", **options)


def test_a_checkpoints_tokenizer_is_the_folders_or_refused(tmp_path):
    bpe = train_bpe(["some words, some more words"], 270)
    (tmp_path / "run" / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "7" / "tokenizer.json").write_text(bpe.to_json())
    call(folder(tmp_path), tmp_path / "out", tokenizer=str(tmp_path / "run"))
    assert opened(tmp_path / "out", stored=bpe).tokenizer.to_json() == bpe.to_json()
    with pytest.raises(InputError, match=r"prepared with another tokenizer than the checkpoint's: prepare the text"):
        opened(tmp_path / "out", stored=ByteTokenizer())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": "missing.txt"}, r"data\.path: '.*missing\.txt' does not exist"),
        ({"input": "empty.txt"}, r"data\.path: '.*empty\.txt' holds no text; give a file"),
        ({"input": "binary.txt"}, r"data\.path: '.*binary\.txt' is binary, not text \(byte 2 is zero\)"),
        ({"input": "latin.txt"}, r"data\.path: '.*latin\.txt' is not UTF-8 \(byte 2 is 0xf6\)"),
        ({"input": "tiny.txt"}, r"holds too little text to hold some of it out .*nothing is left for"),
        ({"input": "a.jsonl"}, r"line 2 of '.*a\.jsonl' is not JSON"),
        ({"min_chars": 10_000}, r"good' holds no document that is kept; give a file or folder"),
        ({"output": "good/out"}, r"output=.*good/out lies within input=.*good: name a folder elsewhere"),
        ({"output": "tiny.txt"}, r"output=.*tiny\.txt is a file, or lies below one: name a folder"),
        ({"output": "good2"}, r"output=.*good2 holds other files \(a\.txt\): name an empty or a new folder"),
        ({"heldout": 0.0}, r"heldout=0: give the fraction to hold out"),
        ({"vocab_size": 5}, r"vocab_size=5"),
        ({"tokenizer": "bpee"}, r"data\.tokenizer=bpee: give byte, bpe"),
    ],
)
def test_words_for_bad_input(tmp_path, change, words):
    for name in ("good", "good2"):
        (tmp_path / name).mkdir()
        for document in "abc":
            (tmp_path / name / f"{document}.txt").write_text(f"document {document}")
    contents = {
        "empty.txt": b"", "binary.txt": b"ab\0c", "latin.txt": b"gr\xf6", "tiny.txt": b"a",
        "a.jsonl": b'{"text": "good"}\n{"text"\n',
    }  # fmt: skip
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    options = {"input": "good", "output": "out"} | change
    options |= {name: str(tmp_path / options[name]) for name in ("input", "output")}
    with pytest.raises(InputError, match=words):
        prepare(Preparation(**options), quiet)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 280}, r"output=.*out was prepared with vocab_size=300, now it is vocab_size=280: name another"),
        ({"dedupe": True}, r"with dedupe=False, now it is dedupe=True: name another output, or delete that one"),
        ({"shard_mb": 2.0}, r"with shard_mb=0\.001, now it is shard_mb=2\.0"),
        ({}, r"was prepared with text of '.*in', now it is '.*in', or has changed since: name another output"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_words_for_a_folder_of_other_settings(tmp_path, monkeypatch, change, words, complete):
    source, options = folder(tmp_path), {"vocab_size": 300, "tokenizer": "bpe"}
    if not complete:
        monkeypatch.setattr(prepare_module, "assemble", None)
        with pytest.raises(TypeError):
            call(source, tmp_path / "out", **options)
        monkeypatch.undo()
    else:
        call(source, tmp_path / "out", **options)
    before = files(tmp_path / "out")
    if not change:
        (source / "00.txt").write_text("other words")
    with pytest.raises(InputError, match=words):
        call(source, tmp_path / "out", **options | change)
    assert files(tmp_path / "out") == before


def test_the_same_text_may_be_called_otherwise(tmp_path, monkeypatch):
    index = call(folder(tmp_path), tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert call(Path("in"), Path("out")) == index


def test_a_start_that_wrote_no_journal_is_no_hindrance(tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("tokenizer.json", "tokenizer.json.part", "journal.jsonl.part", ".lock"):
        (tmp_path / "out" / name).write_text("{")
    call(folder(tmp_path), tmp_path / "out")
    opened(tmp_path / "out")


def test_words_for_text_that_changes_meanwhile(tmp_path, monkeypatch):
    source, write = folder(tmp_path), prepare_module._write_shards

    def late(*args):
        (source / "01.txt").write_text("changed")
        return write(*args)

    monkeypatch.setattr(prepare_module, "_write_shards", late)
    with pytest.raises(InputError, match=r"has changed while it was read: let it be, and prepare it into another"):
        call(source, tmp_path / "out")
    assert not (tmp_path / "out" / "index.json").exists()


def test_words_for_two_at_once(tmp_path):
    with (
        prepare_module._claimed(tmp_path / "out"),
        pytest.raises(InputError, match=r"output=.*out: another process prepares text in there: wait for it"),
    ):
        call(folder(tmp_path), tmp_path / "out")


def test_the_index_tells_what_there_is(tmp_path):
    index = call(folder(tmp_path), tmp_path / "out")
    told, data = json.loads((tmp_path / "out" / "index.json").read_text()), opened(tmp_path / "out")
    assert told["fingerprint"] == data.fingerprint
    assert told["train"] == {
        "documents": len(data.train.starts), "tokens": len(data.train.tokens), "num_bytes": data.train.num_bytes
    }  # fmt: skip
    assert told["settings"]["tokenizer"] == "byte" and told["dtype"] == "uint16"
    assert dataclasses.asdict(index)["parts"] == told["parts"]
