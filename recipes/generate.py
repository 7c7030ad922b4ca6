"""Continue texts, or answer: python -m recipes.generate --checkpoint=DIR --prompt='Once upon' [--prompt='Or else']"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmodel import options
from jaxmodel.config import field
from jaxmodel.errors import InputError
from recipes._chat import Conversation, read_conversations
from recipes._flags import Command, Parsed, dtype_flag, run
from recipes._output import output_file


@dataclasses.dataclass(frozen=True)
class Flags:
    """What is continued, and how tokens are drawn."""

    checkpoint: str = field(help="a run's folder, one of its steps, an export, or a Hugging Face directory")
    prompt: str = field(
        "", "how a text begins, or what an encoder reads; repeat it for several texts; empty: a new document"
    )
    chat: bool = field(
        False, "a prompt is what a user says: it goes through the checkpoint's chat template, and is answered"
    )
    messages: str | None = field(
        None,
        "conversations to go on with, in place of prompts: .json, a list of messages with role and content, or .jsonl, "
        "one such list a line; as messages of an object, beside tools",
    )
    max_new_tokens: int | None = field(
        None, "tokens to add at most; unsaid: 100, or what the model's max_length leaves", low=1
    )
    temperature: float = field(0.8, "below 1 the likely gets likelier; 0 takes the likeliest", low=0.0)
    top_k: int | None = field(None, "draw from this many of the likeliest tokens", low=1)
    top_p: float | None = field(
        None, "draw from the fewest likeliest tokens of this probability together", low=0.0, high=1.0
    )
    seed: int = field(0, "of the draws: the same seed gives the same texts", low=0)
    stop: str | None = field(
        None, "a text ends before this; always at the end of a document, or of an answer as its directory says"
    )
    output: str | None = field(
        None, "also write the texts to this .jsonl file: prompt and text; or conversations with their answers"
    )
    dtype: str | None = dtype_flag()
    mesh: options.Mesh | None = field(None, "devices that share the model; none: one device")
    prompts: tuple[str, ...] = field((), "all that were given", flag=False)

    def check(self) -> None:
        """Raise InputError where two flags do not fit each other."""
        other = "chat" if self.chat else f"prompt={self.prompt}" if self.prompt else None
        if self.messages is not None and other is not None:
            raise InputError(
                f"--messages={self.messages} holds whole conversations, beside which --{other} means nothing: leave "
                "one of them out"
            )
        if self.chat and not self.prompt:
            raise InputError("--chat answers a user, who says nothing: give --prompt too, or --messages=FILE")


class Prompts(Command[Flags]):
    """A command line on which `--prompt` may be repeated."""

    def parse(self, argv: Sequence[str]) -> Parsed[Flags]:
        """As any other; `prompts` are all of the command line, or else the one of a flag file."""
        parsed = super().parse(argv)
        repeated = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        repeated.add_argument("--prompt", "-prompt", action="append")
        prompts = repeated.parse_known_args(argv[1:])[0].prompt or [parsed.flags.prompt]
        return dataclasses.replace(parsed, flags=dataclasses.replace(parsed.flags, prompts=tuple(prompts)))


COMMAND = Prompts("generate", "Continue texts with a language model, or answer with one that chats.", Flags)


def main(parsed: Parsed[Flags]) -> int:
    """Load, generate, print."""
    flags = parsed.flags
    output = flags.output and output_file(flags.output, "output")
    chats = _chats(flags)

    from recipes._runtime import compile_cache

    compile_cache()

    from jaxmodel.generate import generate, prepared
    from jaxmodel.interop.signature import limits_of, of_config
    from jaxmodel.loading import load
    from jaxmodel.sharding import make_mesh

    mesh = flags.mesh and make_mesh(dataclasses.asdict(flags.mesh))
    loaded = load(flags.checkpoint, mesh=mesh, dtype=flags.dtype)
    model, tokenizer, documents = loaded.model, loaded.tokenizer, "task" in loaded.info
    params = prepared(model, loaded.params)
    del loaded  # the weights as they were: one copy is enough
    if tokenizer is None:
        raise InputError(f"--checkpoint={flags.checkpoint} holds no tokenizer: name a language model's")
    reads = of_config(model.config, "reads") or ()
    paired = "decoder_tokens" in reads  # prompts are what the encoder reads, and texts the decoder's alone
    if paired and "tokens" not in reads:
        first = next(iter(reads))
        raise InputError(f"--prompt is text, and the model reads {first}: call jaxmodel.generate.generate with that")
    if chats:
        encoded = [tokenizer.encode_chat(chat.messages, tools=chat.tools, add_generation_prompt=True) for chat in chats]
    else:
        encoded = [tokenizer.encode_input(prompt) for prompt in flags.prompts]
    prompts = [ids.tolist() or [tokenizer.separator_id] for ids in encoded]
    limit = limits_of(model).get("decoder_length" if paired else "length", sys.maxsize)
    room = max(limit - (1 if paired else max(map(len, prompts))), 1)  # too long a prompt is named by what follows
    added = generate(
        model,
        params,
        prompts,
        max_new_tokens=flags.max_new_tokens or min(100, room),
        temperature=flags.temperature,
        top_k=flags.top_k,
        top_p=flags.top_p,
        seed=flags.seed,
        # Where we trained it, another document begins behind the separator.
        stop=[*tokenizer.stop_ids, *([tokenizer.separator_id] if documents else ())],
    )
    texts = []
    for ids, new in zip(prompts, added, strict=True):
        # Decoded together: some tokenizers drop the space that a text begins with.
        before = [] if paired else ids
        text = tokenizer.decode(before + new).removeprefix(tokenizer.decode(before))
        texts.append(text.partition(flags.stop)[0] if flags.stop else text)
    begun = [""] * len(texts) if chats or paired else flags.prompts
    print("\n---\n".join(begin + text for begin, text in zip(begun, texts, strict=True)))
    if output:
        lines: list[dict[str, Any]]
        if chats:
            lines = [chat.answered(text) for chat, text in zip(chats, texts, strict=True)]
        else:
            lines = [{"prompt": prompt, "text": text} for prompt, text in zip(flags.prompts, texts, strict=True)]
        Path(output).write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
    return 0


def _chats(flags: Flags) -> list[Conversation]:
    """The conversations that are to be answered; none where prompts are continued."""
    if flags.messages is not None:
        return read_conversations(flags.messages)
    return [Conversation([{"role": "user", "content": prompt}]) for prompt in flags.prompts if flags.chat]


if __name__ == "__main__":
    sys.exit(run(main, COMMAND))
