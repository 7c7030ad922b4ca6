"""Continue texts: python -m recipes.generate --checkpoint=DIR --prompt='Once upon' [--prompt='Or else']"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxmodel import options
from jaxmodel.config import field
from jaxmodel.errors import InputError
from recipes._flags import Command, Parsed, dtype_flag, run
from recipes._output import output_file


@dataclasses.dataclass(frozen=True)
class Flags:
    """What is continued, and how tokens are drawn."""

    checkpoint: str = field(help="a run's folder, one of its steps, an export, or a Hugging Face directory")
    prompt: str = field("", "how a text begins; repeat it for several texts; empty: a new document")
    max_new_tokens: int | None = field(
        None, "tokens to add at most; unsaid: 100, or what the model's max_length leaves", low=1
    )
    temperature: float = field(0.8, "below 1 the likely gets likelier; 0 takes the likeliest", low=0.0)
    top_k: int | None = field(None, "draw from this many of the likeliest tokens", low=1)
    top_p: float | None = field(
        None, "draw from the fewest likeliest tokens of this probability together", low=0.0, high=1.0
    )
    seed: int = field(0, "of the draws: the same seed gives the same texts", low=0)
    stop: str | None = field(None, "a text ends before this; always at the end of a document")
    output: str | None = field(None, "also write the texts to this .jsonl file: prompt and text")
    dtype: str | None = dtype_flag()
    mesh: options.Mesh | None = field(None, "devices that share the model; none: one device")
    prompts: tuple[str, ...] = field((), "all that were given", flag=False)


class Prompts(Command[Flags]):
    """A command line on which `--prompt` may be repeated."""

    def parse(self, argv: Sequence[str]) -> Parsed[Flags]:
        """As any other; `prompts` are all of the command line, or else the one of a flag file."""
        parsed = super().parse(argv)
        repeated = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        repeated.add_argument("--prompt", "-prompt", action="append")
        prompts = repeated.parse_known_args(argv[1:])[0].prompt or [parsed.flags.prompt]
        return dataclasses.replace(parsed, flags=dataclasses.replace(parsed.flags, prompts=tuple(prompts)))


COMMAND = Prompts("generate", "Continue texts with a language model.", Flags)


def main(parsed: Parsed[Flags]) -> int:
    """Load, generate, print."""
    flags = parsed.flags
    output = flags.output and output_file(flags.output, "output")

    from recipes._runtime import compile_cache

    compile_cache()

    from jaxmodel.generate import generate, prepared
    from jaxmodel.interop.signature import limits_of
    from jaxmodel.loading import load
    from jaxmodel.sharding import make_mesh

    mesh = flags.mesh and make_mesh(dataclasses.asdict(flags.mesh))
    loaded = load(flags.checkpoint, mesh=mesh, dtype=flags.dtype)
    model, tokenizer = loaded.model, loaded.tokenizer
    params = prepared(model, loaded.params)
    del loaded  # the weights as they were: one copy is enough
    if tokenizer is None:
        raise InputError(f"--checkpoint={flags.checkpoint} holds no tokenizer: name a language model's")
    prompts = [ids.tolist() or [tokenizer.separator_id] for ids in tokenizer.encode_batch(flags.prompts)]
    limit = limits_of(model).get("length", sys.maxsize)
    room = max(limit - max(map(len, prompts)), 1)  # too long a prompt is named by what follows
    added = generate(
        model,
        params,
        prompts,
        max_new_tokens=flags.max_new_tokens or min(100, room),
        temperature=flags.temperature,
        top_k=flags.top_k,
        top_p=flags.top_p,
        seed=flags.seed,
        stop=[tokenizer.separator_id],
    )
    texts = []
    for prompt, ids, new in zip(flags.prompts, prompts, added, strict=True):
        # Decoded together: some tokenizers drop the space that a text begins with.
        text = tokenizer.decode(ids + new).removeprefix(tokenizer.decode(ids))
        texts.append({"prompt": prompt, "text": text.partition(flags.stop)[0] if flags.stop else text})
    print("\n---\n".join(each["prompt"] + each["text"] for each in texts))
    if output:
        Path(output).write_text("".join(json.dumps(each) + "\n" for each in texts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, COMMAND))
