"""Every family by its `model_type`. Another one is an entry in a file of tables, which is named here."""

from importlib import import_module

from jaxmodel.interop.huggingface.table import Family

# Of families that say a config alike, the first is written.
_DECODERS = ("decoders", "kin", "experts", "latents", "recurrent")
_OTHERS = ("encoders", "modern", "images", "towers", "speech", "pairs")
_TABLES = [vars(import_module(f"jaxmodel.interop.huggingface.{name}")) for name in (*_DECODERS, *_OTHERS)]
FAMILIES = {each.name: each for table in _TABLES for each in table.values() if isinstance(each, Family)}
