"""Makes chats/expected.json and tokenizers.json: what transformers makes of conversations and texts.

Run it as `python tests/golden/make_chats.py`; it needs transformers. Each template of chats/ meets each of its
conversations; the day is fixed. The tokenizers are tiny, and saved as transformers does; two are also written in the
older formats.
"""

import datetime
import json
import re
import tempfile
from pathlib import Path
from unittest import mock

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

HERE = Path(__file__).parent
DAY = datetime.datetime(2024, 7, 26, 12)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TEXTS = [
    "",
    "The cat sits on the mat.",
    "  def f(x):\n\treturn x ** 2  # naïve\n\n\n",
    "Größe — 数学 🙂 e\u0301 It's 12,345.67",
    "<s>[CLS] spelled<|endoftext|> out</s> [SEP]",
]
WORDS = [*TEXTS, "the cat and the dog sat on the mat, and the rat sat on the cat, cats, dogs, unsaid, sitting"] * 3


def chats() -> dict:
    """By template and conversation, the text; None where the template refuses."""
    conversations = json.loads((HERE / "chats" / "conversations.json").read_text())
    found = {}
    for path in sorted((HERE / "chats").glob("*.jinja")):
        inner = tokenizers.Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=path.read_text(), **SPECIAL)
        for name, options in conversations.items():
            with mock.patch.object(chat_template_utils, "datetime", mock.Mock(now=lambda: DAY)):
                try:
                    rest = {key: value for key, value in options.items() if key != "messages"}
                    text = tokenizer.apply_chat_template(options["messages"], tokenize=False, **rest)
                except Exception as error:
                    print(path.name, name, "refused:", error)
                    text = None
            found.setdefault(path.stem, {})[name] = text
    return found


def bpe() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(WORDS, trainer)
    return inner


def wordpiece() -> tokenizers.Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    small = " ".join(WORDS).lower()
    letters = sorted({each for each in small if each.isalnum()} - {"x"})
    parts = [*letters, *"[].,#'", *(f"##{each}" for each in letters), *("the", "cat", "sit", "##ting", "##s", "spell")]
    vocab = {part: i for i, part in enumerate(dict.fromkeys([*special, *parts]))}
    inner = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    inner.add_special_tokens(special)
    return inner


def unigram() -> tokenizers.Tokenizer:
    special = ["<s>", "</s>", "<unk>"]
    parts = [
        "▁",
        "▁the",
        "▁cat",
        "▁s",
        "its",
        "it",
        "at",
        "s",
        "▁def",
        "return",
        "▁1",
        "数学",
        *sorted(set("".join(WORDS)) - {"x", " "}),
    ]
    vocab = [
        *((each, 0.0) for each in special),
        *((each, -2 - 0.125 * i) for i, each in enumerate(dict.fromkeys(parts))),
    ]
    inner = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=2))
    inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.add_special_tokens(special)
    return inner


def encodings() -> dict:
    """By tokenizer, the files of its directory, and of each text the ids and the text decoded from them."""
    files = {"gpt2": old_bpe(), "bert": old_wordpiece()}
    words = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
    for name, made, options in (
        ("bpe", bpe(), dict.fromkeys(("bos_token", "eos_token"), "<|endoftext|>")),
        ("wordpiece", wordpiece(), words),
        ("unigram", unigram(), {**SPECIAL, "unk_token": "<unk>"}),
    ):
        with tempfile.TemporaryDirectory() as directory:
            template = (HERE / "chats" / "chatml.jinja").read_text() if name == "bpe" else None
            PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **options).save_pretrained(directory)
            files[name] = {path.name: path.read_text() for path in sorted(Path(directory).iterdir())}
    # Llama's say this, which counts for nothing beside a tokenizer.json.
    config = json.loads(files["unigram"]["tokenizer_config.json"]) | {"add_bos_token": True}
    files["unigram"]["tokenizer_config.json"] = json.dumps(config, indent=2)
    # Those of sentence embedders do this.
    cut = tokenizers.Tokenizer.from_str(files["wordpiece"]["tokenizer.json"])
    cut.enable_truncation(4)
    cut.enable_padding(length=6)
    files["wordpiece"]["tokenizer.json"] = cut.to_str(pretty=True)
    return {name: {"files": each, "encoded": encoded(each)} for name, each in files.items()}


def encoded(files: dict[str, str]) -> list:
    with tempfile.TemporaryDirectory() as directory:
        for name, text in files.items():
            (Path(directory) / name).write_text(text)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        rows = []
        for text in TEXTS:
            # Text that spells a special token is that token: as in encode_chat.
            ids = tokenizer(text, add_special_tokens=False, truncation=False, padding=False)["input_ids"]
            # Text that spells one is text: as in encode_input.
            framed = tokenizer(text, truncation=False, padding=False, split_special_tokens=True)["input_ids"]
            decoded = tokenizer.decode(framed, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            rows.append({"text": text, "ids": ids, "framed": framed, "decoded": decoded})
        return rows


def old_bpe() -> dict[str, str]:
    model = json.loads(bpe().to_str())["model"]
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]) + "\n"
    return {
        "vocab.json": json.dumps(model["vocab"]),
        "merges.txt": merges,
        "tokenizer_config.json": json.dumps({"tokenizer_class": "GPT2Tokenizer", "model_max_length": 64}),
    }


def old_wordpiece() -> dict[str, str]:
    vocab = json.loads(wordpiece().to_str())["model"]["vocab"]
    return {
        "vocab.txt": "".join(f"{word}\n" for word in sorted(vocab, key=vocab.get)),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}),
    }


if __name__ == "__main__":
    for path, found in ((HERE / "chats" / "expected.json", chats()), (HERE / "tokenizers.json", encodings())):
        text = json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True)
        text = re.sub(r"(?<=[\[,\d])\n +(?=[\d\]])", "", text)  # the ids of a text on one line
        path.write_text(text + "\n")
        print(path, path.stat().st_size, "bytes")
