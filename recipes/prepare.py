"""Prepare a large text once: python -m recipes.prepare --input=FILE --output=DIR"""

import re
import sys

from jaxmodel.data.prepare import Preparation, prepare
from jaxmodel.errors import InputError
from recipes._flags import Command, Parsed, run

COMMAND = Command(
    "prepare",
    "Clean, split and tokenise text into memory-mapped shards; the same command goes on after an interruption.",
    Preparation,
)
# What the library calls as in the section `data` of training is a flag of its own here.
SECTION = re.compile(r"(?<![\w/.'])data\.(path|pattern|text_field|heldout|tokenizer|vocab_size)\b")


def main(parsed: Parsed[Preparation]) -> int:
    """Prepare, and say what it is for."""
    from recipes._runtime import log

    try:
        prepare(parsed.flags, log)
    except InputError as error:
        spelled = SECTION.sub(lambda found: found[1].replace("path", "input"), str(error))
        raise InputError(spelled) from error
    log(f"next: python -m recipes.train --data.path={parsed.flags.output} --workdir=DIR")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, COMMAND))
