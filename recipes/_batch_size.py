"""What `--train.batch_size=auto` comes to: the size a run found there has, or the largest whose step fits in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jaxmodel import options


def resolved(
    train: options.Train,
    optimizer: options.Optimizer,
    workdir: Path,
    model: Any,
    loss: Any,
    rows: Any,
    source: Any,
    partitioning: Any,
) -> int:
    """The number of examples in a step.

    Args:
      train, optimizer: as they were asked for.
      workdir: a run found there goes on with the size that it has.
      model, loss, rows, source, partitioning: what trains, on what, from which weights if any, and where.

    Raises:
      InputError: not even the smallest batch fits, or that of the run does not divide any more.
    """
    if train.batch_size != "auto":
        return train.batch_size

    import jax
    import numpy as np

    from jaxmodel import checkpoint, optim
    from jaxmodel.batch_size import find_batch_size
    from jaxmodel.train import make_state, make_step
    from recipes._runtime import log

    pieces = 1 if partitioning is None else partitioning.batch_pieces
    steps = checkpoint.steps(workdir / "checkpoints")
    before = checkpoint.info_of(workdir, steps[-1]).get("train", {}) if steps else {}
    if size := before.get("batch_size"):
        log(f"batch size {size}: that of the run in {workdir}")
        dataclasses.replace(train, batch_size=size).check()
        if partitioning is not None:
            partitioning.check_batch(size // train.accumulate, "train.batch_size / train.accumulate")
        return size
    # However long the run is, its step and state are as large.
    chain = optim.make_optimizer(optimizer, train.steps or 10**9, model.layout)
    more: dict[str, Any] = {"partitioning": partitioning}
    step = make_step(model, loss, chain, train.accumulate, average=train.average or 0.0, **more)
    state = make_state(
        model,
        chain,
        None if source else jax.random.key(train.seed),
        params=source.params if source else None,
        model_state=source.model_state if source else None,
        average=train.average is not None,
        count_skipped=train.skip_nonfinite,
        **more,
    )
    example = rows.gather(np.zeros(1, np.int64))
    multiple = train.accumulate * pieces
    found = find_batch_size(step, state, example, multiple=multiple, most=len(rows), **more)
    needs, limit = (f"{size / 1e9:.3g} GB" for size in (found.needs, found.limit))
    why = f"whose step fits in {limit}"
    if 2 * found.size > len(rows):
        why = f"that {len(rows)} examples fill; {limit} may be used"
    tried = ", ".join(str(multiple << k) for k in range(3))
    log(f"batch size {found.size}: the largest of {tried}, … {why} (needs {needs})")
    return found.size
