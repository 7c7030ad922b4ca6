"""Train a model: python -m recipes.train --flagfile=recipes/flags/quickstart.flags --workdir=DIR"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path

from jaxmodel import config, options
from jaxmodel.config import field
from jaxmodel.errors import InputError
from recipes._flags import Command, Parsed, run

TRIAL_STEPS = 2  # of a run that only shows that all of it works


@dataclasses.dataclass(frozen=True)
class Flags:
    """What a training run is told, beside its model."""

    workdir: str | None = field(
        None, "where metrics, checkpoints and the loss curve go; a run found there goes on; none: runs/MODEL"
    )
    init_from: str | None = field(
        None,
        "start from the weights of this checkpoint, workdir or Hugging Face directory, as float32; without --model, "
        "--model.* change its model",
    )
    data: options.Data = options.Data()
    task: options.Task = options.Task()
    optimizer: options.Optimizer = options.Optimizer()
    train: options.Train = options.Train()
    mesh: options.Mesh = options.Mesh()
    checkpoint: options.Checkpoint = options.Checkpoint()

    def check(self) -> None:
        """Raise InputError where two sections do not fit each other."""
        if self.checkpoint.keep_best > 1 and self.train.monitor is None:
            raise InputError(
                f"--checkpoint.keep_best={self.checkpoint.keep_best} needs a metric: set --train.monitor, as in loss, "
                "or leave it out"
            )
        if self.train.epochs is None:
            self.optimizer.check(self.train.length(1)[0])


def _config_of(path: str):
    from jaxmodel.loading import config_of

    return config_of(path)


COMMAND = Command(
    "train",
    "Train a model on text, a table or images, or go on with a run that was stopped.",
    Flags,
    model=True,
    source=("init_from", _config_of),
)


def main(parsed: Parsed[Flags]) -> int:
    """Train in the run's folder, or for a trial in one that is not kept."""
    if parsed.model is None:
        raise InputError("--model is missing: name a preset, as in --model=tiny, or give --init_from=DIR")
    if parsed.flags.train.fast_dev_run:
        with tempfile.TemporaryDirectory() as folder:
            return train(parsed, Path(folder) / "run")
    workdir = Path(parsed.flags.workdir or f"runs/{parsed.model_name or 'from-checkpoint'}")
    _check_workdir(workdir)
    return train(parsed, workdir)


def train(parsed: Parsed[Flags], workdir: Path) -> int:
    """Train, evaluate, save; the library calls in order."""
    flags, trial = parsed.flags, parsed.flags.train.fast_dev_run

    import jax

    from recipes._runtime import compile_cache, log, stop_on_signal

    compile_cache()
    should_stop = stop_on_signal()

    from jaxmodel import checkpoint, optim, report
    from jaxmodel.data.augment import augmented
    from jaxmodel.data.dataset import kind_of, open_dataset
    from jaxmodel.data.loader import Loader, sequential
    from jaxmodel.evaluate import evaluate
    from jaxmodel.interop import stablehlo
    from jaxmodel.loading import load
    from jaxmodel.loop import Rollback, fit
    from jaxmodel.model import count, sharded
    from jaxmodel.sharding import Partitioning, make_mesh
    from jaxmodel.train import make_state, make_step, put
    from jaxmodel.writers import make_writer
    from recipes._batch_size import resolved
    from recipes._task import loss_of, task_of

    mesh = make_mesh(dataclasses.asdict(flags.mesh))
    partitioning = Partitioning(mesh) if mesh.size > 1 else None
    asked_size, pieces = flags.train.batch_size, flags.train.accumulate
    if partitioning is not None and asked_size != "auto":
        partitioning.check_batch(asked_size // pieces, "train.batch_size / train.accumulate")
    asked = _model_config(parsed)
    source = None
    if flags.init_from is not None:
        if stablehlo.is_export(Path(flags.init_from)):
            raise InputError(f"--init_from={flags.init_from} is an export, made to be run: start from its checkpoint")
        where = mesh if partitioning else None
        # Updates are smaller than what narrower types can tell apart.
        source = load(flags.init_from, mesh=where, model=asked.build(), dtype="float32", log=log)
    if kind_of(flags.data) == "text":  # said before a large text is read, not after
        asked.fitted({"inputs": ("tokens",), "length": flags.data.length})
        if source is not None and source.fitted is None:
            raise InputError(
                f"--init_from={flags.init_from} holds no tokenizer, and its model knows tokens by their ids: put the "
                "tokenizer.json that it was trained with beside it"
            )

    data = open_dataset(flags.data, stored=source.fitted if source else None, task=flags.task.name, log=log)
    rows = data.train
    assert rows is not None, "a fraction of at most a half is held out"
    _check_data(workdir, data.fingerprint)
    task = task_of(flags.task, data.task)
    task.check_model(asked)
    watch = _watch(flags, task)
    model_config = asked.fitted(task.facts(data.facts))
    checkpoint.check_config(workdir, model_config)
    model = model_config.build()
    if partitioning is not None:
        model = sharded(model, mesh)
    loss = loss_of(task, model, data.facts, shards=mesh.size)
    trained = augmented(loss, flags.data.augment)
    batch_size = resolved(flags.train, flags.optimizer, workdir, model, trained, rows, source, partitioning)
    flags = dataclasses.replace(flags, train=dataclasses.replace(flags.train, batch_size=batch_size))
    steps, examples = flags.train.length(len(rows))
    last = min(steps, TRIAL_STEPS) if trial else steps
    optimizer = optim.make_optimizer(flags.optimizer, steps, model.layout)
    schedule = optim.make_schedule(flags.optimizer, steps)

    def to_devices(batch):
        return put(batch, partitioning)

    def measure(name, state):
        batches = sequential(data.heldout[name], batch_size)
        batches = itertools.islice(batches, 1 if trial else flags.data.eval_batches)
        params = state.shipped(model.layout)
        found = evaluate(loss, params, batches, state.model_state, put=to_devices, collect=task.row.collect)
        of_data = name == "eval" and task.name == data.task  # bits per byte are those of a language model
        return found | (data.extra_metrics(found) if of_data else {})

    if flags.optimizer.find_lr:
        order = (rows, batch_size, flags.train.seed)
        return _find_lr(flags, workdir, source, model, trained, order, partitioning, to_devices)

    info = {
        "task": task.name,
        "task_options": dataclasses.asdict(task.options),
        "data": dataclasses.asdict(flags.data),
        "fingerprint": data.fingerprint,
        "train": dataclasses.asdict(flags.train),
        "optimizer": dataclasses.asdict(flags.optimizer),
    }
    if source is not None and "huggingface" in source.info:  # with which an export is of the same family again
        info["huggingface"] = source.info["huggingface"]
    writers = [make_writer(name, workdir, info) for name in flags.train.writers]
    workdir.mkdir(parents=True, exist_ok=True)  # only now: what was refused leaves nothing behind
    saver = checkpoint.Checkpointer(workdir, model, keep=flags.checkpoint.keep, fitted=data.fitted, info=info, log=log)
    state = make_state(
        model,
        optimizer,
        jax.random.key(flags.train.seed) if source is None else None,
        params=source.params if source else None,
        model_state=source.model_state if source else None,
        average=flags.train.average is not None,
        count_skipped=flags.train.skip_nonfinite,
        partitioning=partitioning,
    )
    source = None  # its weights were copied: one copy is enough
    state = saver.restore(state)
    start = int(state.step)
    before = checkpoint.info_of(workdir, start)  # of what was restored, which need not be the newest
    if watch is not None and (ended := checkpoint.chosen(workdir)):
        limit = "--train.patience" if ended.get("stopped_early") else "--train.steps"
        log(
            f"{workdir} ended with its best step, {ended['step']}: to go on from step {start} raise {limit} and delete "
            f"{workdir / 'checkpoints' / 'chosen.json'}, or name another --workdir"
        )
        return 0
    if start >= steps:
        log(f"{workdir} has made its {start} steps already: raise --train.steps, or name another --workdir")
    elif start:
        log(f"going on from step {start} in {workdir}")
    if start < steps:
        (workdir / "train.flags").write_text("\n".join(parsed.lines()) + "\n")
    log(
        f"{count(model):,} parameters on {mesh.size} {jax.devices()[0].device_kind} device(s); "
        f"{data.num_train:,} training {data.noun}, {batch_size * data.per_example:,} a step"
    )
    if flags.optimizer.state_dtype not in (None, "float32"):
        log(f"optimizer state: {optim.state_bytes(state.opt_state) / 1e6:.2f} MB in {flags.optimizer.state_dtype}")

    step = make_step(
        model,
        trained,
        optimizer,
        flags.train.accumulate,
        schedule=schedule,
        average=flags.train.average or 0.0,
        partitioning=partitioning,
    )
    peak = report.peak_flops(jax.devices()[0].device_kind)
    flops = getattr(model_config, "flops_per_token", None)
    progress = report.Progress(
        last, noun=data.noun, flops_per_token=flops and flops(data.per_example), peak=peak and peak * mesh.size
    )
    metrics = report.MetricsFile(workdir / "metrics.jsonl", start)

    def batches(first, left_out):
        end = None if examples is None else examples + left_out * batch_size
        order = (rows, batch_size, flags.train.seed)
        if flags.train.overfit_one_batch:
            _, batch = next(stack.enter_context(Loader(*order)))
            return zip(itertools.count(first), itertools.repeat(batch), strict=False)
        return stack.enter_context(Loader(*order, first, stop_after=end))

    with contextlib.ExitStack() as stack, contextlib.closing(progress), contextlib.closing(metrics), saver:
        more = [stack.enter_context(contextlib.closing(each)) for each in writers]
        fit(
            state,
            step,
            batches,
            key=jax.random.key(flags.train.seed + 1),
            steps=last,
            hooks=(metrics, progress, *more),
            log_every=1 if trial else flags.train.log_every,
            evaluate={name: functools.partial(measure, name) for name in data.heldout},
            eval_every=flags.train.eval_every,
            checkpointer=saver,
            save_every=flags.checkpoint.every,
            should_stop=should_stop,
            watch=watch,
            rollback=Rollback(flags.train.rollback, flags.train.spike) if flags.train.rollback else None,
            before=before,
            profile=(window[0], window[1], workdir / "profile") if (window := flags.train.profile) else None,
            put=to_devices,
        )
    if trial:
        log(f"fast_dev_run: {last} steps, an evaluation and a checkpoint went through; nothing of it is kept")
        return 0
    if watch is not None and watch.best:
        value, best = watch.best[0]
        log(f"best {watch.monitor} {value:.4g} at step {best}: that is what the checkpoint holds")
    if flags.train.profile:
        log(f"trace: {workdir / 'profile'} (xprof, or ui.perfetto.dev)")
    log(report.plot_losses(workdir / "metrics.jsonl", workdir / "loss.png"))
    log(f"checkpoint: {workdir}\nnext: python -m recipes.eval --checkpoint={workdir}")
    return 0


def _watch(flags, task):
    """What the run watches; InputError for a metric that no evaluation of the task gives."""
    from jaxmodel.loop import Watch
    from jaxmodel.metrics import RISING
    from recipes._task import check_monitor

    train = flags.train
    if train.monitor is None:
        return None
    check_monitor(task, train.monitor, ("bits_per_byte",) if task.name == "language_model" else ())
    mode = train.mode or ("max" if train.monitor in RISING else "min")
    return Watch(train.monitor, mode, train.patience, train.min_delta, flags.checkpoint.keep_best)


def _find_lr(flags, workdir, source, model, loss, order, partitioning, to_devices) -> int:
    """A learning rate range test in place of training."""
    import jax

    from jaxmodel import report
    from jaxmodel.data.loader import Loader
    from jaxmodel.lr_finder import find_learning_rate
    from recipes._runtime import log

    with Loader(*order) as loader:
        found = find_learning_rate(
            model,
            loss,
            flags.optimizer,
            (batch for _, batch in loader),
            jax.random.key(flags.train.seed),
            accumulate=flags.train.accumulate,
            params=source.params if source else None,
            model_state=source.model_state if source else None,
            partitioning=partitioning,
            put=to_devices,
        )
    workdir.mkdir(parents=True, exist_ok=True)
    numbers = {"rates": found.rates.tolist(), "losses": found.losses.tolist(), "suggestion": found.suggestion}
    (workdir / "learning_rates.json").write_text(json.dumps(numbers) + "\n")
    log(report.plot_learning_rates(found.rates, found.losses, found.suggestion, workdir / "learning_rates.png"))
    log(
        f"the loss fell fastest at {found.suggestion:.2g}: a peak from a third of that to that much is a good start\n"
        f"next: the same command without --optimizer.find_lr, with --optimizer.learning_rate={found.suggestion:.2g}"
    )
    return 0


def _check_workdir(workdir: Path) -> None:
    """InputError unless a folder is there, or can be made there."""
    there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"--workdir={workdir}: {'' if there == workdir else f'{there} '}is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--workdir={workdir}: cannot be made there; name another folder")


def _check_data(workdir: Path, fingerprint: str) -> None:
    """InputError when the run found in `workdir` has seen other tokens: going on would mix two data sets."""
    from jaxmodel import checkpoint

    steps = checkpoint.steps(workdir / "checkpoints")
    if not steps:
        return
    before = checkpoint.read_record(workdir / "checkpoints" / str(steps[-1])).info
    if before.get("fingerprint", fingerprint) != fingerprint:
        path = before.get("data", {}).get("path") or "the built-in text"
        raise InputError(
            f"--workdir={workdir} holds a run on other data ({path}, fingerprint {before['fingerprint']}; now "
            f"{fingerprint}): go on with that data, or name another --workdir (with --init_from={workdir})"
        )


def _model_config(parsed: Parsed[Flags]):
    """The model that was asked for; InputError when it was named and the checkpoint holds another."""
    here, wanted, init_from = parsed.model, parsed.flags.train.dtype, parsed.flags.init_from
    if init_from is not None and parsed.model_name is not None:
        there = dataclasses.replace(_config_of(init_from), execution=here.execution)
        found = config.difference(there, here, (f"in {init_from}", "asked for"), "model")
        if found:
            raise InputError(
                f"--init_from={init_from} holds another model ({'; '.join(found)}): ask for that "
                "one, or leave --model out"
            )
    if wanted is None:
        return here
    said = parsed.said.get("model.execution.dtype", wanted)
    if said != wanted:
        raise InputError(f"--train.dtype={wanted} and --model.execution.dtype={said} contradict: leave one out")
    return config.replace(here, {"execution.dtype": wanted})


if __name__ == "__main__":
    sys.exit(run(main, COMMAND))
