"""Arrays in, arrays out: python -m recipes.predict --checkpoint=DIR --input=batch.npz --output=out.npz"""

import dataclasses
import sys

from jaxmodel.config import field
from recipes._flags import Command, Parsed, run
from recipes._output import output_file


@dataclasses.dataclass(frozen=True)
class Flags:
    """What is read, what is written, and how much at once."""

    checkpoint: str = field(help="a run's folder, one of its steps, or an export")
    input: str = field(help=".npz file of what the model reads: tokens, mask, images, …, by name")
    output: str = field(help=".npz file for what it gives: logits, embedding, …, by name")
    values: tuple[str, ...] = field((), "which of that; none named: all")
    batch_size: int = field(32, "rows computed at once", low=1)


COMMAND = Command("predict", "Run a model on arrays, and write what it gives.", Flags)


def main(parsed: Parsed[Flags]) -> int:
    """Load, predict, write."""
    flags = parsed.flags
    output = output_file(flags.output, "output")

    from recipes._runtime import compile_cache, log

    compile_cache()

    import numpy as np

    from jaxmodel.load import load
    from jaxmodel.predict import predict, read_arrays

    arrays = read_arrays(flags.input)
    loaded = load(flags.checkpoint)
    found = predict(
        loaded.model,
        loaded.params,
        arrays,
        state=loaded.model_state,
        batch_size=flags.batch_size,
        values=flags.values,
    )
    with open(output, "wb") as file:  # given a name, numpy would add .npz to it
        np.savez(file, **found)  # pyright: ignore[reportArgumentType]
    log(f"{output}: " + ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(run(main, COMMAND))
