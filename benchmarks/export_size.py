"""Bytes of an export's weights against float32, in GPT-2's 124M shape; from shapes alone, as they are stored."""

import jax

from jaxmodel import weights
from jaxmodel.models.presets import PRESETS


def measure() -> dict:
    """The share of the float32 bytes, for each kind of quantization."""
    model = PRESETS["gpt2"].build()
    dense = jax.eval_shape(model.init, jax.random.key(0))

    def share(kind: str) -> float:
        packed = jax.eval_shape(lambda params: weights.quantize(params, model.layout, kind), dense)
        return weights.num_bytes(packed) / weights.num_bytes(dense)

    return {kind: share(kind) for kind in ("int8", "int4")}


if __name__ == "__main__":
    print(measure())
