"""What `--train.batch_size=auto` comes to: the size a run found there has, or the largest whose step fits in memory."""

from __future__ import annotations

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
    partitioning: Any,
) -> int:
    """The number of examples in a step; InputError where not even the smallest batch fits.

    Args:
      train, optimizer: as they were asked for.
      workdir: a run found there goes on with the size that it has.
      model, loss, rows, partitioning: what it trains, on what and where.
    """
    if train.batch_size != "auto":
        return train.batch_size

    import jax
    import numpy as np

    from jaxmodel import checkpoint, optim
    from jaxmodel.batch_size import find_batch_size
    from jaxmodel.train import make_state, make_step
    from recipes._runtime import log

    if steps := checkpoint.steps(workdir / "checkpoints"):
        found = checkpoint.info_of(workdir, steps[-1])["train"]["batch_size"]
        log(f"batch size {found}: that of the run in {workdir}")
        return found
    # However long the run is, its step and state are as large.
    chain = optim.make_optimizer(optimizer, train.steps or 10**9, model.layout)
    more: dict[str, Any] = {"partitioning": partitioning}
    step = make_step(model, loss, chain, train.accumulate, average=train.average or 0.0, **more)
    state = make_state(
        model,
        chain,
        jax.random.key(train.seed),
        average=train.average is not None,
        count_skipped=train.skip_nonfinite,
        **more,
    )
    pieces = 1 if partitioning is None else partitioning.batch_pieces
    found = find_batch_size(
        step,
        state,
        rows.gather(np.zeros(1, np.int64)),
        multiple=train.accumulate * pieces,
        most=len(rows),
        partitioning=partitioning,
    )
    log(
        f"batch size {found}: of 1, 2, 4, … times {train.accumulate * pieces}, the largest that fits in memory"
    )
    return found
