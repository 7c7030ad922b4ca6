"""Optimizers: one table of directions, one driver around them all, one table of schedules.

`make_optimizer(options, steps, layout)` gives an optax transformation; any of optax serves in its place.
"""

from jaxmodel.optim.clipping import global_norm
from jaxmodel.optim.driver import make_optimizer, state_bytes
from jaxmodel.optim.placement import beside
from jaxmodel.optim.schedules import SCHEDULES, Schedule, effective, make_schedule
from jaxmodel.optim.table import OPTIMIZERS, Rule
from jaxmodel.optim.weight import Weight

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Rule",
    "Schedule",
    "Weight",
    "beside",
    "effective",
    "global_norm",
    "make_optimizer",
    "make_schedule",
    "state_bytes",
]
