"""Tokenizers of Hugging Face directories: the ids of transformers, made by tests/golden/make_chats.py; and back."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from jaxmodel.data.tokenizer import SEPARATOR, BpeTokenizer, ByteTokenizer, Extras, Tokenizer, train_bpe
from jaxmodel.data.tokenizer_files import read_tokenizer, write_tokenizer
from jaxmodel.errors import InputError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tokenizers.json").read_text())
SAY = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
HI = [{"role": "user", "content": "Hi"}]


def written(directory, files) -> Path:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return directory


def read(directory, files=None) -> BpeTokenizer:
    tokenizer = read_tokenizer(written(directory, files or {}))
    assert tokenizer is not None
    return tokenizer


def files_in(directory) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", GOLDEN)
def test_ids_and_text_as_transformers(name, tmp_path):
    tokenizer = read(tmp_path, GOLDEN[name]["files"])
    tokenizer = Tokenizer.from_json(tokenizer.to_json())  # what a checkpoint does
    assert len(GOLDEN[name]["encoded"]) > 3
    for row in GOLDEN[name]["encoded"]:
        np.testing.assert_array_equal(tokenizer.encode_input(row["text"]), row["framed"])
        np.testing.assert_array_equal(tokenizer.encode_marked(row["text"]), row["ids"])
        assert tokenizer.decode(row["framed"]) == row["decoded"]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_same_files_come_out(name, tmp_path):
    source = written(tmp_path / "in", GOLDEN[name]["files"])
    tokenizer = read(source)
    write_tokenizer(tmp_path / "out", Tokenizer.from_json(tokenizer.to_json()))
    kept = {
        file: content
        for file, content in files_in(source).items()
        if file not in ("vocab.json", "merges.txt", "vocab.txt")
    }
    found = files_in(tmp_path / "out")
    assert {file: found[file] for file in kept} == kept
    assert found.keys() - kept.keys() <= {"tokenizer.json"}
    again = read(tmp_path / "out")
    for row in GOLDEN[name]["encoded"]:
        np.testing.assert_array_equal(again.encode_input(row["text"]), row["framed"])


def test_padding_and_truncation_are_off(tmp_path):
    spec = json.loads(GOLDEN["wordpiece"]["files"]["tokenizer.json"])
    assert spec["truncation"]["max_length"] == 4 and spec["padding"]["strategy"] == {"Fixed": 6}
    tokenizer = read(tmp_path, GOLDEN["wordpiece"]["files"])
    assert len(tokenizer.encode("the cat")) == 2 and len(tokenizer.encode_input("the cat " * 9)) == 20


def test_what_the_files_say(tmp_path):
    tokenizer = read(tmp_path, GOLDEN["unigram"]["files"])
    assert tokenizer.extras.tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert tokenizer.separator == "<s>" and tokenizer.stop_ids == (1,)
    bert = read(tmp_path / "bert", GOLDEN["bert"]["files"])
    assert bert.separator == "[CLS]" and bert.extras.tokens["mask_token"] == "[MASK]" and bert.extras.stop == ()


def test_stop_ids_of_the_model(tmp_path):
    files = {**GOLDEN["unigram"]["files"], "config.json": {"eos_token_id": 5}}
    assert read(tmp_path, files).stop_ids == (5, 1)
    assert read(tmp_path, {"generation_config.json": {"eos_token_id": [7, 1, 9]}}).stop_ids == (7, 1, 9)
    write_tokenizer(tmp_path / "out", read(tmp_path))
    assert (tmp_path / "out" / "generation_config.json").exists() and not (tmp_path / "out" / "config.json").exists()


def test_special_tokens_of_the_map_and_of_dicts(tmp_path):
    files = {
        "tokenizer.json": GOLDEN["unigram"]["files"]["tokenizer.json"],
        "special_tokens_map.json": {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "<unk>"},
        "tokenizer_config.json": {"eos_token": "</s>", "pad_token": None},
    }
    assert read(tmp_path, files).extras.tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_a_token_that_is_said_to_be_none_is_none(tmp_path):
    said = {"bos_token": None, "eos_token": SEPARATOR}
    tokenizer = read(tmp_path, {**GOLDEN["bpe"]["files"], "tokenizer_config.json": said})
    assert tokenizer.extras.tokens == {"eos_token": SEPARATOR} and tokenizer.separator == SEPARATOR


def test_old_files_and_what_their_config_says(tmp_path):
    bert, gpt2 = GOLDEN["bert"]["files"], GOLDEN["gpt2"]["files"]
    cased = {"tokenizer_config.json": {"do_lower_case": False}}
    ids = [read(tmp_path, {**bert, **more}).encode("cat Cat").tolist() for more in ({}, cased)]
    assert ids[0][0] == ids[0][1] == ids[1][0] and ids[1][1] == 1
    (tmp_path / "windows").mkdir()
    (tmp_path / "windows" / "vocab.txt").write_bytes(bert["vocab.txt"].replace("\n", "\r\n").encode())
    assert read(tmp_path / "windows").encode("cat Cat").tolist() == ids[0]
    spaced = read(tmp_path / "gpt2", {**gpt2, "tokenizer_config.json": {"add_prefix_space": True}})
    plain = read(tmp_path / "plain", gpt2)
    assert spaced.encode("cat").tolist() == plain.encode(" cat").tolist() != plain.encode("cat").tolist()


def test_chat_templates(tmp_path):
    files = {**GOLDEN["unigram"]["files"]}
    config = json.loads(files["tokenizer_config.json"])

    def said(**more):
        tokenizer = read(tmp_path, {**files, **more})
        return tokenizer.render_chat(HI), tokenizer.render_chat(HI, tools=[], eos_token="|")

    with pytest.raises(InputError, match=r"no chat template: .*to chat, or put its template beside tokenizer.json"):
        read(tmp_path, files).render_chat(HI)
    assert said(**{"chat_template.json": {"chat_template": SAY}}) == ("<s>Hi</s>", "<s>Hi|")
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": SAY}]
    assert said(**{"tokenizer_config.json": {**config, "chat_template": named}}) == ("plain", "<s>Hi|")
    assert said(**{"chat_template.jinja": "file"}) == ("file", "file")
    more = {"additional_chat_templates/tool_use.jinja": "tools" + SAY, "chat_template.jinja": SAY}
    assert said(**more) == ("<s>Hi</s>", "tools<s>Hi|")
    write_tokenizer(tmp_path / "out", Tokenizer.from_json(read(tmp_path).to_json()))
    assert files_in(tmp_path / "out").keys() >= more.keys()
    with pytest.raises(InputError, match=r"tokenizer_config.json: chat_template is neither text nor a list"):
        (tmp_path / "chat_template.jinja").unlink()
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").unlink()
        said(**{"tokenizer_config.json": {**config, "chat_template": [3]}})


def test_a_chat_is_encoded_with_its_special_tokens(tmp_path):
    tokenizer = read(tmp_path, {**GOLDEN["bpe"]["files"], "chat_template.jinja": SAY})
    ids = tokenizer.encode_chat([{"content": "the cat"}])
    assert ids.dtype == np.int32 and ids.tolist() == [0, *tokenizer.encode("the cat"), 0]
    assert 0 not in tokenizer.encode(f"{SEPARATOR}the cat")  # a document stays text


@pytest.mark.parametrize(
    "tokenizer", [train_bpe(["the cat sat on the mat " * 9], 270), ByteTokenizer()], ids=["bpe", "byte"]
)
def test_our_own_are_written_for_others(tokenizer, tmp_path):
    write_tokenizer(tmp_path, tokenizer)
    inner = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["eos_token"] == SEPARATOR and inner.token_to_id(SEPARATOR) == tokenizer.separator_id
    for text in (
        "",
        "the cat  sat\n\ton Größe 数 🙂\x00\x7f\xad",
        *(row["text"] for row in GOLDEN["bpe"]["encoded"][:-1]),
    ):
        assert inner.encode(text).ids == tokenizer.encode(text).tolist()
        assert inner.decode(inner.encode(text).ids) == text
    again = read(tmp_path)
    assert again.stop_ids == (again.separator_id,) == (tokenizer.separator_id,)


def test_our_own_with_a_template(tmp_path):
    tokenizer = train_bpe([], 257)
    tokenizer.extras = Extras(tokens={"eos_token": SEPARATOR}, chat_template={"default": SAY, "tool_use": "tools"})
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.extras == tokenizer.extras and again.encode_chat(HI).tolist() == tokenizer.encode_chat(HI).tolist()
    write_tokenizer(tmp_path, again)
    assert read(tmp_path).extras.chat_template == tokenizer.extras.chat_template
    assert read(tmp_path).encode_chat(HI)[-1] == 0


def test_no_tokenizer(tmp_path):
    assert read_tokenizer(written(tmp_path, {"config.json": {"model_type": "vit"}})) is None


CONVERT = r"AutoTokenizer.from_pretrained\(DIR\).save_pretrained\(DIR\)$"


@pytest.mark.parametrize(
    "files, words",
    [
        ({"tokenizer.model": "proto"}, f"only as tokenizer.model: make a tokenizer.json of it .*{CONVERT}"),
        ({"qwen.tiktoken": "x"}, f"only as qwen.tiktoken: .*{CONVERT}"),
        ({"vocab.json": {"<s>": 0}, "merges.txt": ""}, f"only as vocab.json: .*{CONVERT}"),
        ({"vocab.json": {SEPARATOR: 0, "a": 1}, "merges.txt": "a b c"}, f"only as vocab.json: .*{CONVERT}"),
        ({"vocab.json": {SEPARATOR: 0, "a": 1}, "merges.txt": "a b"}, r"merges.txt does not fit vocab.json .*again$"),
        ({**GOLDEN["gpt2"]["files"], "added_tokens.json": {"<pad>": 900}}, f"only as vocab.json: .*{CONVERT}"),
        ({"vocab.txt": "a\nb\n"}, f"only as vocab.txt: .*{CONVERT}"),
        ({"tokenizer.json": "{}"}, "tokenizer.json is not a tokenizer.json of Hugging Face tokenizers: "),
        ({"tokenizer.json": "{}", "tokenizer_config.json": "nonsense"}, r"tokenizer_config.json is not JSON .*again$"),
        ({"tokenizer.json": "{}", "tokenizer_config.json": "[]"}, "config.json is not a JSON object: download it"),
    ],
)
def test_refusals(files, words, tmp_path):
    with pytest.raises(InputError, match=words) as found:
        read_tokenizer(written(tmp_path, files))
    assert "\n" not in str(found.value) and str(tmp_path) in str(found.value)


def test_what_is_not_text(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"tokenizer.json is not UTF-8 text \(.*\): download it again"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["../evil.jinja", "/tmp/evil.jinja", "additional_chat_templates/../../evil.jinja"])
def test_files_stay_in_the_directory(name, tmp_path):
    tokenizer = train_bpe([], 257)
    tokenizer.extras = Extras(files={"tokenizer.json": tokenizer.to_json(), name: "x"})
    with pytest.raises(InputError, match=r"has a file '.*evil.jinja', which would not lie in .*: import it again"):
        write_tokenizer(tmp_path / "out", tokenizer)
