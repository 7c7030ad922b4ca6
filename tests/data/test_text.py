"""Prepared text: the right tokens in each part, cached once, made anew when damaged, shared by processes."""

import dataclasses
import gzip
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxmodel.data import text as text_module
from jaxmodel.data.corpus import sampled_checksum_of
from jaxmodel.data.sources import documents
from jaxmodel.data.text import Corpus, gzip_bits_per_byte, prepare_text
from jaxmodel.data.tokenizer import SEPARATOR, ByteTokenizer, Tokenizer, train_bpe
from jaxmodel.errors import InputError
from jaxmodel.options import Data


@dataclasses.dataclass
class Options:
    path: str | None
    cache: str | None
    tokenizer: str = "byte"
    vocab_size: int = 300
    text_field: str = "text"
    heldout: float = 0.2
    pattern: str = "*"


@pytest.fixture
def options(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i:02}.txt").write_text(f"Document {i}: größer {SEPARATOR} {'word ' * i}\n", encoding="utf-8")
    return Options(str(folder), str(tmp_path / "cache"))


def prepare(options, **arguments):
    """The data and what was logged."""
    lines = []
    return prepare_text(options, log=lines.append, **arguments), lines


def entries(options):
    return [path for path in Path(options.cache, "text").iterdir() if path.is_dir() and not path.is_symlink()]


def read(corpus, tokenizer):
    ends = [*corpus.starts[1:], len(corpus.tokens) - 1]
    spans = zip(corpus.starts, ends, strict=True)
    return [tokenizer.decode(corpus.tokens[start + 1 : end]) for start, end in spans]


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
@pytest.mark.parametrize("piece", [1 << 20, 16])
def test_the_streams_are_the_documents(options, tokenizer, piece, monkeypatch):
    monkeypatch.setattr(text_module, "PIECE", piece)
    monkeypatch.setattr(text_module, "BATCH", 4 * piece)
    options.tokenizer = tokenizer
    data, _ = prepare(options)
    for corpus, part in zip((data.train, data.heldout), documents(options.path).split(0.2), strict=True):
        texts = [document.text for document in part]
        assert read(corpus, data.tokenizer) == texts
        assert corpus.num_bytes == sum(len(text.encode()) for text in texts)
        assert (corpus.tokens[corpus.starts] == data.tokenizer.separator_id).all()
        assert corpus.tokens[-1] == data.tokenizer.separator_id
        assert (corpus.tokens == data.tokenizer.separator_id).sum() == len(texts) + 1
        assert isinstance(corpus.tokens, np.memmap) and corpus.tokens.dtype == np.uint16
        assert corpus.num_targets == len(corpus.tokens) - 1
    assert data.heldout_bytes() == "".join(text for text in texts).encode()
    assert data.heldout_bytes(5) == data.heldout_bytes()[:5]


def test_the_bpe_has_seen_the_train_part_alone(options):
    options.tokenizer = "bpe"
    data, _ = prepare(options)
    train, _ = documents(options.path).split(0.2)
    assert data.tokenizer.to_json() == train_bpe((document.text for document in train), 300).to_json()


def test_a_long_text_gives_the_bpe_an_even_sample(options, monkeypatch):
    options.tokenizer = "bpe"
    Path(options.path, "long.txt").write_text("".join(f"{i:07} of many lines\n" for i in range(2_000_000)))
    seen, lines = [], []
    monkeypatch.setattr(text_module, "train_bpe", lambda texts, size: seen.extend(texts) or ByteTokenizer())
    train, _ = documents(Path(options.path, "long.txt")).split(0.2)
    text_module._trained(train, 300, log=lines.append)
    assert 0.97 < sum(map(len, seen)) / (16 << 20) < 1.03
    numbers = [int(text.split(None, 1)[0]) for text in seen if text[0].isdigit()]
    assert numbers == sorted(numbers) and np.ptp(np.diff(numbers)) < 3000


def test_a_large_vocabulary_takes_four_bytes(options):
    wide = ByteTokenizer()
    wide.vocab_size, wide.separator_id = 70_000, 69_999
    data, _ = prepare(options, tokenizer=wide)
    assert data.train.tokens.dtype == np.uint32
    assert data.train.tokens[0] == 69_999


def test_the_second_time_comes_from_the_cache(options, monkeypatch):
    options.tokenizer = "bpe"
    cold, lines = prepare(options)
    assert any("BPE of 300 tokens, trained on" in line for line in lines)
    assert any("train: " in line and "bytes a token" in line for line in lines)
    monkeypatch.setattr(text_module, "_build", None)
    warm, lines = prepare(options)
    assert len(lines) == 1 and "tokenised before" in lines[0]
    assert warm.fingerprint == cold.fingerprint
    for one, other in ((cold.train, warm.train), (cold.heldout, warm.heldout)):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.starts, other.starts)
        assert one.num_bytes == other.num_bytes
    assert warm.tokenizer.to_json() == cold.tokenizer.to_json()
    assert warm.heldout_bytes() == cold.heldout_bytes()


def touch(options):
    Path(options.path, "00.txt").write_text("other words")


def reset(**fields):
    def change(options):
        for name, value in fields.items():
            setattr(options, name, value)

    return change


@pytest.mark.parametrize(
    "change",
    [touch, reset(heldout=0.6), reset(tokenizer="bpe"), reset(pattern="0*")],
    ids=["content", "heldout", "tokenizer", "pattern"],
)
def test_what_changes_the_tokens_changes_the_entry(options, change):
    before, _ = prepare(options)
    change(options)
    after, _ = prepare(options)
    assert len(entries(options)) == 2
    assert before.fingerprint != after.fingerprint


def truncate(entry):
    os.truncate(entry / "train.tokens", 100)


def flip(entry):
    data = bytearray((entry / "train.tokens").read_bytes())
    data[50] ^= 1
    (entry / "train.tokens").write_bytes(data)


def forget(entry):
    (entry / "heldout.starts").unlink()


def garble(entry):
    (entry / "meta.json").write_text("{")


def empty(entry):
    (entry / "meta.json").write_text("{}")


def replace_tokenizer(entry):
    (entry / "tokenizer.json").write_text("{}")


def clear(entry):
    shutil.rmtree(entry)
    entry.mkdir()


@pytest.mark.parametrize("damage", [truncate, flip, forget, garble, empty, replace_tokenizer, clear])
def test_a_damaged_entry_is_made_anew(options, damage):
    before, _ = prepare(options)
    fingerprint, tokens = before.fingerprint, before.train.tokens.tolist()
    (entry,) = entries(options)
    damage(entry)
    after, lines = prepare(options)
    assert (after.fingerprint, after.train.tokens.tolist()) == (fingerprint, tokens)
    assert damage in (forget, clear) or any("damaged" in line and "made anew" in line for line in lines)
    assert entries(options) == [entry]  # and nothing half done beside it
    assert "tokenised before" in prepare(options)[1][0]


def test_the_checksum_of_a_large_file_reads_evenly_spread_parts(tmp_path):
    path = tmp_path / "large"
    with open(path, "wb") as file:
        file.truncate(200 << 20)
    before = sampled_checksum_of(path)
    with open(path, "r+b") as file:
        file.seek((200 << 20) // 64 * 40 + 5)
        file.write(b"x")
    assert sampled_checksum_of(path) != before


def test_processes_share_the_cache(options):
    program = f"""
from tests.data.test_text import Options, prepare
data, _ = prepare(Options({options.path!r}, {options.cache!r}, "bpe"))
print(data.fingerprint, int(data.train.tokens.sum()))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    running = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(said) == 1 and said != {""}
    assert len(entries(options)) == 1


@pytest.mark.parametrize("first", [True, False])
def test_without_locks_whoever_is_late_does_no_harm(options, monkeypatch, first):
    """Another process finishes the same entry just before this one does, or between its two renames."""

    def refuse(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(text_module.fcntl, "flock", refuse)
    build, rename = text_module._build, os.rename

    def late(source, tokenizer, options_, entry, log):
        if first:
            build(source, tokenizer, options_, entry, log)
        return build(source, tokenizer, options_, entry, log)

    def contested(old, new):
        if not first and Path(old).name == "new":
            shutil.copytree(old, new)
        rename(old, new)

    monkeypatch.setattr(text_module, "_build", late)
    monkeypatch.setattr(text_module.os, "rename", contested)
    data, _ = prepare(options)
    assert len(entries(options)) == 1
    assert read(data.train, data.tokenizer)[0].startswith("Document")
    assert "tokenised before" in prepare(options)[1][0]


def test_what_a_killed_process_left_is_cleared_after_a_day(options):
    prepare(options)
    (entry,) = entries(options)
    shutil.rmtree(entry)
    old, recent = (entry.with_name(f"{entry.name}-{name}") for name in ("old", "recent"))
    for left in (old, recent):
        left.mkdir()
    before = time.time() - 2 * 24 * 3600
    os.utime(old, (before, before))
    prepare(options)
    assert sorted(entries(options)) == sorted([entry, recent])


def test_a_tokenizer_may_be_a_file_or_given(options, tmp_path):
    bpe = train_bpe(["some words, some more words"], 270)
    (tmp_path / "tokenizer.json").write_text(bpe.to_json())
    found = []
    for name in (tmp_path / "tokenizer.json", tmp_path):
        options.tokenizer = str(name)
        found.append(prepare(options)[0])
    options.tokenizer = "byte"
    found.append(prepare(options, tokenizer=Tokenizer.from_json(bpe.to_json()))[0])
    assert {data.tokenizer.to_json() for data in found} == {bpe.to_json()}
    assert len({data.fingerprint for data in found}) == 1


def test_the_cache_is_where_one_asks_for_it(options, tmp_path, monkeypatch):
    prepare(options, cache=tmp_path / "given")
    assert list((tmp_path / "given" / "text").glob("*/meta.json"))
    options.cache = None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    prepare(options)
    assert list((tmp_path / "xdg" / "jaxmodel" / "text").glob("*/meta.json"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    prepare(options)
    assert list((tmp_path / "home" / ".cache" / "jaxmodel" / "text").glob("*/meta.json"))


def test_words_for_a_cache_that_cannot_be_written(options, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    options.cache = str(tmp_path / "file")
    with pytest.raises(InputError, match=r"data\.cache: cannot keep tokens in '.*file/text': .*; set data\.cache to"):
        prepare(options)


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
def test_words_for_too_little_text(tmp_path, tokenizer):
    for content in ("a", "\na", "a\n\n\n\n"):
        (tmp_path / "a.txt").write_text(content)
        with pytest.raises(InputError, match=r"holds too little text to hold some of it out .*nothing is left for"):
            prepare(Options(str(tmp_path / "a.txt"), str(tmp_path / "cache"), tokenizer))
        assert not entries(Options(None, str(tmp_path / "cache")))


def test_words_for_an_unknown_tokenizer(options):
    options.tokenizer = "bpee"
    with pytest.raises(InputError, match=r"data\.tokenizer=bpee: give byte, bpe, or the place of a tokenizer\.json"):
        prepare(options)


def test_gzip_is_gzip():
    data = Path(__file__).read_bytes()
    assert gzip_bits_per_byte(data) == 8 * len(gzip.compress(data, 9)) / len(data)
    assert 1 < gzip_bits_per_byte(data) < 4


def test_a_corpus_in_memory():
    corpus = Corpus.of([np.array([5, 6]), np.array([], int), np.array([7])], separator_id=9, num_bytes=3)
    np.testing.assert_array_equal(corpus.tokens, [9, 5, 6, 9, 9, 7, 9])
    np.testing.assert_array_equal(corpus.starts, [0, 3, 4])
    assert (corpus.num_targets, corpus.num_bytes) == (6, 3)


def test_the_quickstart_text_is_split_by_file_and_needs_no_jax(tmp_path):
    """The built-in text with the cheap tokenizer: the split, gzip's bar, and a quick second time."""
    program = f"""
import sys, time
from jaxmodel.data.loader import Loader
from jaxmodel.data.packing import Windows
from jaxmodel.data.text import gzip_bits_per_byte, prepare_text
from tests.data.test_text import Options
options = Options(None, {str(tmp_path)!r}, heldout=0.05)
data = prepare_text(options)
started = time.monotonic()
prepare_text(options)
print(time.monotonic() - started < 0.5)
print(0.02 < data.heldout.num_bytes / data.train.num_bytes < 0.1)
print(1.5 < gzip_bits_per_byte(data.heldout_bytes()) < 2.4)
print("jax" not in sys.modules)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-4:] == ["True"] * 4, said


def test_bits_per_byte_pay_for_every_byte():
    corpus = Corpus.of([np.array([5, 6]), np.array([7])], separator_id=0, num_bytes=10)
    # Five tokens are predicted (three of text, the two ends), each for ln 4 nats, that is, two bits.
    assert corpus.bits_per_byte(math.log(4)) == pytest.approx(5 * 2 / 10)


def test_the_trained_tokenizer_finds_the_tokens_it_was_trained_for(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"some words to train on, file {i}\n" * 50)
    options = Data(path=str(tmp_path), cache=str(tmp_path / ".cache"), vocab_size=300, heldout=0.3)
    first = prepare_text(options, log=lambda line: None)
    lines: list[str] = []
    second = prepare_text(options, first.tokenizer, log=lines.append)
    assert second.fingerprint == first.fingerprint
    assert len(lines) == 1 and "tokenised before" in lines[0]
