"""The tokenizer of a Hugging Face directory, with its special tokens and chat template, read and written.

`read_tokenizer` takes tokenizer.json, or makes one of GPT-2's vocab.json and merges.txt or of BERT's vocab.txt. What
the ids mean is said in up to six other files, as transformers 4 and 5 write them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxmodel.data.tokenizer import SEPARATOR, SPEC, BpeTokenizer, Extras, Tokenizer
from jaxmodel.errors import InputError

if TYPE_CHECKING:
    from jaxmodel.data.chat import Template

CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
ADDED, GENERATION = "added_tokens.json", "generation_config.json"
TEMPLATE, TEMPLATES, OLD_TEMPLATE = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
KEPT = (SPEC, CONFIG, SPECIAL, ADDED, GENERATION, TEMPLATE, OLD_TEMPLATE)
VOCAB, MERGES, WORDS = "vocab.json", "merges.txt", "vocab.txt"
VOCABULARIES = (".model", ".spm", ".tiktoken")

ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
# What directories of BERT and GPT-2 leave unsaid.
BPE_ROLES = dict.fromkeys(("bos_token", "eos_token", "unk_token"), SEPARATOR)
WORD_ROLES = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
UNSAID = (*WORD_ROLES.items(), *BPE_ROLES.items())
# What starts a document, the first of these that is a token; Qwen names no bos, and has ours.
STARTS = ("bos_token", SEPARATOR, "eos_token", "cls_token", "sep_token", "pad_token")


def read_tokenizer(directory: str | Path) -> BpeTokenizer | None:
    """The tokenizer of a directory; None where there is none, as for models of images.

    Its `extras` hold the special tokens by role, the ids that end a text (eos, and those of generation_config.json or
    config.json), the chat template and the files. Padding and truncation that a tokenizer.json turns on are off.

    Raises:
      InputError: a file is damaged, or the tokenizer is of a kind that has to be converted before; says how.
    """
    directory = Path(directory)
    names = [name for name in KEPT if (directory / name).is_file()]
    names += sorted(f"{TEMPLATES}/{path.name}" for path in directory.glob(f"{TEMPLATES}/*.jinja"))
    files = {name: _text(directory / name) for name in names}
    config = _json(directory, CONFIG)
    said = {**_json(directory, SPECIAL), **config}
    if SPEC not in files:
        made = _made(directory, said)
        if made is None:
            return None
        files[SPEC] = made
    inner = _inner(directory / SPEC, files[SPEC])
    if not said.keys() & set(ROLES):
        said |= {role: token for role, token in UNSAID if inner.token_to_id(token) is not None}
    tokens = {role: content for role in ROLES if (content := _content(said.get(role)))}
    known = (tokens.get(each, each) for each in STARTS)
    start = next((each for each in known if inner.token_to_id(each) is not None), SEPARATOR)
    stop = {**_json(directory, "config.json"), **_json(directory, GENERATION)}.get("eos_token_id")
    stop = [*(stop if isinstance(stop, list) else [stop]), inner.token_to_id(tokens.get("eos_token", ""))]
    stop = tuple(dict.fromkeys(i for i in stop if isinstance(i, int)))
    return BpeTokenizer(files[SPEC], start, Extras(tokens, stop, _template(directory, files, config), files))


def write_tokenizer(directory: str | Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer such that transformers' AutoTokenizer loads it and encodes texts as it does.

    One that was read from a directory gives the files that it was read from, byte for byte (and a tokenizer.json, if
    there was none); any other a tokenizer.json, a tokenizer_config.json and its chat templates. One difference stays,
    as everywhere in transformers: text that spells a special token is that token there.

    Raises:
      InputError: a file's name leads out of the directory.
    """
    directory = Path(directory)
    for name, content in (tokenizer.extras.files or _new_files(tokenizer)).items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise InputError(f"the tokenizer has a file {name!r}, which would not lie in {directory}: import it again")
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content.encode())


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of what pads, begins and ends, as config.json calls them: `{"eos_token_id": 2, …}`."""
    inner: Any = tokenizers.Tokenizer.from_str(tokenizer.tokenizer_json())
    roles = tokenizer.extras.tokens if tokenizer.extras.files else _roles(tokenizer)
    ids = {f"{role}_id": inner.token_to_id(roles.get(role, "")) for role in ("pad_token", "bos_token", "eos_token")}
    return {name: i for name, i in ids.items() if i is not None}


def _roles(tokenizer: Tokenizer) -> dict[str, str]:
    return dict.fromkeys(("bos_token", "eos_token"), tokenizer.separator) | dict(tokenizer.extras.tokens)


def _new_files(tokenizer: Tokenizer) -> dict[str, str]:
    roles = _roles(tokenizer)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **roles}
    template = tokenizer.extras.chat_template or {}
    named = {"default": template} if isinstance(template, str) else template
    return {SPEC: tokenizer.tokenizer_json(), CONFIG: json.dumps(config, indent=2)} | {
        TEMPLATE if name == "default" else f"{TEMPLATES}/{name}.jinja": text for name, text in named.items()
    }


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}): download it again") from error


def _json(directory: Path, name: str) -> dict[str, Any]:
    """A file of JSON; {} where there is none."""
    path = directory / name
    try:
        found = json.loads(_text(path)) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): download it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a JSON object: download it again")
    return found


def _inner(path: Path, text: str) -> Any:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        words = " ".join(str(error).split())
        raise InputError(f"{path} is not a tokenizer.json of Hugging Face tokenizers: {words}") from error


def _content(token: Any) -> str | None:
    """A token, which is written as text, or as a dict with how it is matched."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _made(directory: Path, said: Mapping[str, Any]) -> str | None:
    """A tokenizer.json out of older files; None where there are none."""
    names = {path.name for path in directory.iterdir()}
    plain = ADDED not in names and not said.get("added_tokens_decoder")
    if plain and {VOCAB, MERGES} <= names:
        vocab = _json(directory, VOCAB)
        lines = _text(directory / MERGES).split("\n")
        merges = [line.rstrip("\r").split(" ") for line in lines if line and not line.startswith("#version")]
        if SEPARATOR in vocab and all(len(pair) == 2 for pair in merges):
            return _gpt2(directory, vocab, merges, said)
    elif plain and WORDS in names:
        words = _text(directory / WORDS).removesuffix("\n").split("\n")
        vocab = {word.rstrip("\r"): i for i, word in enumerate(words)}
        roles = WORD_ROLES | {role: content for role in WORD_ROLES if (content := _content(said.get(role)))}
        if vocab.keys() >= set(roles.values()):
            return _bert(vocab, roles, said)
    found = sorted(name for name in names if name in (VOCAB, WORDS, "tekken.json") or name.endswith(VOCABULARIES))
    if not found:
        return None
    raise InputError(
        f"{directory} has its tokenizer only as {found[0]}: make a tokenizer.json of it with transformers, "
        "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
    )


def _gpt2(directory: Path, vocab: dict[str, int], merges: list[list[str]], said: Mapping[str, Any]) -> str:
    try:
        inner: Any = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[(a, b) for a, b in merges]))
    except Exception as error:  # a merge of what is no token
        raise InputError(f"{directory / MERGES} does not fit {VOCAB} ({error}): download both again") from error
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(said.get("add_prefix_space")))
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([SEPARATOR])
    return inner.to_str()


def _bert(vocab: dict[str, int], roles: Mapping[str, str], said: Mapping[str, Any]) -> str:
    inner: Any = tokenizers.Tokenizer(models.WordPiece(vocab=vocab, unk_token=roles["unk_token"]))
    inner.normalizer = normalizers.BertNormalizer(
        lowercase=bool(said.get("do_lower_case", True)),
        strip_accents=said.get("strip_accents"),
        handle_chinese_chars=bool(said.get("tokenize_chinese_chars", True)),
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    sep, cls = ((token, vocab[token]) for token in (roles["sep_token"], roles["cls_token"]))
    inner.post_processor = processors.BertProcessing(sep, cls)
    inner.add_special_tokens(sorted(set(roles.values()), key=lambda token: vocab[token]))
    return inner.to_str()


def _template(directory: Path, files: Mapping[str, str], config: Mapping[str, Any]) -> Template | None:
    """That of a .jinja file, or of several; else of the configs, where it may be a list too."""
    found = {
        PurePosixPath(name).stem if "/" in name else "default": text
        for name, text in files.items()
        if name.endswith(".jinja")
    }
    if not found:
        said = config.get("chat_template") or _json(directory, OLD_TEMPLATE).get("chat_template")
        if said is None or isinstance(said, str):
            return said or None
        try:
            found = {each["name"]: each["template"] for each in said}
        except (KeyError, TypeError) as error:
            wrong = f"{directory / CONFIG}: chat_template is neither text nor a list of name and template"
            raise InputError(f"{wrong}: download it again") from error
    return found["default"] if set(found) == {"default"} else found
