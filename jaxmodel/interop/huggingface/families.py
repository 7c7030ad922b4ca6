"""Every family by its `model_type`. Another one is an entry in a file of tables, named here."""

from jaxmodel.interop.huggingface import (
    decoders,
    encoders,
    experts,
    images,
    kin,
    latents,
    modern,
    pairs,
    recurrent,
    speech,
    towers,
)

_ALL = (
    *(decoders.GPT2, decoders.LLAMA, decoders.QWEN3, decoders.MISTRAL, decoders.QWEN2),
    *(decoders.GEMMA3, decoders.GEMMA2, decoders.GEMMA4, decoders.GEMMA, *kin.KIN, *experts.EXPERTS),
    *(*latents.LATENTS, *recurrent.RECURRENT),
    *(encoders.BERT, encoders.VIT, encoders.ROBERTA, encoders.DISTILBERT, encoders.DINOV2),
    *(modern.MODERNBERT, modern.ELECTRA, images.RESNET, images.CONVNEXT, *towers.TOWERS),
    *(speech.WAV2VEC2, speech.HUBERT),
    *pairs.PAIRS,
)
FAMILIES = {family.name: family for family in _ALL}
