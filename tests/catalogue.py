"""Every public transform, with what is known about it: what the laws and the oracles run over.

An entry is a factory in one of its uses. `make` builds it, `oracle` builds the same in Optax; the other fields are
traits. A law asks the traits, never the name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch
from torch import Tensor

from functrain import schedules
from functrain.base import identity, set_to_zero
from functrain.combinators.chain import chain, named_chain
from functrain.combinators.gate import MultiSteps, apply_if_finite, conditionally_mask, conditionally_transform
from functrain.combinators.select import freeze, mask_by, masked, partition, selective_transform
from functrain.combinators.wrap import inject_hyperparams
from functrain.optimizers.adaptive import adam, adamw, lion, nadam, nadamw, rmsprop
from functrain.optimizers.momentum import sgd
from functrain.transforms.adaptive import (
    scale_by_adam,
    scale_by_lion,
    scale_by_rms,
    scale_by_sign,
    scale_by_stddev,
)
from functrain.transforms.clip import clip, clip_by_block_rms, clip_by_global_norm
from functrain.transforms.decay import add_decayed_weights
from functrain.transforms.momentum import ema, trace
from functrain.transforms.scale import scale, scale_by_learning_rate, scale_by_schedule
from tests import entries
from tests.entry import Entry

# --- functions that are found by name, so that what is built with them pickles


def is_matrix(path: str, p: Tensor) -> bool:
    return p.ndim >= 2


def matrix_or_not(path: str, p: Tensor) -> str:
    return "matrix" if p.ndim >= 2 else "other"


def even(step: Tensor) -> Tensor:
    return step % 2 == 0


def inverse_root(count: Tensor) -> Tensor:
    return 0.1 / (1 + count.double()).sqrt()


MATRICES = mask_by(is_matrix)
COSINE = schedules.warmup_cosine_decay_schedule(0.0, 0.1, 5, 20, 0.01)
DECAY = schedules.linear_schedule(0.1, 0.01, 20)


# --- the same for Optax


def wide(schedule: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Optax computes schedules of an int32 count in float32; of a float64 one in float64."""
    return lambda count: schedule(jnp.asarray(count, jnp.float64))


def jax_matrices(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim >= 2, params)


def jax_labels(params: Any) -> Any:
    return jax.tree.map(lambda p: "matrix" if p.ndim >= 2 else "other", params)


def jax_cosine() -> Any:
    return wide(optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 20, 0.01))


def jax_decay() -> Any:
    return wide(optax.linear_schedule(0.1, 0.01, 20))


TRANSFORMS = (
    Entry("identity", identity, optax.identity),
    Entry("set_to_zero", set_to_zero, optax.set_to_zero, differentiable=False),
    Entry("scale", lambda: scale(-0.5), lambda: optax.scale(-0.5)),
    Entry("scale_by_schedule", lambda: scale_by_schedule(DECAY), lambda: optax.scale_by_schedule(jax_decay())),
    Entry(
        "scale_by_schedule",
        lambda: scale_by_schedule(inverse_root),
        lambda: optax.scale_by_schedule(wide(lambda t: 0.1 / (1 + t) ** 0.5)),
        use="function",
    ),
    Entry("scale_by_learning_rate", lambda: scale_by_learning_rate(0.1), lambda: optax.scale_by_learning_rate(0.1)),
    Entry(
        "scale_by_learning_rate",
        lambda: scale_by_learning_rate(COSINE, flip_sign=False),
        lambda: optax.scale_by_learning_rate(jax_cosine(), flip_sign=False),
        use="upwards",
    ),
    Entry("trace", lambda: trace(0.9), lambda: optax.trace(0.9)),
    Entry("trace", lambda: trace(0.9, nesterov=True), lambda: optax.trace(0.9, nesterov=True), use="nesterov"),
    Entry("ema", lambda: ema(0.9), lambda: optax.ema(0.9)),
    Entry("ema", lambda: ema(0.99, debias=False), lambda: optax.ema(0.99, debias=False), use="biased"),
    Entry("scale_by_adam", scale_by_adam, optax.scale_by_adam),
    Entry(
        "scale_by_adam",
        lambda: scale_by_adam(0.95, 0.99, 1e-6, 1e-4, nesterov=True),
        lambda: optax.scale_by_adam(0.95, 0.99, 1e-6, 1e-4, nesterov=True),
        use="nesterov",
    ),
    Entry("scale_by_adam", lambda: scale_by_adam(0.0, 0.0), lambda: optax.scale_by_adam(0.0, 0.0), use="no memory"),
    Entry("scale_by_rms", scale_by_rms, optax.scale_by_rms),
    Entry(
        "scale_by_rms",
        lambda: scale_by_rms(0.99, 1e-6, 0.1, eps_in_sqrt=False, bias_correction=True),
        lambda: optax.scale_by_rms(0.99, 1e-6, 0.1, eps_in_sqrt=False, bias_correction=True),
        use="corrected",
    ),
    Entry("scale_by_stddev", scale_by_stddev, optax.scale_by_stddev),
    Entry(
        "scale_by_stddev",
        lambda: scale_by_stddev(0.99, 1e-6, 0.1, eps_in_sqrt=False, bias_correction=True),
        lambda: optax.scale_by_stddev(0.99, 1e-6, 0.1, eps_in_sqrt=False, bias_correction=True),
        use="corrected",
        overflows=True,  # a constant gradient has no deviation: g / ε
    ),
    Entry("scale_by_sign", scale_by_sign, optax.scale_by_sign, differentiable=False),
    Entry("scale_by_lion", scale_by_lion, optax.scale_by_lion, differentiable=False),
    Entry(
        "scale_by_lion",
        lambda: scale_by_lion(0.8, 0.9, mode="smooth", smooth_beta=2.0),
        lambda: optax.scale_by_lion(0.8, 0.9, mode="smooth", smooth_beta=2.0),
        use="smooth",
        complex=False,
    ),
    Entry(
        "scale_by_lion",
        lambda: scale_by_lion(0.8, 0.9, mode="refined"),
        lambda: optax.scale_by_lion(0.8, 0.9, mode="refined"),
        use="refined",
    ),
    Entry(
        "add_decayed_weights",
        lambda: add_decayed_weights(0.1),
        lambda: optax.add_decayed_weights(0.1),
        needs_params=True,
    ),
    Entry(
        "add_decayed_weights",
        lambda: add_decayed_weights(DECAY, MATRICES),
        lambda: optax.add_decayed_weights(jax_decay(), jax_matrices),
        use="masked schedule",
        needs_params=True,
    ),
    Entry("clip", lambda: clip(0.5), lambda: optax.clip(0.5), complex=False),
    Entry("clip_by_block_rms", lambda: clip_by_block_rms(0.5), lambda: optax.clip_by_block_rms(0.5)),
    Entry("clip_by_global_norm", lambda: clip_by_global_norm(1.0), lambda: optax.clip_by_global_norm(1.0), local=False),
)

OPTIMIZERS = (
    Entry("sgd", lambda: sgd(0.1), lambda: optax.sgd(0.1)),
    Entry("sgd", lambda: sgd(0.1, momentum=0.9), lambda: optax.sgd(0.1, momentum=0.9), use="momentum"),
    Entry("sgd", lambda: sgd(COSINE, 0.9, True), lambda: optax.sgd(jax_cosine(), 0.9, True), use="nesterov"),
    Entry("adam", lambda: adam(0.1), lambda: optax.adam(0.1)),
    Entry(
        "adam",
        lambda: adam(COSINE, 0.8, 0.95, 1e-6, 1e-4, nesterov=True),
        lambda: optax.adam(jax_cosine(), 0.8, 0.95, 1e-6, 1e-4, nesterov=True),
        use="all arguments",
    ),
    Entry("nadam", lambda: nadam(0.1), lambda: optax.nadam(0.1)),
    Entry("adamw", lambda: adamw(0.1), lambda: optax.adamw(0.1), needs_params=True),
    Entry(
        "adamw",
        lambda: adamw(COSINE, weight_decay=0.1, mask=MATRICES),
        lambda: optax.adamw(jax_cosine(), weight_decay=0.1, mask=jax_matrices),
        use="mask",
        needs_params=True,
    ),
    Entry("nadamw", lambda: nadamw(0.1), lambda: optax.nadamw(0.1), needs_params=True),
    Entry("lion", lambda: lion(0.1), lambda: optax.lion(0.1), needs_params=True, differentiable=False),
    Entry("rmsprop", lambda: rmsprop(0.1), lambda: optax.rmsprop(0.1)),
    Entry(
        "rmsprop",
        lambda: rmsprop(COSINE, 0.99, 1e-6, centered=True, momentum=0.9, nesterov=True),
        lambda: optax.rmsprop(jax_cosine(), 0.99, 1e-6, centered=True, momentum=0.9, nesterov=True),
        use="centered momentum",
    ),
)

COMBINATORS = (
    Entry(
        "chain",
        lambda: chain(clip_by_global_norm(1.0), scale_by_adam(), add_decayed_weights(0.1), scale(-0.1)),
        lambda: optax.chain(
            optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.add_decayed_weights(0.1), optax.scale(-0.1)
        ),
        needs_params=True,
        local=False,
    ),
    Entry(
        "named_chain",
        lambda: named_chain(("momentum", trace(0.9)), ("rate", scale_by_learning_rate(0.1))),
        lambda: optax.named_chain(("momentum", optax.trace(0.9)), ("rate", optax.scale_by_learning_rate(0.1))),
    ),
    Entry(
        "masked",
        lambda: masked(adam(0.1), MATRICES),
        lambda: optax.masked(optax.adam(0.1), jax_matrices),
        needs_params=True,
    ),
    Entry(
        "partition",
        lambda: partition({"matrix": adam(0.1), "other": sgd(0.1, 0.9)}, mask_by(matrix_or_not)),
        lambda: optax.partition({"matrix": optax.adam(0.1), "other": optax.sgd(0.1, 0.9)}, jax_labels),
        needs_params=True,
    ),
    Entry("freeze", lambda: freeze(MATRICES), lambda: optax.transforms.freeze(jax_matrices), needs_params=True),
    Entry(
        "selective_transform",
        lambda: selective_transform(adam(0.1), freeze_mask=MATRICES),
        lambda: optax.partition({"matrix": optax.set_to_zero(), "other": optax.adam(0.1)}, jax_labels),
        needs_params=True,
    ),
    Entry(
        "inject_hyperparams",
        lambda: inject_hyperparams(adamw)(learning_rate=COSINE, weight_decay=0.1),
        lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=jax_cosine(), weight_decay=0.1),
        needs_params=True,
    ),
    Entry(
        "apply_if_finite",
        lambda: apply_if_finite(adam(0.1), 3),
        lambda: optax.apply_if_finite(optax.adam(0.1), 3),
        local=False,
    ),
    Entry(
        "conditionally_transform",
        lambda: conditionally_transform(sgd(0.1, 0.9), even),
        lambda: optax.conditionally_transform(optax.sgd(0.1, 0.9), lambda step: step % 2 == 0),
    ),
    Entry(
        "conditionally_mask",
        lambda: conditionally_mask(sgd(0.1, 0.9), even),
        lambda: optax.conditionally_mask(optax.sgd(0.1, 0.9), lambda step: step % 2 == 0),
    ),
    Entry(
        "MultiSteps",
        lambda: MultiSteps(adam(0.1), 3),
        lambda: optax.MultiSteps(optax.adam(0.1), 3, accumulator_dtype=jnp.float64).gradient_transformation(),
    ),
)

CATALOGUE: tuple[Entry, ...] = (*TRANSFORMS, *OPTIMIZERS, *COMBINATORS, *entries.ENTRIES)
RULES: tuple[Entry, ...] = (*TRANSFORMS, *OPTIMIZERS, *entries.ENTRIES)


# What `eval(repr(tx))` needs: the public names.
NAMES: dict[str, Any] = {
    "torch": torch,
    "schedules": schedules,
    **{
        f.__name__: f
        for f in (
            identity, set_to_zero, scale, scale_by_schedule, scale_by_learning_rate, trace, ema, scale_by_adam,
            scale_by_rms, scale_by_stddev, scale_by_sign, scale_by_lion, add_decayed_weights, clip, clip_by_block_rms,
            clip_by_global_norm, sgd, adam, nadam, adamw, nadamw, lion, rmsprop, chain, named_chain, masked, mask_by,
            partition, freeze, selective_transform, inject_hyperparams, apply_if_finite, conditionally_transform,
            conditionally_mask, MultiSteps, is_matrix, matrix_or_not, even, inverse_root, *entries.FACTORIES,
        )
    },
}  # fmt: skip
