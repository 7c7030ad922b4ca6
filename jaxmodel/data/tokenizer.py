"""Tokenizers: plain bytes, and byte-level BPE; both give back exactly the text they were given."""

from __future__ import annotations

import abc
import copy
import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np

from jaxmodel.errors import InputError

if TYPE_CHECKING:  # jinja2 would be a twentieth of every import, for the few who chat
    from jaxmodel.data import chat

SEPARATOR = "<|endoftext|>"
SPEC = "tokenizer.json"
SMALLEST_BPE = 257  # every byte, and the separator

# After a newline, or before a space, that stands alone between two words: no byte-level BPE joins across it.
_BETWEEN_WORDS = re.compile(r"(?<=\S)(?:\n(?=\S)|(?= \S))")


@dataclasses.dataclass(frozen=True)
class Extras:
    """What a Hugging Face directory says of a tokenizer beside what `tokenizers` runs.

    Attributes:
      tokens: the special tokens by role, as chat templates call them: `{"bos_token": "<s>", …}`.
      stop: the ids that end a text; empty: the separator alone.
      chat_template: one, several by name, or None; see `chat.render`.
      files: what was read, by name, so that an export writes the same again.
    """

    tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stop: tuple[int, ...] = ()
    chat_template: chat.Template | None = None
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Extras:
        """What `dataclasses.asdict` said, after JSON made a list of the ids."""
        return cls(**{**said, "stop": tuple(said["stop"])})


class Tokenizer(abc.ABC):
    """Text to ids and back. A document starts with the separator: a stream reads `<sep> doc <sep> doc …`.

    `vocab_size` counts the separator, whose id is `separator_id`. Text that happens to spell the separator
    is encoded as ordinary text. `extras` tells what is known besides.
    """

    vocab_size: int
    separator: str = SEPARATOR
    separator_id: int
    extras = Extras()

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32[N], without separators."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without separators and unknown ids; what is not valid UTF-8 becomes U+FFFD."""

    @abc.abstractmethod
    def to_json(self) -> str:
        """All there is to say about this tokenizer; `Tokenizer.from_json` reads it back."""

    @abc.abstractmethod
    def tokenizer_json(self) -> str:
        """A Hugging Face tokenizer.json: to the letter the one that was read from a directory, if it was."""

    @abc.abstractmethod
    def encode_marked(self, text: str) -> np.ndarray:
        """The ids of a text in which every special token that is spelled is that token, int32[N]."""

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, int32[N], without a separator."""
        return self.encode_batch([text])[0]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a text."""
        return self.extras.stop or (self.separator_id,)

    @property
    def mask_id(self) -> int | None:
        """The id that stands for a hidden token; None where it has none."""
        return None

    def encode_input(self, text: str) -> np.ndarray:
        """The ids by which a model is given `text`, int32[N]: `encode`, and around it whatever belongs there."""
        return self.encode(text)

    def render_chat(self, messages: Sequence[chat.Message], **options: Any) -> str:
        """The text of a conversation, by the tokenizer's template; `options` and InputError as for `chat.render`."""
        if self.extras.chat_template is None:
            raise InputError(
                "the tokenizer has no chat template: take a checkpoint that was tuned to chat, or put its template "
                "beside tokenizer.json as chat_template.jinja"
            )
        from jaxmodel.data import chat

        return chat.render(self.extras.chat_template, messages, **{**self.extras.tokens, **options})

    def encode_chat(self, messages: Sequence[chat.Message], **options: Any) -> np.ndarray:
        """The ids of `render_chat`, int32[N]. Special tokens count as such wherever they are spelled, as in
        transformers: by the template, but by a message too."""
        return self.encode_marked(self.render_chat(messages, **options))

    @staticmethod
    def from_json(text: str, separator: str | None = None) -> Tokenizer:
        """The tokenizer that `to_json` described, or a Hugging Face `tokenizer.json`.

        `separator` names the special token that starts a document where that is not `<|endoftext|>`.
        Raises InputError if `text` is neither, or has no such token.
        """
        try:
            spec = json.loads(text)
        except ValueError as error:
            raise InputError(f"the tokenizer is not JSON ({error}); give a tokenizer.json") from error
        if not isinstance(spec, dict):
            raise InputError("the tokenizer is not a JSON object; give a tokenizer.json")
        extras = Extras.of(spec["extras"]) if "extras" in spec else Extras()
        if spec.get("kind") == "byte":
            return ByteTokenizer(extras)
        if "separator" in spec:  # see BpeTokenizer.to_json
            inner = extras.files.get(SPEC) or json.dumps(spec["tokenizer"])
            return BpeTokenizer(inner, spec["separator"], extras)
        return BpeTokenizer(text, separator or SEPARATOR)


@final
class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8, and the separator as 256.

    >>> ByteTokenizer().encode("aé")
    array([ 97, 195, 169], dtype=int32)
    """

    vocab_size = 257
    separator_id = 256

    def __init__(self, extras: Extras | None = None):
        self.extras = extras or Extras()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if 0 <= i < 256).decode(errors="replace")

    def encode_marked(self, text: str) -> np.ndarray:
        first, *rest = map(self.encode, text.split(SEPARATOR))
        return np.concatenate([first, *(np.insert(each, 0, self.separator_id) for each in rest)])

    def to_json(self) -> str:
        more = {} if self.extras == Extras() else {"extras": dataclasses.asdict(self.extras)}
        return json.dumps({"kind": "byte", **more})

    def tokenizer_json(self) -> str:
        """A byte-level BPE with nothing to merge."""
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers

        # GPT-2's character of a byte is its own if that can be seen, and else the next from 256 on.
        seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
        hidden = [byte for byte in range(256) if byte not in seen]
        vocab = {chr(byte if byte in seen else 256 + hidden.index(byte)): byte for byte in range(256)}
        inner: Any = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.decoder = decoders.ByteLevel()
        inner.add_special_tokens([SEPARATOR])
        return inner.to_str()


@final
class BpeTokenizer(Tokenizer):
    """Any tokenizer that Hugging Face `tokenizers` runs, from its `tokenizer.json`; see `train_bpe`."""

    def __init__(self, spec: str, separator: str = SEPARATOR, extras: Extras | None = None):
        """`spec` is a tokenizer.json, `separator` one of its tokens. Raises InputError if they are not."""
        import tokenizers

        try:
            self._inner = tokenizers.Tokenizer.from_str(spec)
        except Exception as error:  # the library raises nothing narrower
            raise InputError(f"not a tokenizer.json of Hugging Face tokenizers: {error}") from error
        self._inner.no_padding()  # some files bake these in, and would silently cut a document
        self._inner.no_truncation()
        self._inner.encode_special_tokens = True  # a document that spells a special token stays text
        separator_id = self._inner.token_to_id(separator)
        if separator_id is None:
            special = [token.content for token in self._inner.get_added_tokens_decoder().values() if token.special]
            raise InputError(
                f"the tokenizer has no token {separator!r} to start a document with; "
                f"name one of its special tokens: {', '.join(special) or 'it has none'}"
            )
        self.separator, self.separator_id = separator, separator_id
        self.extras = extras or Extras()
        # Not the count: ids may have holes, and every id must fit in the embedding.
        self.vocab_size = max(self._inner.get_vocab(with_added_tokens=True).values()) + 1

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    @property
    def mask_id(self) -> int | None:
        return self._inner.token_to_id(self.extras.tokens.get("mask_token", ""))

    def encode_input(self, text: str) -> np.ndarray:
        return np.array(self._inner.encode(text).ids, np.int32)

    def encode_marked(self, text: str) -> np.ndarray:
        return np.array(self._marked.encode(text, add_special_tokens=False).ids, np.int32)

    @functools.cached_property
    def _marked(self) -> Any:
        """The tokenizer that takes text which spells a special token for that token."""
        inner = copy.deepcopy(self._inner)
        inner.encode_special_tokens = False
        return inner

    def decode(self, ids: Iterable[int]) -> str:
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=True)

    def to_json(self) -> str:
        """A Hugging Face tokenizer.json; wrapped with a separator other than `<|endoftext|>`, and with extras."""
        said: dict[str, Any] = {"separator": self.separator}
        if self.extras != Extras():
            said["extras"] = dataclasses.asdict(self.extras)
        elif self.separator == SEPARATOR:
            return self.tokenizer_json()
        if SPEC not in self.extras.files:
            said["tokenizer"] = json.loads(self.tokenizer_json())
        return json.dumps(said)

    def tokenizer_json(self) -> str:
        return self.extras.files.get(SPEC) or self._inner.to_str()


def train_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """A byte-level BPE with GPT-2's way of finding words. The same texts always give the same tokenizer.

    Too little text gives fewer than `vocab_size` tokens. Raises InputError below 257 tokens.
    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.2.
    """
    if vocab_size < SMALLEST_BPE:
        raise InputError(
            f"data.vocab_size: a BPE of {vocab_size} tokens cannot hold the 256 bytes and the separator; "
            f"give {SMALLEST_BPE} or more, or data.tokenizer=byte"
        )
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner: Any = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return BpeTokenizer(inner.to_str())


def pieces(text: str, size: int) -> Iterator[str]:
    """`text` in pieces of about `size` characters, cut only where it changes no id of a byte-level BPE."""
    return stream_pieces([text], size)


def stream_pieces(blocks: Iterable[str], size: int) -> Iterator[str]:
    """The `pieces` of a text that comes in blocks, wherever those end; but for a block and a piece, none is kept."""
    rest = ""
    for block in blocks:
        # A cut is known by the two characters behind it: one that is found is the first of the whole text too, and
        # where none was found, none is but for the last two places.
        start, since, rest = 0, max(size, len(rest) - 2), rest + block
        while (cut := _BETWEEN_WORDS.search(rest, since)) is not None:
            yield rest[start : cut.end()]
            start = cut.end()
            since = start + size
        rest = rest[start:]
    yield rest
