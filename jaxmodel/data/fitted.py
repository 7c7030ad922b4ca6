"""What was fitted to a model's data, a tokenizer or a table: a file beside the weights, known by its name."""

from __future__ import annotations

from pathlib import Path

from jaxmodel.data import table
from jaxmodel.data.table import Table
from jaxmodel.data.tokenizer import Tokenizer

Fitted = Tokenizer | Table
TOKENIZER, TABLE = "tokenizer.json", table.FILE
READERS = {TOKENIZER: Tokenizer.from_json, TABLE: Table.from_json}


def texts_of(fitted: Fitted | None) -> dict[str, str]:
    """The file that holds it, by name; none where there is nothing to hold."""
    if fitted is None:
        return {}
    return {TABLE if isinstance(fitted, Table) else TOKENIZER: fitted.to_json()}


def read_fitted(folder: Path) -> Fitted | None:
    """What lies in a folder; None where there is neither."""
    for name, read in READERS.items():
        if (folder / name).exists():
            return read((folder / name).read_text(encoding="utf-8"))
    return None
