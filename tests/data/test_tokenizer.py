"""Tokenizers: text survives the round trip, the separator stays apart, training repeats itself."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from jaxmodel.data.tokenizer import SEPARATOR, ByteTokenizer, Extras, Tokenizer, pieces, train_bpe
from jaxmodel.errors import InputError

WORDS = "def f(x):\n    return x + 1\n\n\nclass Größe:\n\t'''naïve — 数 🙂'''\n"
TEXTS = [WORDS * 3, json.dumps(list(range(300))), "for each of the words in the world " * 20]
BPE = train_bpe(TEXTS, 400)
SAY = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
BOTH = pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPE], ids=["byte", "bpe"])
texts = st.text() | st.text(alphabet=" \n\t\r\x1c\x85aé'1.,🙂") | st.text().map(lambda text: text + WORDS + text)


@BOTH
@given(text=texts)
def test_text_survives(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert tokenizer.decode(ids) == text
    assert not len(ids) or 0 <= ids.min() <= ids.max() < tokenizer.vocab_size


@BOTH
def test_text_that_spells_the_separator_is_only_text(tokenizer):
    ids = tokenizer.encode(f"a{SEPARATOR}b")
    assert tokenizer.separator_id not in ids
    assert tokenizer.decode(ids) == f"a{SEPARATOR}b"


@BOTH
def test_a_chat_has_separators_where_the_template_and_the_messages_spell_them(tokenizer):
    tokens = {"bos_token": SEPARATOR, "eos_token": SEPARATOR}
    spoken = Tokenizer.from_json(tokenizer.to_json())
    spoken.extras = Extras(tokens, chat_template=SAY)
    spoken = Tokenizer.from_json(spoken.to_json())
    mark, hi, there = tokenizer.separator_id, tokenizer.encode("Hi"), tokenizer.encode("there é")
    ids = spoken.encode_chat([{"content": "Hi"}, {"content": f"{SEPARATOR}there é"}])
    assert ids.dtype == np.int32 and ids.tolist() == [mark, *hi, mark, mark, *there, mark]
    assert spoken.render_chat([{"content": "Hi"}], eos_token="|") == f"{SEPARATOR}Hi|"
    assert spoken.encode_marked("").shape == (0,) and spoken.stop_ids == (mark,)
    with pytest.raises(
        InputError, match=r"the tokenizer has no chat template: take a checkpoint .* chat_template\.jinja"
    ):
        tokenizer.render_chat([{"content": "Hi"}])


@BOTH
def test_a_batch_is_its_texts(tokenizer):
    batch = tokenizer.encode_batch(["", *TEXTS])
    assert len(batch) == 4
    for ids, text in zip(batch, ["", *TEXTS], strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))


@BOTH
def test_decode_forgives(tokenizer):
    half = tokenizer.encode("é")[:1] if tokenizer is not BPE else [BPE._inner.token_to_id("Ã")]
    assert tokenizer.decode([*half, tokenizer.separator_id, 10**6]) == "\ufffd"
    assert tokenizer.decode([]) == ""


@BOTH
def test_json_says_all(tokenizer):
    again = Tokenizer.from_json(tokenizer.to_json())
    assert type(again) is type(tokenizer)
    assert (again.vocab_size, again.separator_id) == (tokenizer.vocab_size, tokenizer.separator_id)
    np.testing.assert_array_equal(again.encode(WORDS), tokenizer.encode(WORDS))
    assert again.to_json() == tokenizer.to_json()


def test_sizes():
    assert (ByteTokenizer().vocab_size, ByteTokenizer().separator_id) == (257, 256)
    assert BPE.vocab_size == 400
    assert train_bpe(["ab"], 400).vocab_size == 258  # all that so little text teaches: one merge
    assert train_bpe([], 257).vocab_size == 257
    assert len(BPE.encode(WORDS)) < 0.6 * len(ByteTokenizer().encode(WORDS))


def test_training_repeats_itself_in_other_processes():
    program = (
        "import hashlib, sys\nfrom jaxmodel.data.tokenizer import train_bpe\n"
        "print(hashlib.sha256(train_bpe(eval(sys.argv[1]), 400).to_json().encode()).hexdigest())"
    )
    expected = hashlib.sha256(BPE.to_json().encode()).hexdigest()
    for seed, threads in (("1", "1"), ("2", "3")):
        environment = os.environ | {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PYTHONHASHSEED": seed,
            "RAYON_NUM_THREADS": threads,
        }
        command = [sys.executable, "-c", program, repr(TEXTS)]
        out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert out.strip() == expected


@given(text=texts, size=st.integers(1, 30))
def test_pieces_change_no_id(text, size):
    parts = list(pieces(text, size))
    assert "".join(parts) == text
    np.testing.assert_array_equal(np.concatenate(BPE.encode_batch(parts)), BPE.encode(text))


def test_pieces_are_small():
    assert max(map(len, pieces("some words\nin lines\n" * 1000, 100))) < 120


def foreign():
    """A tokenizer.json that pads, truncates and names its special tokens otherwise."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    )
    inner.enable_padding(length=9, pad_token="</s>")
    inner.enable_truncation(9)
    return inner.to_str()


@pytest.mark.parametrize("text", ["ab", "a text that is longer than nine tokens"])
def test_a_foreign_tokenizer_neither_pads_nor_truncates(text):
    tokenizer = Tokenizer.from_json(foreign(), separator="<s>")
    assert len(tokenizer.encode(text)) == len(text)
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.separator_id == tokenizer.separator_id == 0
    np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: train_bpe(TEXTS, 256), r"data\.vocab_size: a BPE of 256 .*give 257 or more, or data\.tokenizer=byte"),
        (lambda: Tokenizer.from_json("nonsense"), "not JSON .*give a tokenizer.json"),
        (lambda: Tokenizer.from_json("[]"), "not a JSON object; give a tokenizer.json"),
        (lambda: Tokenizer.from_json('{"model": 3}'), "not a tokenizer.json of Hugging Face tokenizers"),
        (lambda: Tokenizer.from_json(foreign()), r"no token '<\|endoftext\|>' .*special tokens: <s>, </s>"),
    ],
)
def test_words_of_the_errors(make, words):
    with pytest.raises(InputError, match=words):
        make()
