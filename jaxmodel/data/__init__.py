"""Data: sources, tokenizers, packing, tables, and a batch order that is a pure function of the step.

Only `augment` needs jax.
"""
