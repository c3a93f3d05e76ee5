"""Rules that average the parameters, and leave the updates as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from functrain.transforms.averages import params_ema
from tests.entry import Entry

ENTRIES: tuple[Entry, ...] = (
    Entry("params_ema", lambda: params_ema(0.9), optax.identity, needs_params=True),
    Entry("params_ema", lambda: params_ema(0.0), optax.identity, use="without memory", needs_params=True),
)
FACTORIES: tuple[Callable[..., Any], ...] = (params_ema,)
