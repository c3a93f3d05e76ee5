"""Schedule-free rules of Optax: an average in place of a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax
import optax.contrib

from functrain.combinators.average import schedule_free
from functrain.optimizers.adaptive import adamw
from functrain.optimizers.averaged import schedule_free_adamw, schedule_free_sgd
from functrain.optimizers.momentum import sgd
from tests.entries.layerwise import RATE, in_float64, jax_rate
from tests.entry import Entry


def jax_warmup(peak: float, steps: int) -> Any:
    return in_float64(optax.warmup_constant_schedule(0.0, peak, steps))


def jax_warmed_up_adamw() -> Any:
    """What optax.contrib.schedule_free_adamw is, with a schedule in float64."""
    inner = optax.chain(
        optax.scale_by_rms(0.95, 1e-6, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(jax_warmup(0.05, 7)),
    )
    return optax.contrib.schedule_free(inner, jax_warmup(0.05, 7), 0.8, 1.0)


def jax_warmed_up_sgd() -> Any:
    """What optax.contrib.schedule_free_sgd is, with a schedule in float64."""
    inner = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(jax_warmup(0.05, 7)))
    return optax.contrib.schedule_free(inner, jax_warmup(0.05, 7), 0.8, 1.0)


COMBINATORS = (
    Entry(
        "schedule_free",
        lambda: schedule_free(sgd(0.1), 0.1),
        lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
        needs_params=True,
    ),
    Entry(
        "schedule_free",
        lambda: schedule_free(adamw(RATE, 0.0), RATE, 0.7, 3.0),
        lambda: optax.contrib.schedule_free(optax.adamw(jax_rate(), 0.0), jax_rate(), 0.7, 3.0),
        use="a rate that falls",
        needs_params=True,
    ),
)

OPTIMIZERS = (
    Entry("schedule_free_adamw", schedule_free_adamw, optax.contrib.schedule_free_adamw, needs_params=True),
    Entry(
        "schedule_free_adamw",
        lambda: schedule_free_adamw(0.05, 7, 0.8, 0.95, 1e-6, 0.1, 1.0),
        jax_warmed_up_adamw,
        use="all arguments",
        needs_params=True,
    ),
    Entry("schedule_free_sgd", schedule_free_sgd, optax.contrib.schedule_free_sgd, needs_params=True),
    Entry(
        "schedule_free_sgd",
        lambda: schedule_free_sgd(0.05, 7, 0.8, 0.1, 1.0),
        jax_warmed_up_sgd,
        use="all arguments",
        needs_params=True,
    ),
)

ENTRIES: tuple[Entry, ...] = (*COMBINATORS, *OPTIMIZERS)
FACTORIES: tuple[Callable[..., Any], ...] = (schedule_free, schedule_free_adamw, schedule_free_sgd)
