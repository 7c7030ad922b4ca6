"""Every family by its `model_type`. Another one is an entry in a file of tables, which is named here."""

from importlib import import_module

from jaxmodel.interop.huggingface.table import Family

# Of families that say a config alike, the first is written.
_TABLES = ("decoders", "experts", "recurrent", "encoders", "images", "towers", "speech", "pairs")
_FOUND = [vars(import_module(f"jaxmodel.interop.huggingface.{name}")) for name in _TABLES]
FAMILIES = {each.name: each for table in _FOUND for each in table.values() if isinstance(each, Family)}
