"""Checkpoints: saved in the background, checked by checksum, restored on any mesh.

WORKDIR/checkpoints/STEP/
    model.json       config, weight types, every array's shape, step, versions (`Record`)
    tokenizer.json   where there is one
    weights/         params and model state, written by Orbax
    training/        the rest of the training state: evaluation needs only what is above
    manifest.json    size and SHA-256 of every file, written last: without it a step is not committed
WORKDIR/checkpoints/chosen.json    where a run ended with its best step: that is what is loaded, not the newest
"""

from jaxmodel.checkpoint.manifest import damage, latest, steps
from jaxmodel.checkpoint.migrations import MIGRATIONS, SCHEMA, Migration
from jaxmodel.checkpoint.record import Record, check_config, chosen, info_of, read_record
from jaxmodel.checkpoint.restore import restore_state, restore_weights
from jaxmodel.checkpoint.save import Checkpointer

__all__ = [
    "MIGRATIONS",
    "SCHEMA",
    "Checkpointer",
    "Migration",
    "Record",
    "check_config",
    "chosen",
    "damage",
    "info_of",
    "latest",
    "read_record",
    "restore_state",
    "restore_weights",
    "steps",
]
