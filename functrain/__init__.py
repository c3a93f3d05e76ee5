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
from functrain.bridge import optim
from functrain.bridge.factories import configure_optimizer, create_optimizer, from_torch
from functrain.bridge.modules import functionalize
from functrain.bridge.torch_optimizer import TorchOptimizer
from functrain.checkpoint import CheckpointError
from functrain.combinators.average import schedule_free, schedule_free_eval_params
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
from functrain.loggers import TensorBoard, WandB
from functrain.optimizers.adaptive import adam, adamw, lion, nadam, nadamw, rmsprop
from functrain.optimizers.averaged import schedule_free_adamw, schedule_free_sgd
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
from functrain.optimizers.layerwise import adafactor, lamb, lars, novograd
from functrain.optimizers.momentum import sgd
from functrain.precision import Precision
from functrain.run.early import EarlyStopping
from functrain.run.nonfinite import NonFiniteError
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
from functrain.transforms.averages import params_ema
from functrain.transforms.beliefs import scale_by_amsgrad, scale_by_belief, scale_by_radam, scale_by_yogi
from functrain.transforms.clip import clip, clip_by_block_rms, clip_by_global_norm
from functrain.transforms.decay import add_decayed_weights, shrink_weights
from functrain.transforms.factored import scale_by_factored_rms
from functrain.transforms.histories import scale_by_adadelta, scale_by_adamax, scale_by_adan, scale_by_rss
from functrain.transforms.layerwise import scale_by_novograd, scale_by_param_block_rms, scale_by_trust_ratio
from functrain.transforms.momentum import ema, trace
from functrain.transforms.scale import scale, scale_by_learning_rate, scale_by_schedule
from functrain.transforms.torch_adaptive import (
    scale_by_torch_adagrad,
    scale_by_torch_amsgrad,
    scale_by_torch_nadam,
    scale_by_torch_radam,
)
from functrain.transforms.torch_lbfgs import torch_lbfgs
from functrain.transforms.torch_matrix import scale_by_torch_adafactor, scale_by_torch_muon
from functrain.transforms.torch_steps import scale_by_torch_asgd, scale_by_torch_rprop, torch_trace

__version__ = "0.1.0"

__all__ = [
    "CheckpointError", "EarlyStopping", "GradientTransformation", "MultiSteps", "NonFiniteError", "Precision",
    "TensorBoard", "TorchOptimizer", "TrainState", "Trainer", "WandB", "__version__",
    "adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw", "adan",
    "add_decayed_weights", "amsgrad", "apply_if_finite", "apply_updates", "chain", "checkpoint", "clip",
    "clip_by_block_rms", "clip_by_global_norm", "conditionally_mask", "conditionally_transform", "configure_optimizer",
    "create_optimizer", "ema", "freeze", "from_torch", "functionalize", "has_updated", "identity", "inject_hyperparams",
    "jit", "lamb", "lars", "lion", "mask_by", "masked", "nadam", "nadamw", "named_chain", "novograd", "optim",
    "params_ema", "partition", "plot", "radam", "rmsprop", "rule", "scale", "scale_by_adadelta", "scale_by_adam",
    "scale_by_adamax", "scale_by_adan", "scale_by_amsgrad", "scale_by_belief", "scale_by_factored_rms",
    "scale_by_learning_rate", "scale_by_lion", "scale_by_novograd", "scale_by_param_block_rms", "scale_by_radam",
    "scale_by_rms", "scale_by_rss", "scale_by_schedule", "scale_by_sign", "scale_by_stddev", "scale_by_torch_adafactor",
    "scale_by_torch_adagrad", "scale_by_torch_amsgrad", "scale_by_torch_asgd", "scale_by_torch_muon",
    "scale_by_torch_nadam", "scale_by_torch_radam", "scale_by_torch_rprop", "scale_by_trust_ratio", "scale_by_yogi",
    "schedule_free", "schedule_free_adamw", "schedule_free_eval_params", "schedule_free_sgd", "schedules", "seeded",
    "selective_transform", "set_to_zero", "sgd", "shrink_weights", "skip_large_updates", "skip_not_finite", "stateless",
    "torch_lbfgs", "torch_trace", "trace", "train_step", "tree", "update_and_apply", "value_and_grad", "yogi",
]  # fmt: skip


def __getattr__(name: str) -> types.ModuleType:
    """`plot` is imported when it is asked for."""
    if name == "plot":
        return importlib.import_module("functrain.plot")
    raise AttributeError(f"module 'functrain' has no attribute {name!r}")
