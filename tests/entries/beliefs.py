"""Rules of Optax that measure the size of gradients in other ways than Adam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from functrain.optimizers.beliefs import (
    adabelief,
    adadelta,
    adagrad,
    adamax,
    adamaxw,
    adan,
    amsgrad,
    radam,
    yogi,
)
from functrain.transforms.beliefs import scale_by_amsgrad, scale_by_belief, scale_by_radam, scale_by_yogi
from functrain.transforms.histories import scale_by_adadelta, scale_by_adamax, scale_by_adan, scale_by_rss
from tests.entries.layerwise import DECAY, RATE, WIDE, jax_decay, jax_rate, jax_wide
from tests.entry import Entry

TRANSFORMS = (
    Entry("scale_by_belief", scale_by_belief, optax.scale_by_belief),
    Entry(
        "scale_by_belief",
        lambda: scale_by_belief(0.8, 0.9, 1e-6, 1e-4, nesterov=True),
        lambda: optax.scale_by_belief(0.8, 0.9, 1e-6, 1e-4, nesterov=True),
        use="nesterov",
    ),
    Entry("scale_by_yogi", scale_by_yogi, optax.scale_by_yogi, complex=False),  # its mean begins at a real number
    Entry(
        "scale_by_yogi",
        lambda: scale_by_yogi(0.8, 0.9, 1e-6, 1e-4, 0.0),
        lambda: optax.scale_by_yogi(0.8, 0.9, 1e-6, 1e-4, 0.0),
        use="from zero",
    ),
    Entry("scale_by_amsgrad", scale_by_amsgrad, optax.scale_by_amsgrad),
    Entry(
        "scale_by_amsgrad",
        lambda: scale_by_amsgrad(0.8, 0.9, 1e-6, 1e-4, bias_correction_mu=False, bias_correction_nu=False),
        lambda: optax.scale_by_amsgrad(0.8, 0.9, 1e-6, 1e-4, bias_correction_mu=False, bias_correction_nu=False),
        use="biased",
    ),
    Entry("scale_by_radam", scale_by_radam, optax.scale_by_radam),
    Entry(
        "scale_by_radam",
        lambda: scale_by_radam(0.8, 0.95, 1e-6, 1e-4, 4.5, nesterov=True),
        lambda: optax.scale_by_radam(0.8, 0.95, 1e-6, 1e-4, 4.5, nesterov=True),
        use="nesterov",
    ),
    Entry(
        "scale_by_radam",
        lambda: scale_by_radam(b2=0.6),
        lambda: optax.scale_by_radam(b2=0.6),
        use="never enough terms",
    ),
    Entry("scale_by_adamax", scale_by_adamax, optax.scale_by_adamax),
    Entry(
        "scale_by_adamax",
        lambda: scale_by_adamax(0.8, 0.7, 1e-2),
        lambda: optax.scale_by_adamax(0.8, 0.7, 1e-2),
        use="short memory",
    ),
    Entry("scale_by_rss", scale_by_rss, optax.scale_by_rss),
    Entry("scale_by_rss", lambda: scale_by_rss(0.0, 0.1), lambda: optax.scale_by_rss(0.0, 0.1), use="from zero"),
    Entry("scale_by_adadelta", scale_by_adadelta, optax.scale_by_adadelta),
    Entry(
        "scale_by_adadelta",
        lambda: scale_by_adadelta(0.5, 1e-2),
        lambda: optax.scale_by_adadelta(0.5, 1e-2),
        use="short memory",
    ),
    Entry("scale_by_adan", scale_by_adan, optax.scale_by_adan),
    Entry(
        "scale_by_adan",
        lambda: scale_by_adan(0.8, 0.5, 0.9, 1e-6, 1e-4),
        lambda: optax.scale_by_adan(0.8, 0.5, 0.9, 1e-6, 1e-4),
        use="all arguments",
    ),
)

OPTIMIZERS = (
    Entry("adabelief", lambda: adabelief(0.1), lambda: optax.adabelief(0.1)),
    Entry(
        "adabelief",
        lambda: adabelief(RATE, 0.8, 0.9, 1e-6, 1e-4, nesterov=True),
        lambda: optax.adabelief(jax_rate(), 0.8, 0.9, 1e-6, 1e-4, nesterov=True),
        use="all arguments",
    ),
    Entry("yogi", lambda: yogi(0.1), lambda: optax.yogi(0.1), complex=False),
    Entry(
        "yogi",
        lambda: yogi(RATE, 0.8, 0.9, 1e-6),
        lambda: optax.yogi(jax_rate(), 0.8, 0.9, 1e-6),
        use="all arguments",
        complex=False,
    ),
    Entry("amsgrad", lambda: amsgrad(0.1), lambda: optax.amsgrad(0.1)),
    Entry(
        "amsgrad",
        lambda: amsgrad(RATE, 0.8, 0.9, 1e-6, 1e-4, None, False, True),
        lambda: optax.amsgrad(jax_rate(), 0.8, 0.9, 1e-6, 1e-4, None, False, True),
        use="all arguments",
    ),
    Entry("radam", lambda: radam(0.1), lambda: optax.radam(0.1)),
    Entry(
        "radam",
        lambda: radam(RATE, 0.8, 0.95, 1e-6, 1e-4, 4.5, nesterov=True),
        lambda: optax.radam(jax_rate(), 0.8, 0.95, 1e-6, 1e-4, 4.5, nesterov=True),
        use="all arguments",
    ),
    Entry("adamax", lambda: adamax(0.1), lambda: optax.adamax(0.1)),
    Entry(
        "adamax",
        lambda: adamax(RATE, 0.8, 0.7, 1e-2),
        lambda: optax.adamax(jax_rate(), 0.8, 0.7, 1e-2),
        use="all arguments",
    ),
    Entry("adamaxw", lambda: adamaxw(0.1), lambda: optax.adamaxw(0.1), needs_params=True),
    Entry(
        "adamaxw",
        lambda: adamaxw(RATE, 0.8, 0.7, 1e-2, DECAY, WIDE),
        lambda: optax.adamaxw(jax_rate(), 0.8, 0.7, 1e-2, jax_decay(), jax_wide),
        use="all arguments",
        needs_params=True,
    ),
    Entry("adan", lambda: adan(0.1), lambda: optax.adan(0.1)),
    Entry(
        "adan",
        lambda: adan(RATE, 0.8, 0.5, 0.9, 1e-6, 1e-4, DECAY, WIDE),
        lambda: optax.adan(jax_rate(), 0.8, 0.5, 0.9, 1e-6, 1e-4, jax_decay(), jax_wide),
        use="all arguments",
        needs_params=True,
    ),
    Entry("adadelta", lambda: adadelta(0.1), lambda: optax.adadelta(0.1)),
    Entry("adadelta", adadelta, optax.adadelta, use="no rate"),
    Entry(
        "adadelta",
        lambda: adadelta(RATE, 0.5, 1e-2, DECAY, WIDE),
        lambda: optax.adadelta(jax_rate(), 0.5, 1e-2, jax_decay(), jax_wide),
        use="all arguments",
        needs_params=True,
    ),
    Entry("adagrad", lambda: adagrad(0.1), lambda: optax.adagrad(0.1)),
    Entry(
        "adagrad",
        lambda: adagrad(RATE, 0.0, 0.1),
        lambda: optax.adagrad(jax_rate(), 0.0, 0.1),
        use="all arguments",
    ),
)

ENTRIES: tuple[Entry, ...] = (*TRANSFORMS, *OPTIMIZERS)
FACTORIES: tuple[Callable[..., Any], ...] = (
    scale_by_belief, scale_by_yogi, scale_by_amsgrad, scale_by_radam, scale_by_adamax, scale_by_rss, scale_by_adadelta,
    scale_by_adan, adabelief, yogi, amsgrad, radam, adamax, adamaxw, adan, adadelta, adagrad,
)  # fmt: skip
