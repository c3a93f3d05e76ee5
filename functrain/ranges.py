"""The ranges of hyper-parameters.

Each check takes the rule's name and the arguments by name, looks at Python numbers only (a tensor may hold anything and
reading one is slow), and raises a ValueError such as `scale_by_adam: b1 must be in [0, 1), got 1.0`.
"""

from __future__ import annotations


def unit_interval(rule: str, **values: object) -> None:
    """Each value is in [0, 1): the memory of an average."""
    for name, value in values.items():
        if isinstance(value, int | float) and not 0 <= value < 1:
            raise ValueError(f"{rule}: {name} must be in [0, 1), got {value}")


def non_negative(rule: str, **values: object) -> None:
    """Each value is at least zero and finite."""
    for name, value in values.items():
        if isinstance(value, int | float) and not 0 <= value < float("inf"):
            raise ValueError(f"{rule}: {name} must be >= 0 and finite, got {value}")


def positive(rule: str, **values: object) -> None:
    """Each value is above zero and finite."""
    for name, value in values.items():
        if isinstance(value, int | float) and not 0 < value < float("inf"):
            raise ValueError(f"{rule}: {name} must be > 0 and finite, got {value}")


def positive_int(rule: str, **values: object) -> None:
    """Each value is a whole number of at least one."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{rule}: {name} must be an integer >= 1, got {value!r}")


def number_or_function(rule: str, **values: object) -> None:
    """Each value is a number, a tensor, or a function of the count: TypeError else."""
    for name, value in values.items():
        if not (callable(value) or hasattr(value, "__float__")):
            raise TypeError(
                f"{rule}: {name} must be a number, a 0-dim tensor or a schedule, got {type(value).__name__}"
            )
