"""Two transformers, of which one writes while it looks at what the other has read."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmodel.model import Batch, Key, Model, Outputs, Params, State, init_of, start_of
from jaxmodel.models.inputs import check_batch
from jaxmodel.models.pairs import EncoderDecoder
from jaxmodel.sharding import Partitioning


def build(config: EncoderDecoder, partitioning: Partitioning | None = None) -> Model:
    """An encoder and a decoder as pure functions; params, layout and state have the parts by name.

    The batch holds what `config.encoder` reads with its `mask`, or `encoder_hidden` [B,S,E] as this model gave it, and
    `decoder_tokens` int32[B,T] with, perhaps, `decoder_mask`. Values are the decoder's, and `encoder_hidden`.

    With `state=start(batch_size, length)`, a cache for `length` tokens of targets, a call that brings a source keeps
    what each block sees of it, and later ones bring `decoder_tokens` alone; a call may bring a source alone.

    Raises InputError as the parts do.
    """
    encoder, decoder = config.encoder.build(partitioning), config.decoder.build(partitioning)

    def parted(encoder: Any, decoder: Any) -> dict[str, Any]:
        """Of both, the shared table with the encoder's."""
        if config.shared:
            stem = {name: each for name, each in decoder["stem"].items() if name != "tokens"}
            decoder = {name: each for name, each in {**decoder, "stem": stem}.items() if each}
        return {"encoder": encoder, "decoder": decoder}

    def apply(params: Params, batch: Batch, state: State = None, *, key: Key = None, train: bool = False) -> Outputs:
        own = params["decoder"]
        if config.shared:
            own = {**own, "stem": {**own.get("stem", {}), "tokens": params["encoder"]["stem"]["tokens"]}}
        source = {name: batch[name] for name in (*config.encoder.inputs, "frames") if batch.get(name) is not None}
        if set(batch) == {"hidden"}:
            return decoder.apply(own, batch)
        hidden = batch.get("encoder_hidden")
        sourced = hidden is not None or any(name in source for name in (*config.encoder.reads, "frames"))
        needed = () if sourced or state else config.encoder.reads
        check_batch(batch, config.inputs, needed if sourced and state else (*needed, "decoder_tokens"))
        keys = (None, None) if key is None else jax.random.split(key)
        values, losses = dict[str, jax.Array](), dict[str, jax.Array]()
        if hidden is None and sourced:
            with jax.named_scope("encoder"):
                out = encoder.apply(params["encoder"], source, key=keys[0], train=train)
            values["encoder_hidden"] = hidden = out["hidden"]
            losses |= {f"encoder/{name}": value for name, value in out.losses.items()}
        seen: dict[str, Any] = {"encoder_hidden": hidden, "encoder_mask": batch.get("mask")}
        if (tokens := batch.get("decoder_tokens")) is None:  # none yet: the source alone enters the cache
            tokens = jnp.zeros((len(seen["encoder_hidden"]), 0), jnp.int32)
        target = {"tokens": tokens, "mask": batch.get("decoder_mask"), **seen}
        with jax.named_scope("decoder"):
            out = decoder.apply(own, target, state and state["decoder"], key=keys[1], train=train)
        losses |= {f"decoder/{name}": value for name, value in out.losses.items()}
        return Outputs({**out.values, **values}, {"decoder": out.state} if state else {}, losses)

    init = init_of({"encoder": encoder, "decoder": decoder})
    layout = parted(encoder.layout, decoder.layout)
    return Model(lambda key: parted(**init(key)), apply, start_of({"decoder": decoder}), layout, config)
