"""The loop: one step after the other, and the habits around it: evaluate, save, watch, go back."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxmodel import metrics as pairs
from jaxmodel.config import did_you_mean
from jaxmodel.errors import InputError, Retryable
from jaxmodel.metrics import Metrics
from jaxmodel.model import Batch
from jaxmodel.train import Step, TrainState, put
from jaxmodel.weights import path_name

Hook = Callable[[int, str, Mapping[str, float]], None]  # (step, split, numbers)
Evaluation = Callable[[TrainState], Mapping[str, float]]
Batches = Iterable[tuple[int, Mapping[str, np.ndarray]]]
RECENT = 20  # logged losses that a spike is held against
MOST_SKIPPED = 10  # updates in a row; then nothing will come of it


class Diverged(InputError):
    """The loss or the gradients are no longer finite, or leapt up."""


class Saver(Protocol):
    """What `fit` asks of whoever saves; once `save` returns, the next step reuses the state's memory."""

    def save(self, step: int, state: TrainState) -> None:
        """Save the state after `step` updates; may go on in the background."""
        ...

    def wait(self) -> None:
        """Return when all is saved, or raise."""
        ...


@runtime_checkable
class Checkpointer(Saver, Protocol):
    """What it asks beside that to go back: `checkpoint.Checkpointer`, or yours."""

    def save(self, step: int, state: TrainState, info: Mapping[str, Any] | None = None) -> None:
        """Save, with `info` written down beside."""
        ...

    def restore(self, state: TrainState) -> TrainState:
        """The newest state that was saved; the one that is given is used up."""
        ...

    def choose(self, step: int, state: TrainState, info: Mapping[str, Any] | None = None) -> TrainState:
        """The state of `step`, which stands for the run from now on; the one given is used up."""
        ...

    def protect(self, steps: Sequence[int]) -> None:
        """Steps to keep, however old, until told otherwise."""
        ...


@dataclasses.dataclass
class Watch:
    """Which evaluations were the best, and how many ago: for early stopping, and for keeping the best.

    Attributes:
      monitor: a metric of the first evaluation.
      mode: whether its "min" or its "max" is best.
      patience: evaluations without a better one after which a run stops; None: it never does.
      min_delta: what counts as better is so by at least this much.
      keep: how many of the best steps are kept, however old.
      best: (value, step), the best first.
      since: evaluations since the best one.
    """

    monitor: str
    mode: str = "min"
    patience: int | None = None
    min_delta: float = 0.0
    keep: int = 1
    best: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    since: int = 0

    def see(self, step: int, numbers: Mapping[str, float]) -> bool:
        """Note an evaluation; whether it is among those to keep. InputError if there is no such metric."""
        if self.monitor not in numbers:
            raise InputError(
                f"train.monitor={self.monitor} is no metric of the evaluation: {did_you_mean(self.monitor, numbers)}"
            )
        value, sign = numbers[self.monitor], 1 if self.mode == "min" else -1
        if not math.isfinite(value):
            self.since += 1
            return False
        better = not self.best or sign * (self.best[0][0] - value) > self.min_delta
        self.since = 0 if better else self.since + 1
        now = (value, step)
        # What is better by less than `min_delta` is no better: it comes behind the best one.
        others = sorted([*self.best, now][0 if better else 1 :], key=lambda each: (sign * each[0], each[1]))
        self.best = (others if better else [self.best[0], *others])[: self.keep]
        return (value, step) in self.best

    @property
    def exhausted(self) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and self.since >= self.patience

    def to_dict(self) -> dict[str, Any]:
        """What changes, to be saved."""
        return {"monitor": self.monitor, "best": [list(each) for each in self.best], "since": self.since}

    def resume(self, saved: Mapping[str, Any] | None) -> None:
        """Go back to, or on from, what was saved, if it was of the same metric."""
        if saved and saved.get("monitor") == self.monitor:
            self.best = [(float(value), int(step)) for value, step in saved["best"]]
            self.since = int(saved["since"])


@dataclasses.dataclass(frozen=True)
class Rollback:
    """When training diverges: go back to the newest checkpoint and leave out the batches since.

    Attributes:
      retries: how often at most.
      spike: a loss of so many times the median of the last logged ones has diverged too; None: any finite one is fine.
    """

    retries: int = 3
    spike: float | None = None


def fit(
    state: TrainState,
    step: Step,
    loader: Batches | Callable[[int, int], Batches],
    *,
    key: jax.Array,
    steps: int,
    hooks: Sequence[Hook] = (),
    log_every: int = 10,
    evaluate: Evaluation | Mapping[str, Evaluation] | None = None,
    eval_every: int = 0,
    checkpointer: Saver | None = None,
    save_every: int = 0,
    should_stop: Callable[[], bool] | None = None,
    watch: Watch | None = None,
    rollback: Rollback | None = None,
    before: Mapping[str, Any] | None = None,
    profile: tuple[int, int, Path] | None = None,
    put: Callable[[Mapping[str, np.ndarray]], Batch] = put,
) -> TrainState:
    """Train until `steps` updates were made, in this run and those before it; returns the last state, or the best.

    The host waits for the device only where it logs, evaluates or saves. A state that has made its `steps`
    comes back as it is; where there is a watch, the best one does.

    Args:
      state: where to go on from; it is used up.
      step: from `make_step`.
      loader: gives (number, batch), beginning at `state.step` and the batches that were left out; or a function of
        the number to begin at, and of how many in it were left out.
      key: for dropout and the like; the same in a run that goes on.
      steps: updates in all.
      hooks: called with (step, "train", numbers) after the first step, every `log_every` and the last, with
        (step, "eval", numbers) after an evaluation, and with (step, "rollback", …) after going back.
      log_every: steps between calls of the hooks.
      evaluate: state -> numbers, or several by name (the split that hooks are told), every `eval_every` steps and
        after the last.
      eval_every: steps between evaluations; 0: only after the last.
      checkpointer: saves every `save_every` steps and after the last.
      save_every: steps between saves; 0: only after the last.
      should_stop: asked after every step, and must answer alike in all processes; the state is saved first.
      watch: of the first evaluation: its best steps are saved and kept, the run stops when its patience is at its end,
        and it ends with the best state, which stands for the run from then on. Needs a checkpointer; its own state is
        saved along.
      rollback: goes back where training diverges; needs a checkpointer, and a loader that can be begun anew.
      before: what the checkpoint that `state` comes from says of it, `checkpoint.info_of(workdir, step)`: what was
        watched, how often it went back, which batches were left out.
      profile: (first, last, folder): steps of which a trace is written, for xprof or Perfetto.
      put: batch on the host -> batch on the devices, done one batch ahead.

    Raises:
      Diverged: loss or gradients are not finite where they are logged or would be saved, and there is no way back.
      InputError: the loader does not begin where it should, or `watch` names no metric.
      Retryable: `should_stop()` was true before the last step.
    """
    sets = evaluate if isinstance(evaluate, Mapping) else {} if evaluate is None else {"eval": evaluate}
    done = int(state.step)
    back = checkpointer if isinstance(checkpointer, Checkpointer) else None
    if (watch or rollback) is not None and back is None:
        raise InputError("fit: watch and rollback go back to checkpoints: pass a checkpoint.Checkpointer too")
    if rollback is not None and not callable(loader):
        raise InputError("fit: rollback begins the data anew: pass a loader that is a function of where to begin")
    before = before or {}
    offset, tries = before.get("offset", 0), before.get("retries", 0)
    guard = _Guard(rollback.spike if rollback else None, before.get("guard"))
    if watch is not None:
        watch.resume(before.get("watch"))
    if done >= steps or (watch is not None and watch.exhausted):  # it may have been killed before it chose
        return _best(state, back, watch)
    batches: Iterator[Any] = iter(loader(done + offset, offset) if callable(loader) else loader)
    seen: dict[int, dict[str, Any]] = {}  # what was watched up to each step to go back to

    def fetch(due: int) -> Batch:
        index, batch = next(batches)
        if index != due + offset:
            raise InputError(
                f"the loader gave the batch of step {index} where that of {due + offset} was due: begin it at "
                "state.step"
            )
        return put(batch)

    def due(every: int) -> bool:
        return done == steps or (every > 0 and done % every == 0)

    def tell(split: str, numbers: Mapping[str, float]) -> None:
        for hook in hooks:
            hook(done, split, numbers)

    def save() -> None:
        info: dict[str, Any] = {"offset": offset, "retries": tries} if tries else {}
        if rollback is not None:
            info["guard"] = guard.to_dict()
        if watch is not None:
            seen[done] = info["watch"] = watch.to_dict()
        if back is not None:
            back.protect([each for _, each in watch.best] if watch else [])
            back.save(done, state, info)
        elif checkpointer is not None:
            checkpointer.save(done, state)

    if watch is not None:
        seen[done] = watch.to_dict()
    if rollback is not None and done == 0:
        save()  # something to go back to
    with contextlib.ExitStack() as stack:
        ahead = fetch(done)
        while done < steps:
            if profile is not None and done + 1 == profile[0]:
                stack.enter_context(jax.profiler.trace(str(profile[2])))
            state, sums = step(state, ahead, key)  # returns at once; the device works on
            done += 1
            if profile is not None and done == profile[1]:
                jax.block_until_ready(state)
                stack.close()
            log, keep = due(log_every) or done == 1, checkpointer is not None and due(save_every)
            stop = should_stop is not None and should_stop() and done < steps
            found: dict[str, float] = {}
            try:
                if log or keep or stop:  # what has diverged must not replace what has not
                    # A run that was not stopped here would not have looked: then nothing of it is remembered.
                    looks = guard if log or keep else copy.copy(guard)
                    found = looks.check(done, sums, state)
            except Diverged:
                if rollback is None or tries >= rollback.retries:
                    raise
                assert back is not None and callable(loader)
                stack.close()  # a trace that has begun ends here, and may begin anew
                failed, tries = done, tries + 1
                back.wait()
                state = back.restore(state)
                done = int(state.step)
                if watch is not None:
                    watch.resume(seen.get(done))
                offset += failed - done
                tell("rollback", {"from": failed, "retries": tries, "skipped_batches": offset})
                guard.forget()
                batches = iter(loader(done + offset, offset))
                ahead = fetch(done)
                continue
            if done < steps:
                ahead = fetch(done)
            if log:
                tell("train", found)
            best = False
            if due(eval_every):
                for i, (name, measure) in enumerate(sets.items()):
                    numbers = measure(state)
                    tell(name, numbers)
                    if watch is not None and not i:
                        best = watch.see(done, numbers)
            if checkpointer is not None and (stop or keep or best):
                save()
            if stop:
                if checkpointer is not None:
                    checkpointer.wait()
                raise Retryable(f"stopped after step {done} of {steps}; the same command goes on from there")
            if watch is not None and watch.exhausted:
                break
    if checkpointer is not None:
        checkpointer.wait()
    return _best(state, back, watch)


def _best(state: TrainState, back: Checkpointer | None, watch: Watch | None) -> TrainState:
    """The best state that was watched, which stands for the run from now on; without one, `state` as it is."""
    if back is None or watch is None or not watch.best:
        return state
    value, step = watch.best[0]
    return back.choose(step, state, {"monitor": watch.monitor, "value": value, "stopped_early": watch.exhausted})


class _Guard:
    """Looks whether training has diverged."""

    def __init__(self, spike: float | None, saved: Mapping[str, Any] | None = None) -> None:
        self._spike = spike
        self.forget()
        if saved:
            self._losses = [float(loss) for loss in saved["losses"]]
            self._skipped, self._step, self._row = saved["skipped"], saved["step"], saved["row"]

    def to_dict(self) -> dict[str, Any]:
        """What it remembers, to be saved."""
        return {"losses": self._losses, "skipped": self._skipped, "step": self._step, "row": self._row}

    def forget(self) -> None:
        """Begin anew, after going back."""
        self._losses: list[float] = []
        self._skipped, self._step, self._row = 0.0, 0, 0.0

    def check(self, step: int, sums: Metrics, state: TrainState) -> dict[str, float]:
        """What was measured; Diverged if it is not finite (or, where that is skipped, if all was) or leaps up."""
        numbers = pairs.finish(sums)
        mend = "Lower optimizer.learning_rate, lengthen optimizer.warmup, or set optimizer.clip_norm=1"
        if "skipped" in numbers:
            new, since = numbers["skipped"] - self._skipped, step - self._step
            self._skipped, self._step = numbers["skipped"], step
            self._row = self._row + new if new >= since else 0.0
            if self._row >= MOST_SKIPPED:
                raise Diverged(
                    f"step {step}: none of the last {self._row:.0f} updates was finite; training has diverged. {mend}"
                )
        else:
            for name, number in sorted(numbers.items(), key=lambda each: each[0] != "loss"):  # the loss first
                if not math.isfinite(number) and math.isfinite(sums[name][1]) and not math.isfinite(sums[name][0]):
                    raise Diverged(f"step {step}: {name} is {number}{_where(state)}; training has diverged. {mend}")
        loss = numbers["loss"]
        if self._spike is not None and len(self._losses) >= 3 and loss > self._spike * statistics.median(self._losses):
            raise Diverged(
                f"step {step}: the loss is {loss:.4g}, over train.spike={self._spike:g} times what it was. {mend}"
            )
        if math.isfinite(loss):
            self._losses = [*self._losses, loss][-RECENT:]
        return numbers


def _where(state: TrainState) -> str:
    """The first weight that is not finite, in the order of the params."""
    for path, array in jax.tree_util.tree_leaves_with_path(state.params):
        if jnp.issubdtype(array.dtype, jnp.floating) and not bool(jnp.all(jnp.isfinite(array))):
            return f" (so is {path_name(path)}, the first of the weights)"
    return " (all weights are still finite)"
