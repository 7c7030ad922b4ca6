"""Layers: the only importer of flax.linen."""
