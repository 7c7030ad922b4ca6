"""What an optimizer is told: one section of flags, and which of them each optimizer and schedule takes."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxmodel.config import field, register, to_text, validate
from jaxmodel.errors import InputError


class Span(NamedTuple):
    """A number of steps that depends on the run: `of(warmup, steps after it)`, and the same in words."""

    words: str
    of: Callable[[int, int], int]


_ADAM = {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8}
_KEEPS = {"state_dtype": "float32"}

# The options each optimizer takes beside those that all take, with its own defaults. Rates are those that suit the
# optimizer's steps: Lion's are all of one size, Adafactor's are relative to the weight.
OPTIMIZER_TAKES: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.1, "weight_decay": 0.0},
    "momentum": {"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 0.0, **_KEEPS},
    "nesterov": {"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 0.0, **_KEEPS},
    "rmsprop": {"learning_rate": 1e-3, "beta2": 0.99, "epsilon": 1e-8, "weight_decay": 0.0, **_KEEPS},
    "adagrad": {"learning_rate": 0.01, "epsilon": 1e-10, "weight_decay": 0.0, **_KEEPS},
    "adam": {"learning_rate": 1e-3, **_ADAM, **_KEEPS},
    "adamw": {"learning_rate": 1e-3, **_ADAM, "weight_decay": 0.1, **_KEEPS},
    "adafactor": {"learning_rate": 0.01, "epsilon": 1e-30, "weight_decay": 0.0},
    "lion": {"learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.99, "weight_decay": 1.0, **_KEEPS},
    "muon": {"learning_rate": 3e-3, "momentum": 0.95, **_ADAM, "weight_decay": 0.1, **_KEEPS},
}

_ALL = Span("all that follow the warmup", lambda warmup, left: left)
_QUARTER = Span("a quarter of those after the warmup", lambda warmup, left: math.ceil(left / 4))

# The options each schedule takes beside the warmup, with its own defaults.
SCHEDULE_TAKES: dict[str, dict[str, Any]] = {
    "constant": {},
    "linear": {"final_learning_rate": 0.1, "decay_steps": _ALL},
    "cosine": {"final_learning_rate": 0.1, "decay_steps": _ALL},
    "cosine_restarts": {"final_learning_rate": 0.1, "cycle_steps": _QUARTER, "cycle_growth": 1.0},
    "wsd": {
        "final_learning_rate": 0.0,
        "decay_steps": Span("the last fifth", lambda warmup, left: math.ceil(left / 5)),
    },
    "inverse_sqrt": {"decay_steps": Span("as many as the warmup", lambda warmup, left: max(warmup, 1))},
    "exponential": {"decay_rate": 0.1, "decay_steps": _ALL},
    "step": {
        "decay_rate": 0.1,
        "decay_steps": Span("a third of those after the warmup", lambda warmup, left: math.ceil(left / 3)),
    },
    "one_cycle": {
        "final_learning_rate": 4e-6,
        "rise_steps": Span("three tenths of those after the warmup", lambda warmup, left: left * 3 // 10),
    },
    "cyclic": {"final_learning_rate": 0.1, "decay_rate": 1.0, "cycle_steps": _QUARTER},
    "plateau": {"final_learning_rate": 0.0, "decay_rate": 0.1, "patience": 10, "cooldown": 0, "window": 10},
}


def _none(name: str) -> str:
    """What an option is when it is not given, for its help: "none: 0.9 (adam, adamw), 0.99 (lion)"."""
    found: dict[str, list[str]] = {}
    for owner, takes in (OPTIMIZER_TAKES | SCHEDULE_TAKES).items():
        if name in takes:
            default = takes[name]
            found.setdefault(default.words if isinstance(default, Span) else to_text(default), []).append(owner)
    return "none: " + ", ".join(f"{value} ({', '.join(owners)})" for value, owners in found.items())


@register
@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How gradients become steps. None means the default of the optimizer or schedule that is chosen."""

    name: str = field("adamw", "the optimizer", choices=OPTIMIZER_TAKES)
    learning_rate: float | None = field(
        None, f"learning rate at its peak, after the warmup; {_none('learning_rate')}", low=0.0
    )
    beta1: float | None = field(
        None, f"decay of the average of gradients, below 1; {_none('beta1')}", low=0.0, high=1.0
    )
    beta2: float | None = field(
        None,
        f"decay of the average of squared gradients (lion: of gradients), below 1; {_none('beta2')}",
        low=0.0,
        high=1.0,
    )
    momentum: float | None = field(
        None, f"how much of the last direction is kept, below 1; {_none('momentum')}", low=0.0, high=1.0
    )
    epsilon: float | None = field(
        None, f"added to the root of the squared average (adafactor: to the square); {_none('epsilon')}", low=0.0
    )
    weight_decay: float | None = field(
        None, f"decay of matrices, per step and unit of learning rate; {_none('weight_decay')}", low=0.0
    )
    state_dtype: str | None = field(
        None,
        f"what the averages of matrices are kept in; {_none('state_dtype')}",
        choices=("float32", "bfloat16", "int8"),
    )
    clip_norm: float | None = field(1.0, "gradients are scaled down to this global norm; none: never", low=0.0)
    clip_value: float | None = field(None, "gradients are cut at plus and minus this; none: never", low=0.0)
    clip_adaptive: float | None = field(
        None, "the gradient of each unit is scaled down to this fraction of its weights' norm; none: never", low=0.0
    )
    scale: tuple[str, ...] = field(
        (), "learning rates by path, the first that matches: stack/*:0.1,logits:2 are factors, 0 freezes"
    )
    schedule: str = field("cosine", "how the learning rate changes", choices=SCHEDULE_TAKES)
    warmup: int = field(0, "steps over which the learning rate first rises to its peak", low=0)
    final_learning_rate: float | None = field(
        None, f"where it falls to, as a fraction of the peak; {_none('final_learning_rate')}", low=0.0, high=1.0
    )
    decay_steps: int | None = field(
        None,
        "steps over which it falls (wsd: the last ones), after each of which it falls by decay_rate (step), or in "
        f"which it falls to 0.71 (inverse_sqrt); {_none('decay_steps')}",
        low=1,
    )
    decay_rate: float | None = field(None, f"the factor by which it falls; {_none('decay_rate')}", low=0.0, high=1.0)
    rise_steps: int | None = field(None, f"steps up to the peak; {_none('rise_steps')}", low=1)
    cycle_steps: int | None = field(None, f"steps of the first cycle; {_none('cycle_steps')}", low=1)
    cycle_growth: float | None = field(
        None, f"each cycle is so many times as long as the last; {_none('cycle_growth')}", low=1.0
    )
    find_lr: bool = field(
        False, "train for 100 steps on a copy with a rising learning rate, draw the losses, suggest one, and stop"
    )
    window: int | None = field(None, f"steps whose loss is averaged; {_none('window')}", low=1)
    patience: int | None = field(None, f"windows without a better loss before it falls; {_none('patience')}", low=1)
    cooldown: int | None = field(None, f"windows after a fall that do not count; {_none('cooldown')}", low=0)

    def check(self, steps: int | None = None) -> None:
        """Raise InputError if options are out of bounds, or do not fit each other or a run of `steps`."""
        validate(self, "optimizer.")
        for kind, chosen, table in (
            ("optimizer", self.name, OPTIMIZER_TAKES),
            ("schedule", self.schedule, SCHEDULE_TAKES),
        ):
            self._check_takes(kind, table[chosen], chosen, table)
        for name in ("beta1", "beta2", "momentum"):
            if getattr(self, name) == 1:
                raise InputError(f"optimizer.{name}=1.0: must be below 1, or the average never moves")
        for name in ("clip_norm", "clip_value", "clip_adaptive"):
            if getattr(self, name) == 0:
                raise InputError(f"optimizer.{name}=0.0: must be above 0; give none to never clip")
        if self.decay_rate == 0 or (self.decay_rate == 1 and self.schedule == "plateau"):
            raise InputError(
                f"optimizer.decay_rate={self.decay_rate}: the learning rate falls by this factor; give one "
                "above 0 and below 1"
            )
        self.scales()
        if steps is not None:
            self._check_lengths(steps)

    def _check_takes(self, kind: str, takes: Mapping[str, Any], chosen: str, table: Mapping[str, Any]) -> None:
        for name in dict.fromkeys(name for row in table.values() for name in row):
            value = getattr(self, name)
            if value is not None and name not in takes:
                others = ", ".join(owner for owner, row in table.items() if name in row)
                raise InputError(
                    f"optimizer.{name}={to_text(value)}: the {kind} {chosen} does not take it; it takes "
                    f"{', '.join(takes) or 'none of these options'}. {name} is for {others}"
                )

    def _check_lengths(self, steps: int) -> None:
        left = steps - self.warmup
        # A schedule that falls needs at least one step to fall in.
        if self.warmup and left < 1:
            raise InputError(
                f"optimizer.warmup={self.warmup} takes up all of train.steps={steps}: "
                "lower optimizer.warmup or raise train.steps"
            )
        after = f"the {left} that optimizer.warmup={self.warmup} leaves" if self.warmup else "the run"
        for name in ("decay_steps", "cycle_steps", "rise_steps"):
            length = getattr(self, name) or 0
            if length > left or (name == "rise_steps" and length == left):
                much = "longer than" if length > left else "all of"
                raise InputError(
                    f"optimizer.{name}={length} with train.steps={steps} is {much} {after}: "
                    f"lower optimizer.{name} or raise train.steps"
                )
        if self.schedule == "plateau" and (self.window or self.patience):
            own = SCHEDULE_TAKES["plateau"]
            window, patience = self.window or own["window"], self.patience or own["patience"]
            if window * (patience + 1) > left:  # the first window is what others have to be better than
                raise InputError(
                    f"optimizer.patience={patience} (and one) * optimizer.window={window} with train.steps={steps} is "
                    f"longer than {after}: lower one of them or raise train.steps"
                )

    def resolved(self, steps: int) -> "Optimizer":
        """The same for a run of `steps`, with the default of the optimizer or schedule for every None that it takes."""
        own = OPTIMIZER_TAKES[self.name] | SCHEDULE_TAKES[self.schedule]
        missing = {name: default for name, default in own.items() if getattr(self, name) is None}
        found = {
            name: default.of(self.warmup, steps - self.warmup) if isinstance(default, Span) else default
            for name, default in missing.items()
        }
        return dataclasses.replace(self, **found)

    def scales(self) -> tuple[tuple[str, float], ...]:
        """`scale` as (glob over paths, factor) pairs; InputError for one that is no such thing."""
        found = []
        for text in self.scale:
            path, _, number = text.rpartition(":")
            try:
                factor = float(number)
            except ValueError:
                factor = math.nan
            if not path or not 0 <= factor < math.inf:
                raise InputError(
                    f"optimizer.scale={text}: must be a path or a glob, a colon and a number of at least 0, as in "
                    "stack/*:0.1"
                )
            found.append((path, factor))
        return tuple(found)
