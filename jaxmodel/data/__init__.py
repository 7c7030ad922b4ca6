"""Data, without jax: sources, tokenizers, packing, and a batch order that is a pure function of the step."""
