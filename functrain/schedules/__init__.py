"""Schedules: a hyper-parameter as a function of the count of updates.

    schedule(t) -> value

`t` is a 0-dim integer tensor, or a Python int; the value is a 0-dim tensor in the widest float of the device of `t`.
A schedule has no state and no branches, so that it compiles once, maps under `torch.func.vmap`, and a run that resumes
needs nothing but its counter. In a chain the first update sees t = 0.

Values of arguments may be Python numbers or 0-dim tensors. `I` is the initial value, `E` the end value, `T` a number of
updates.
"""

from functrain.schedules.joined import (
    WarmupCosineDecay,
    cosine_onecycle_schedule,
    join_schedules,
    linear_onecycle_schedule,
    piecewise_constant_schedule,
    piecewise_interpolate_schedule,
    sgdr_schedule,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
)
from functrain.schedules.pieces import (
    constant_schedule,
    cosine_decay_schedule,
    exponential_decay,
    linear_schedule,
    polynomial_schedule,
)
from functrain.schedules.values import Scalar, ScalarOrSchedule, Schedule, as_schedule, value_at

__all__ = [
    "Scalar", "ScalarOrSchedule", "Schedule", "WarmupCosineDecay", "as_schedule", "constant_schedule",
    "cosine_decay_schedule", "cosine_onecycle_schedule", "exponential_decay", "join_schedules",
    "linear_onecycle_schedule", "linear_schedule", "piecewise_constant_schedule", "piecewise_interpolate_schedule",
    "polynomial_schedule", "sgdr_schedule", "value_at", "warmup_constant_schedule", "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
]  # fmt: skip
