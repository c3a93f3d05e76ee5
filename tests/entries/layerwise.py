"""Rules of Optax that look at a leaf as a whole, or keep of a matrix its rows and columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch
from torch import Tensor

from functrain import schedules
from functrain.combinators.select import mask_by
from functrain.optimizers.layerwise import adafactor, lamb, lars, novograd
from functrain.transforms.factored import scale_by_factored_rms
from functrain.transforms.layerwise import scale_by_novograd, scale_by_param_block_rms, scale_by_trust_ratio
from tests.entry import Entry

# --- functions that are found by name, so that what is built with them pickles


def is_wide(path: str, p: Tensor) -> bool:
    return p.ndim >= 2


def half_the_past(i: Tensor, decay_rate: float) -> Tensor:
    return i / (i + 1) * decay_rate


WIDE = mask_by(is_wide)
RATE = schedules.warmup_cosine_decay_schedule(0.0, 0.1, 5, 20, 0.01)
DECAY = schedules.linear_schedule(0.1, 0.01, 20)


# --- the same for Optax


def in_float64(schedule: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Optax computes schedules of an int32 count in float32; of a float64 one in float64."""
    return lambda count: schedule(jnp.asarray(count, jnp.float64))


def jax_wide(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim >= 2, params)


def jax_rate() -> Any:
    return in_float64(optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 20, 0.01))


def jax_decay() -> Any:
    return in_float64(optax.linear_schedule(0.1, 0.01, 20))


def power(i: Any, exponent: Any) -> Any:
    """Optax's decay of Adafactor, which is in float32 there whatever the parameters are."""
    return 1 - jnp.asarray(i + 1, jnp.float64) ** -exponent


def jax_factored(**options: Any) -> Any:
    return optax.scale_by_factored_rms(decay_rate_fn=power, **options)


def jax_adafactor(first: Any, *rest: Any) -> Any:
    """Optax's chain, with its first part given."""
    return optax.chain(first, *rest, optax.scale(-1))


TRANSFORMS = (
    Entry(
        "scale_by_trust_ratio",
        lambda: scale_by_trust_ratio(trust_coefficient=0.1),
        lambda: optax.scale_by_trust_ratio(trust_coefficient=0.1),
        needs_params=True,
    ),
    Entry(
        "scale_by_trust_ratio",
        lambda: scale_by_trust_ratio(1.5, 0.01, 0.1),
        lambda: optax.scale_by_trust_ratio(1.5, 0.01, 0.1),
        use="all arguments",
        needs_params=True,
    ),
    Entry(
        "scale_by_param_block_rms",
        scale_by_param_block_rms,
        optax.scale_by_param_block_rms,
        needs_params=True,
        overflows=True,  # a product of the gradient and of what grew by it
    ),
    Entry(
        "scale_by_param_block_rms",
        lambda: scale_by_param_block_rms(1.0),
        lambda: optax.scale_by_param_block_rms(1.0),
        use="often at its bound",
        needs_params=True,
        overflows=True,
    ),
    Entry("scale_by_novograd", scale_by_novograd, optax.scale_by_novograd, needs_params=True),
    Entry(
        "scale_by_novograd",
        lambda: scale_by_novograd(0.8, 0.9, 1e-3, 1e-2, 0.1),
        lambda: optax.scale_by_novograd(0.8, 0.9, 1e-3, 1e-2, 0.1),
        use="all arguments",
        needs_params=True,
    ),
    Entry("scale_by_factored_rms", scale_by_factored_rms, jax_factored),
    Entry(
        "scale_by_factored_rms",
        lambda: scale_by_factored_rms(min_dim_size_to_factor=2, epsilon=1e-3),
        lambda: jax_factored(min_dim_size_to_factor=2, epsilon=1e-3),
        use="factored",
    ),
    Entry(
        "scale_by_factored_rms",
        lambda: scale_by_factored_rms(True, 0.9, -3, 1, 1e-6, half_the_past),
        lambda: optax.scale_by_factored_rms(True, 0.9, -3, 1, 1e-6, lambda i, k: i / (i + 1) * k),
        use="another decay",
    ),
)

OPTIMIZERS = (
    Entry("lamb", lambda: lamb(0.1), lambda: optax.lamb(0.1), needs_params=True),
    Entry(
        "lamb",
        lambda: lamb(RATE, 0.8, 0.95, 1e-5, 1e-4, DECAY, WIDE),
        lambda: optax.lamb(jax_rate(), 0.8, 0.95, 1e-5, 1e-4, jax_decay(), jax_wide),
        use="all arguments",
        needs_params=True,
    ),
    Entry("lars", lambda: lars(0.1), lambda: optax.lars(0.1), needs_params=True),
    Entry(
        "lars",
        lambda: lars(RATE, DECAY, WIDE, 0.1, 0.01, WIDE, 0.8, True),
        lambda: optax.lars(jax_rate(), jax_decay(), jax_wide, 0.1, 0.01, jax_wide, 0.8, True),
        use="masks",
        needs_params=True,
    ),
    Entry("novograd", lambda: novograd(0.1), lambda: optax.novograd(0.1), needs_params=True),
    Entry(
        "novograd",
        lambda: novograd(RATE, 0.8, 0.9, 1e-3, 1e-2, 0.1),
        lambda: optax.novograd(jax_rate(), 0.8, 0.9, 1e-3, 1e-2, 0.1),
        use="all arguments",
        needs_params=True,
    ),
    Entry(
        "adafactor",
        adafactor,
        lambda: jax_adafactor(jax_factored(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()),
        needs_params=True,
    ),
    Entry(
        "adafactor",
        lambda: adafactor(RATE, 2, 0.7, -2, clipping_threshold=0.5, momentum=0.9, dtype_momentum=torch.float64),
        lambda: jax_adafactor(
            jax_factored(min_dim_size_to_factor=2, decay_rate=0.7, step_offset=-2),
            optax.clip_by_block_rms(0.5),
            optax.scale_by_learning_rate(jax_rate(), flip_sign=False),
            optax.scale_by_param_block_rms(),
            optax.ema(0.9, debias=False, accumulator_dtype=jnp.float64),
        ),
        use="momentum",
        needs_params=True,
        complex=False,  # its dtype_momentum is real
    ),
    Entry(
        "adafactor",
        lambda: adafactor(
            0.1, 1, multiply_by_parameter_scale=False, clipping_threshold=None, weight_decay_rate=DECAY, eps=1e-4,
            weight_decay_mask=WIDE,
        ),
        lambda: jax_adafactor(
            jax_factored(min_dim_size_to_factor=1, epsilon=1e-4),
            optax.scale_by_learning_rate(0.1, flip_sign=False),
            optax.add_decayed_weights(jax_decay(), jax_wide),
        ),
        use="decay",
        needs_params=True,
    ),
    Entry(
        "adafactor",
        lambda: adafactor(0.1, 1, factored=False),
        lambda: jax_adafactor(
            jax_factored(factored=False, min_dim_size_to_factor=1),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_learning_rate(0.1, flip_sign=False),
            optax.scale_by_param_block_rms(),
        ),
        use="not factored",
        needs_params=True,
    ),
)  # fmt: skip

ENTRIES: tuple[Entry, ...] = (*TRANSFORMS, *OPTIMIZERS)
FACTORIES: tuple[Callable[..., Any], ...] = (
    scale_by_trust_ratio, scale_by_param_block_rms, scale_by_novograd, scale_by_factored_rms, lamb, lars, novograd,
    adafactor, is_wide, half_the_past,
)  # fmt: skip
