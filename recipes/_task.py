"""From the section `task` and the data to a loss: what training, evaluation and prediction agree on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxmodel import options
from jaxmodel.config import closest
from jaxmodel.errors import InputError
from jaxmodel.tasks import TASKS, LossFn, Task

# What data as they come serve, beside what they are for by themselves.
ALSO = {"language_model": ("masked_language_model",)}


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A task by name: its row of the table, and its options."""

    name: str
    options: options.Task

    @property
    def row(self) -> Task:
        """What the table says of it."""
        return TASKS[self.name]

    def facts(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """What the model has to know: that of the data, with as many outputs and tokens as the task needs."""
        found = dict(facts)
        if self.name == "regression" and self.options.loss == "quantile":
            found["num_outputs"] = len(self.options.quantiles)
        if self.name == "masked_language_model" and "mask_id" not in facts:
            found["vocab_size"] += 1  # what stands for a hidden token comes after all others
        return found

    def check_model(self, config: Any) -> None:
        """InputError for a model that sees the answer, or half of the question: both flags are named."""
        causal = getattr(getattr(config, "attention", None), "causal", None)
        if causal and self.name == "masked_language_model":
            raise InputError(
                "--task.name=masked_language_model looks both ways, and --model.attention.causal=true only back: set "
                "--model.attention.causal=false, or --task.name=language_model"
            )
        if causal is False and self.name == "language_model":
            raise InputError(
                "--task.name=language_model with --model.attention.causal=false would see what it predicts: set "
                "--model.attention.causal=true, or --task.name=masked_language_model"
            )


def task_of(section: options.Task, of_data: str) -> Chosen:
    """The task that was asked for, or that of the data; InputError where these are not for it."""
    name = section.name or of_data
    if name not in (of_data, *ALSO.get(of_data, ())):
        fits = " or ".join((of_data, *ALSO.get(of_data, ())))
        raise InputError(
            f"--task.name={name} is not what these data are for ({fits}): leave --task.name out, or give other data"
        )
    chosen = dataclasses.replace(section, name=name)
    chosen.check()
    return Chosen(name, chosen)


def task_in(loaded: Any) -> Chosen | None:
    """The task that a model was trained for, as its checkpoint says or, in a Hugging Face directory, its head shows.

    None where it is none of ours.
    """
    info = loaded.info
    name = info.get("task")
    if name is None and "huggingface" in info and loaded.tokenizer is not None:
        config = loaded.model.config
        per_token = getattr(config, "head", None) and config.head.outputs is None and config.pool is None
        name = per_token and ("language_model" if config.causal else "masked_language_model")
        if name == "masked_language_model" and loaded.tokenizer.mask_id is None:
            return None
    if name not in TASKS:
        return None
    known = {each.name for each in dataclasses.fields(options.Task)}
    said = {key: value for key, value in info.get("task_options", {}).items() if key in known}
    said = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
    return Chosen(name, options.Task(**{**said, "name": name}))


def loss_of(task: Chosen, model: Any, facts: Mapping[str, Any], *, shards: int) -> LossFn:
    """The loss of a task for a model, given what its data tell."""
    known = {"shards": shards}
    if "vocab_size" in facts:
        size = facts["vocab_size"]
        known |= {"vocab_size": size, "mask_id": facts.get("mask_id", size)}
    return task.row.loss(model, task.options, **{name: known[name] for name in task.row.needs})


def check_monitor(task: Chosen, monitor: str, extra: tuple[str, ...] = ()) -> None:
    """InputError for a monitor that no evaluation of the task gives; names the nearest."""
    metrics = (*task.row.metrics, *extra)
    if monitor not in metrics:
        near = closest(monitor, metrics)
        hint = f"did you mean {near}?" if near else f"choose from {', '.join(metrics)}"
        raise InputError(f"--train.monitor={monitor} is no metric of {task.name}: {hint}")
