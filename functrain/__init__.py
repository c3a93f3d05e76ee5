"""Functional training for PyTorch.

Optimizers are pure `init`/`update` functions over trees of parameters, the training step is a pure function, and a thin
Trainer drives it.
"""

import importlib
import types

from functrain import checkpoint, schedules, tree
from functrain.base import (
    GradientTransformation,
    apply_updates,
    identity,
    rule,
    set_to_zero,
    stateless,
    update_and_apply,
)
from functrain.bridge.modules import functionalize
from functrain.checkpoint import CheckpointError
from functrain.combinators.chain import chain, named_chain
from functrain.combinators.gate import (
    MultiSteps,
    apply_if_finite,
    conditionally_mask,
    conditionally_transform,
    has_updated,
    skip_large_updates,
    skip_not_finite,
)
from functrain.combinators.select import freeze, mask_by, masked, partition, selective_transform
from functrain.combinators.wrap import inject_hyperparams
from functrain.compile import jit
from functrain.gradient import value_and_grad
from functrain.optimizers.adaptive import adam, adamw, lion, nadam, nadamw, rmsprop
from functrain.optimizers.momentum import sgd
from functrain.precision import Precision
from functrain.run.journal import NonFiniteError
from functrain.seeding import seeded
from functrain.state import TrainState
from functrain.step import train_step
from functrain.trainer import Trainer
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

__version__ = "0.1.0"

__all__ = [
    "CheckpointError", "GradientTransformation", "MultiSteps", "NonFiniteError", "Precision", "TrainState", "Trainer",
    "__version__",
    "adam", "adamw", "add_decayed_weights", "apply_if_finite", "apply_updates", "chain", "checkpoint", "clip",
    "clip_by_block_rms", "clip_by_global_norm", "conditionally_mask", "conditionally_transform", "ema", "freeze",
    "functionalize", "has_updated", "identity", "inject_hyperparams", "jit", "lion", "mask_by", "masked", "nadam",
    "nadamw", "named_chain", "partition", "plot", "rmsprop", "rule", "scale", "scale_by_adam",
    "scale_by_learning_rate", "scale_by_lion", "scale_by_rms", "scale_by_schedule", "scale_by_sign",
    "scale_by_stddev", "schedules", "seeded", "selective_transform", "set_to_zero", "sgd", "skip_large_updates",
    "skip_not_finite", "stateless", "trace", "train_step", "tree", "update_and_apply", "value_and_grad",
]  # fmt: skip


def __getattr__(name: str) -> types.ModuleType:
    """`plot` is imported when it is asked for, so that `python -m functrain.plot` runs it once."""
    if name == "plot":
        return importlib.import_module("functrain.plot")
    raise AttributeError(f"module 'functrain' has no attribute {name!r}")
