"""Where a recipe writes to, looked at before the long work rather than after."""

import os
from pathlib import Path

from jaxmodel.errors import InputError


def output_file(path: str | Path, flag: str) -> Path:
    """The path, if a file can be there; InputError naming `flag` if not."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"--{flag}={path} is a folder: name a file")
    if not path.parent.is_dir():
        raise InputError(f"--{flag}={path}: there is no folder {path.parent}: make it, or choose another")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"--{flag}={path} cannot be written there: choose another place")
    return path
