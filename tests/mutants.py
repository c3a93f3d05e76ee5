"""Faults planted by hand, and the tests that notice them: `python tests/mutants.py`, two minutes on two cores.

Each fault is one change of the source; every rule and every guarantee has one at least. It is planted in a copy of the
working tree, never in the tree itself, and the tests named beside it run there: one of them must fail. On the copy as
it is all of them pass, which is tried first. A line a fault is printed. The exit status is 1 if a fault survives, is
not to be found in the source any more, or breaks more than it should: a file that does not import proves nothing.
"""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
AT_ONCE = 2  # each on a core
PATIENCE = 300  # seconds that the tests of one fault may take
PASSED, FAILED, BROKEN = 0, 1, 3  # exit statuses of pytest: all passed, one did not, something else went wrong


class Mutant(NamedTuple):
    """A fault, and who notices it."""

    fault: str  # in words
    file: str  # under functrain/
    old: str  # occurs there once
    new: str
    killers: tuple[str, ...]  # under tests/: what pytest runs


def mutant(fault: str, file: str, old: str, new: str, *killers: str) -> Mutant:
    """A fault whose killers are listed at the end."""
    return Mutant(fault, file, old, new, killers)


def optax(entry: str) -> str:
    """The test that compares an entry of the catalogue with Optax."""
    return f"test_catalogue.py::test_25_updates_agree_with_optax[{entry}]"


MOMENTUM, ADAPTIVE = "transforms/test_momentum.py::", "transforms/test_adaptive.py::"
SCALE, CLIP, SQUARES = "transforms/test_scale.py::", "transforms/test_clip.py::", "transforms/test_squares.py::"
CORRECTION, DECAY, SCHEDULES = "test_bias_correction.py::", "test_decay.py::", "test_schedules.py::"
CHAIN, SELECT = "combinators/test_chain.py::", "combinators/test_select.py::"
GATE, WRAP = "combinators/test_gate.py::", "combinators/test_wrap.py::"
STEP, SKIP, PRECISION = "test_step.py::", "test_skip.py::", "test_precision.py::"
TRAINER, RESUME = "test_trainer.py::", "test_resume.py::"
EVERY_COUNT = SCHEDULES + "test_a_schedule_agrees_with_optax_at_every_count"

RULES = (
    # --- averages
    mutant(
        "trace: the new gradient weighs 1 - β",
        "transforms/momentum.py",
        "m = tree.pointwise(lambda g, m: g + decay * m, g, tree.upcast(state.trace))",
        "m = tree.pointwise(lambda g, m: (1 - decay) * g + decay * m, g, tree.upcast(state.trace))",
        MOMENTUM + "test_the_first_traces_by_hand",
    ),
    mutant(
        "trace: Nesterov looks ahead from the wrong end",
        "transforms/momentum.py",
        "u = tree.pointwise(lambda g, m: g + decay * m, g, m) if nesterov else m",
        "u = tree.pointwise(lambda g, m: m + decay * g, g, m) if nesterov else m",
        MOMENTUM + "test_the_first_nesterov_traces_by_hand",
    ),
    mutant(
        "ema: no correction",
        "transforms/momentum.py",
        "u = tree.pointwise(lambda m: m / c, m) if debias else m",
        "u = m",
        CORRECTION + "test_the_weights_of_the_corrected_mean_sum_to_one_and_fall_by_beta_with_age",
    ),
    mutant(
        "ema: β and 1 - β swapped",
        "transforms/momentum.py",
        "lambda m, g: decay * m + (1 - decay) * g",
        "lambda m, g: (1 - decay) * m + decay * g",
        CORRECTION + "test_the_weights_of_the_corrected_mean_sum_to_one_and_fall_by_beta_with_age",
    ),
    mutant(
        "bias correction: 1 - β**t in float32",
        "counter.py",
        "return 2 * h / (h - 1)",
        "return (1 - torch.tensor(decay, dtype=torch.float32) ** t.float()).to(t.dtype)",
        CORRECTION + "test_the_correction_is_right_to_4_ulp_at_counts_from_1_to_a_million",
    ),
    mutant(
        "bias correction: the logarithm of a tensor in its own dtype",
        "counter.py",
        "torch.log(decay.to(t.dtype))",
        "torch.log(decay).to(t.dtype)",
        CORRECTION + "test_the_correction_is_right_to_4_ulp_of_its_own_float[float32 tensor]",
    ),
    mutant(
        "counter: it wraps",
        "counter.py",
        "return torch.where(count < greatest, count + 1, count)",
        "return count + 1",
        CORRECTION + "test_the_counter_counts_and_saturates",
    ),
    # --- adaptive rules
    mutant(
        "adam: the mean has β₂",
        "transforms/adaptive.py",
        "mu = tree.pointwise(lambda m, g: b1 * m + (1 - b1) * g, tree.upcast(state.mu), g)",
        "mu = tree.pointwise(lambda m, g: b2 * m + (1 - b2) * g, tree.upcast(state.mu), g)",
        ADAPTIVE + "test_adam_by_hand",
        CORRECTION + "test_adams_first_update_is_the_rate_times_g_over_abs_g_plus_eps",
    ),
    mutant(
        "adam: the mean square is not corrected",
        "transforms/adaptive.py",
        "mean(m, g) / (root(v / c2, eps_root) + eps)",
        "mean(m, g) / (root(v, eps_root) + eps)",
        CORRECTION + "test_adams_first_update_is_the_rate_times_g_over_abs_g_plus_eps",
    ),
    mutant(
        "adam: ε under the root",
        "transforms/adaptive.py",
        "(root(v / c2, eps_root) + eps), mu, nu, g)",
        "(root(v / c2, eps_root + eps)), mu, nu, g)",
        ADAPTIVE + "test_eps_is_beside_the_root_and_eps_root_under_it",
    ),
    mutant(
        "adam: Nesterov without a look ahead in the correction",
        "transforms/adaptive.py",
        "c1_next = counter.bias_correction(b1, increment(t))",
        "c1_next = counter.bias_correction(b1, t)",
        ADAPTIVE + "test_nesterov_adam_by_hand",
    ),
    mutant(
        "rms: the correction is lost",
        "transforms/adaptive.py",
        "u = tree.pointwise(lambda g, v: g / (root(v / c, inside) + outside), g, nu)",
        "u = tree.pointwise(lambda g, v: g / (root(v, inside) + outside), g, nu)",
        ADAPTIVE + "test_rms_with_correction_is_adam_without_a_mean",
    ),
    mutant(
        "rms: ε beside the root where it should be under it",
        "transforms/adaptive.py",
        "u = tree.pointwise(lambda g, v: g / (root(v / c, inside) + outside), g, nu)",
        "u = tree.pointwise(lambda g, v: g / (root(v / c, outside) + inside), g, nu)",
        ADAPTIVE + "test_rms_by_hand",
    ),
    mutant(
        "stddev: the squared mean is added",
        "transforms/adaptive.py",
        "(v / c - abs_sq(m / c))",
        "(v / c + abs_sq(m / c))",
        ADAPTIVE + "test_stddev_by_hand",
    ),
    mutant(
        "stddev: the mean is corrected after it is squared",
        "transforms/adaptive.py",
        "(v / c - abs_sq(m / c))",
        "(v / c - abs_sq(m) / c)",
        optax("scale_by_stddev/corrected"),
    ),
    mutant(
        "sign: wrong",
        "transforms/adaptive.py",
        "tree.pointwise(torch.sgn, updates)",
        "tree.pointwise(lambda g: -torch.sgn(g), updates)",
        ADAPTIVE + "test_sign_by_hand",
    ),
    mutant(
        "lion: the update has β₂",
        "transforms/adaptive.py",
        "sign(b1 * m + (1 - b1) * g), m, g)",
        "sign(b2 * m + (1 - b2) * g), m, g)",
        ADAPTIVE + "test_lion_by_hand",
    ),
    mutant(
        "lion: the memory has β₁",
        "transforms/adaptive.py",
        "lambda m, g: b2 * m + (1 - b2) * g, m, g)",
        "lambda m, g: b1 * m + (1 - b1) * g, m, g)",
        ADAPTIVE + "test_lion_by_hand",
    ),
    mutant(
        "squares: of complex numbers not by absolute value",
        "transforms/squares.py",
        "return x.abs().square() if x.dtype.is_complex else x * x",
        "return x * x",
        SQUARES + "test_abs_sq_is_real",
    ),
    mutant(
        "root: an infinite derivative at zero",
        "transforms/squares.py",
        "shifted.clamp_min(torch.finfo(x.dtype).tiny).sqrt()",
        "shifted.sqrt()",
        SQUARES + "test_root_has_a_finite_first_and_second_derivative_at_zero",
    ),
    # --- numbers and bounds
    mutant(
        "scale: wrong sign",
        "transforms/scale.py",
        "times(step_size, updates)",
        "times(-step_size, updates)",
        optax("scale"),
    ),
    mutant(
        "scale_by_schedule: one count ahead",
        "transforms/scale.py",
        "value = value_at(where, schedule, state.count)",
        "value = value_at(where, schedule, increment(state.count))",
        SCALE + "test_the_state_of_a_schedule_shows_its_value",
    ),
    mutant(
        "scale_by_learning_rate: up the gradient",
        "transforms/scale.py",
        "times(-rate if flip_sign else rate, updates)",
        "times(rate if flip_sign else -rate, updates)",
        SCALE + "test_the_first_updates_by_hand",
    ),
    mutant(
        "scale_by_learning_rate: one count ahead",
        "transforms/scale.py",
        "rate = value_at(where, schedule, state.count)",
        "rate = value_at(where, schedule, increment(state.count))",
        SCALE + "test_the_state_shows_the_rate_that_was_used_last_and_before_that_the_first",
    ),
    mutant(
        "clip: from above alone",
        "transforms/clip.py",
        "g.clamp(-max_delta, max_delta)",
        "g.clamp(max=max_delta)",
        CLIP + "test_clip_by_hand",
    ),
    mutant(
        "clip_by_block_rms: the norm, not the root mean square",
        "transforms/clip.py",
        "rms = _norm(g) / math.sqrt(max(g.numel(), 1))",
        "rms = _norm(g)",
        CLIP + "test_clip_by_block_rms_by_hand",
    ),
    mutant(
        "clip_by_global_norm: small updates grow",
        "transforms/clip.py",
        "max_norm / _norm(updates).clamp(min=max_norm)",
        "max_norm / _norm(updates)",
        CLIP + "test_what_is_small_is_untouched_bit_for_bit",
    ),
    mutant(
        "clip_by_global_norm: each leaf by its own norm",
        "transforms/clip.py",
        "return times(max_norm / _norm(updates).clamp(min=max_norm), updates)",
        "return tree.map(lambda g: times(max_norm / _norm(g).clamp(min=max_norm), g), updates)",
        CLIP + "test_clip_by_global_norm_by_hand",
    ),
    # --- decay
    mutant(
        "add_decayed_weights: away from zero",
        "transforms/decay.py",
        "lambda g, p: g + p * rate",
        "lambda g, p: g - p * rate",
        DECAY + "test_each_contraction_is_p_minus_rate_times_decay_times_p_as_float64_rounds_it",
    ),
    mutant(
        "add_decayed_weights: the mask is not asked",
        "transforms/decay.py",
        "chosen = g if mask is None else punch(g, holes_outside(where, mask, params))",
        "chosen = g",
        DECAY + "test_masked_entries_are_untouched_by_decay_bit_for_bit_and_the_others_decay",
    ),
    mutant(
        "add_decayed_weights: the schedule one count ahead",
        "transforms/decay.py",
        "rate = value_at(where, schedule, state.count)",
        "rate = value_at(where, schedule, increment(state.count))",
        DECAY + "test_a_scheduled_decay_contracts_by_the_product_too",
    ),
    # --- optimizers
    mutant(
        "sgd: never Nesterov",
        "optimizers/momentum.py",
        "trace(momentum, nesterov, accumulator_dtype)",
        "trace(momentum, False, accumulator_dtype)",
        optax("sgd/nesterov"),
    ),
    mutant(
        "adam: betas swapped",
        "optimizers/adaptive.py",
        "        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),\n        scale_by_learning_rate",
        "        scale_by_adam(b2, b1, eps, eps_root, mu_dtype, nesterov=nesterov),\n        scale_by_learning_rate",
        optax("adam"),
    ),
    mutant(
        "nadam: no look ahead",
        "optimizers/adaptive.py",
        "return adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=True)",
        "return adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=False)",
        optax("nadam"),
    ),
    mutant(
        "adamw: decay before Adam is L2",
        "optimizers/adaptive.py",
        "        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),\n"
        "        add_decayed_weights(weight_decay, mask),\n",
        "        add_decayed_weights(weight_decay, mask),\n"
        "        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),\n",
        DECAY + "test_decoupled_decay_does_not_depend_on_the_gradients_history",
    ),
    mutant(
        "adamw: decay after the learning rate, and so without it and upwards",
        "optimizers/adaptive.py",
        "nesterov=nesterov),\n        add_decayed_weights(weight_decay, mask),\n"
        "        scale_by_learning_rate(learning_rate),\n",
        "nesterov=nesterov),\n        scale_by_learning_rate(learning_rate),\n"
        "        add_decayed_weights(weight_decay, mask),\n",
        DECAY + "test_each_contraction_is_p_minus_rate_times_decay_times_p_as_float64_rounds_it",
    ),
    mutant(
        "adamw: the mask is lost",
        "optimizers/adaptive.py",
        "nesterov=nesterov),\n        add_decayed_weights(weight_decay, mask),",
        "nesterov=nesterov),\n        add_decayed_weights(weight_decay),",
        DECAY + "test_masked_entries_are_untouched_by_decay_bit_for_bit_and_the_others_decay",
    ),
    mutant(
        "nadamw: no look ahead",
        "optimizers/adaptive.py",
        "weight_decay, mask, nesterov=True)",
        "weight_decay, mask, nesterov=False)",
        optax("nadamw"),
    ),
    mutant(
        "lion: betas swapped",
        "optimizers/adaptive.py",
        "scale_by_lion(b1, b2, mu_dtype),",
        "scale_by_lion(b2, b1, mu_dtype),",
        optax("lion"),
    ),
    mutant(
        "rmsprop: centered where it is not",
        "optimizers/adaptive.py",
        "by_size = scale_by_stddev if centered else scale_by_rms",
        "by_size = scale_by_rms if centered else scale_by_stddev",
        optax("rmsprop"),
    ),
    mutant(
        "rmsprop: momentum before the learning rate",
        "optimizers/adaptive.py",
        "        scale_by_learning_rate(learning_rate),\n"
        "        identity() if momentum is None else trace(momentum, nesterov),\n",
        "        identity() if momentum is None else trace(momentum, nesterov),\n"
        "        scale_by_learning_rate(learning_rate),\n",
        optax("rmsprop/centered momentum"),
    ),
)

AROUND_RULES = (
    # --- base
    mutant(
        "identity: zeros",
        "base.py",
        "lambda updates, state, params=None: (updates, state), local=True)",
        "lambda updates, state, params=None: (tree.zeros_like(updates), state), local=True)",
        CHAIN + "test_identity_is_neutral_on_either_side",
    ),
    mutant(
        "set_to_zero: lets NaN through",
        "base.py",
        "stateless(lambda updates, params: tree.zeros_like(updates), local=True)",
        "stateless(lambda updates, params: tree.map(lambda g: g * 0, updates), local=True)",
        "test_base.py::test_set_to_zero_leaves_parameters_bitwise_as_they_are_even_under_nan",
    ),
    mutant(
        "apply_updates: subtracts",
        "base.py",
        "lambda p, u: p + u, params",
        "lambda p, u: p - u, params",
        STEP + "test_adamw_with_clipping_is_torchs_loop",
    ),
    mutant(
        "apply_updates: parameters take the dtype of the updates",
        "base.py",
        "params, tree.cast_like(updates, params)), ()",
        "params, updates), ()",
        "test_base.py::test_applied_updates_are_the_sum_in_the_parameters_own_dtype",
    ),
    mutant(
        "holes: a parameter without a gradient loses its state",
        "base.py",
        "return new_updates, fill(new_state, state)",
        "return new_updates, new_state",
        CHAIN + "test_a_missing_gradient_leaves_parameter_and_moments_as_they_are",
    ),
    mutant(
        "holes: the state is not punched where the gradient is",
        "holes.py",
        "    if fits(state, whole):\n        return punch(state, like)\n",
        "    if fits(state, whole):\n        return state\n",
        CHAIN + "test_a_missing_gradient_leaves_parameter_and_moments_as_they_are",
    ),
    # --- combinators
    mutant(
        "chain: every part sees the first updates",
        "combinators/chain.py",
        "updates, s = update_part(part, updates, old, params, extra)\n"
        "            new.append(s)\n        return updates,",
        "u, s = update_part(part, updates, old, params, extra)\n            new.append(s)\n        return u,",
        CHAIN + "test_the_order_of_a_chain_is_its_meaning",
    ),
    mutant(
        "chain: last part first",
        "combinators/chain.py",
        "for part, old in zip(transforms, state, strict=True):\n"
        "            updates, s = update_part(part, updates, old, params, extra)\n            new.append(s)",
        "for part, old in reversed(list(zip(transforms, state, strict=True))):\n"
        "            updates, s = update_part(part, updates, old, params, extra)\n            new.insert(0, s)",
        CHAIN + "test_the_order_of_a_chain_is_its_meaning",
    ),
    mutant(
        "named_chain: last part first",
        "combinators/chain.py",
        "for name, part in parts.items():\n            updates, new[name]",
        "for name, part in reversed(parts.items()):\n            updates, new[name]",
        CHAIN + "test_named_chain_agrees_with_optax",
    ),
    mutant(
        "masked: state for what is masked out",
        "combinators/select.py",
        'inner.init(punch(params, holes_outside("masked", mask, params)))',
        "inner.init(params)",
        SELECT + "test_the_state_has_holes_where_it_is_masked_out",
    ),
    mutant(
        "masks: the other way round",
        "masks.py",
        "tree.map(lambda m: m or (), chosen)",
        "tree.map(lambda m: () if m else True, chosen)",
        SELECT + "test_masked_by_a_prefix_agrees_with_optax",
    ),
    mutant(
        "mask_by: the answer turned round",
        "combinators/select.py",
        "tree.map_with_path(fn, params)",
        "tree.map_with_path(lambda path, leaf: not fn(path, leaf), params)",
        optax("adamw/mask"),
    ),
    mutant(
        "partition: states stay as they were",
        "combinators/select.py",
        "states[label] = MaskedState(new)",
        "states[label] = MaskedState(old)",
        SELECT + "test_partition_by_labels_agrees_with_optax",
    ),
    mutant(
        "freeze: nothing",
        "combinators/select.py",
        "masked(set_to_zero(), mask)",
        "masked(set_to_zero(), False)",
        SELECT + "test_freeze_leaves_parameters_bitwise",
    ),
    mutant(
        "selective_transform: trains what is frozen",
        "combinators/select.py",
        '"freeze" if frozen else "train"',
        '"train" if frozen else "freeze"',
        SELECT + "test_selective_transform_agrees_with_optax",
    ),
    mutant(
        "inject_hyperparams: schedules one count ahead",
        "combinators/wrap.py",
        "state.hyperparams | scheduled(state.count)",
        "state.hyperparams | scheduled(increment(state.count))",
        WRAP + "test_scheduled_hyperparameters_agree_with_optax_and_are_in_the_state",
    ),
    mutant(
        "inject_hyperparams: what was set is not obeyed",
        "combinators/wrap.py",
        "update_part(build(hyperparams), g,",
        "update_part(build({**numbers, **scheduled(state.count)}), g,",
        WRAP + "test_a_changed_hyperparameter_is_obeyed_as_in_optax",
    ),
    mutant(
        "apply_if_finite: gives up one error early",
        "combinators/gate.py",
        "(in_a_row > max_consecutive_errors)",
        "(in_a_row >= max_consecutive_errors)",
        GATE + "test_apply_if_finite_agrees_with_optax_up_to_its_counters",
    ),
    mutant(
        "apply_if_finite: the state inside takes NaN in",
        "combinators/gate.py",
        "choose(accepted, u, tree.zeros_like(u)), choose(accepted, s, state.inner_state)",
        "choose(accepted, u, tree.zeros_like(u)), s",
        GATE + "test_an_ignored_update_leaves_no_trace_in_parameters_and_moments",
    ),
    mutant(
        "conditionally_transform: zero in between",
        "combinators/gate.py",
        "lambda g: g, ConditionallyTransformState",
        "tree.zeros_like, ConditionallyTransformState",
        GATE + "test_conditionally_transform_agrees_with_optax",
    ),
    mutant(
        "conditionally_mask: the gradient in between",
        "combinators/gate.py",
        "tree.zeros_like, ConditionallyMaskState",
        "lambda g: g, ConditionallyMaskState",
        GATE + "test_conditionally_mask_agrees_with_optax",
    ),
    mutant(
        "MultiSteps: windows of k + 1",
        "combinators/gate.py",
        "last = (n >= k) & ~skip",
        "last = (n > k) & ~skip",
        GATE + "test_multi_steps_agrees_with_optax",
    ),
    mutant(
        "MultiSteps: not the mean",
        "combinators/gate.py",
        "a + (g - a) / n,",
        "a + (g - a) / k,",
        GATE + "test_multi_steps_over_micro_batches_is_one_step_over_their_mean",
    ),
    # --- schedules
    mutant(
        "constant_schedule: wrong sign",
        "schedules/pieces.py",
        "return as_schedule(value)",
        "return as_schedule(-value)",
        EVERY_COUNT,
    ),
    mutant(
        "polynomial_schedule: the power of the wrong fraction",
        "schedules/pieces.py",
        "(init_value - end_value) * (1 - s) ** power",
        "(init_value - end_value) * (1 - s**power)",
        EVERY_COUNT,
    ),
    mutant(
        "linear_schedule: a parabola",
        "schedules/pieces.py",
        "polynomial_schedule(init_value, end_value, 1,",
        "polynomial_schedule(init_value, end_value, 2,",
        EVERY_COUNT,
    ),
    mutant(
        "cosine_decay_schedule: begins above its first value",
        "schedules/pieces.py",
        "(alpha + (1 - alpha) * cosine**exponent)",
        "(alpha + cosine**exponent)",
        EVERY_COUNT,
    ),
    mutant(
        "exponential_decay: no staircase", "schedules/pieces.py", "(s.floor() if staircase else s)", "s", EVERY_COUNT
    ),
    mutant(
        "join_schedules: pieces count from the run's beginning",
        "schedules/joined.py",
        "piece((t - boundary).clamp(min=0))",
        "piece(t)",
        SCHEDULES + "test_joined_schedules_agree_with_optax",
    ),
    mutant(
        "piecewise_constant_schedule: one count late",
        "schedules/joined.py",
        "torch.where(t < boundary, value, value * factor)",
        "torch.where(t <= boundary, value, value * factor)",
        EVERY_COUNT,
    ),
    mutant(
        "piecewise_interpolate_schedule: the cosine upside down",
        "schedules/joined.py",
        "(1 - torch.cos(math.pi * s)) / 2",
        "(1 + torch.cos(math.pi * s)) / 2",
        EVERY_COUNT,
    ),
    mutant(
        "warmup_constant_schedule: downwards",
        "schedules/joined.py",
        "return linear_schedule(init_value, peak_value, warmup_steps)",
        "return linear_schedule(peak_value, init_value, warmup_steps)",
        EVERY_COUNT,
    ),
    mutant(
        "warmup_cosine_decay_schedule: ends a warmup late",
        "schedules/joined.py",
        "peak_value, decay_steps - warmup_steps,",
        "peak_value, decay_steps,",
        SCHEDULES + "test_warmup_cosine_by_hand",
    ),
    mutant(
        "warmup_exponential_decay_schedule: falls from its first value",
        "schedules/joined.py",
        "down = exponential_decay(peak_value,",
        "down = exponential_decay(init_value,",
        EVERY_COUNT,
    ),
    mutant(
        "linear_onecycle_schedule: ends too low",
        "schedules/joined.py",
        "transition_steps: 1 / final_div_factor,",
        "transition_steps: 1 / (div_factor * final_div_factor),",
        EVERY_COUNT,
    ),
    mutant(
        "cosine_onecycle_schedule: ends too high",
        "schedules/joined.py",
        "transition_steps: 1 / (div_factor * final_div_factor)}",
        "transition_steps: 1 / final_div_factor}",
        EVERY_COUNT,
    ),
    mutant(
        "sgdr_schedule: restarts an update early",
        "schedules/joined.py",
        "in cosine_kwargs], ends[:-1])",
        "in cosine_kwargs], [end - 1 for end in ends[:-1]])",
        EVERY_COUNT,
    ),
    # --- trees
    mutant(
        "pointwise: a group of several dtypes",
        "elementwise.py",
        "if i > start and (total > limit or (kinds and kinds[i] != kinds[i - 1])):",
        "if i > start and total > limit:",
        "test_batch.py::test_a_group_ends_at_its_limit_and_at_another_dtype",
    ),
    mutant(
        "pointwise: an outer scalar promotes a 0-dim leaf",
        "elementwise.py",
        "if not isinstance(row[0], Tensor) or row[0].dim():",
        "if not isinstance(row[0], Tensor) or row[0].dim() >= 0:",
        "test_batch.py::test_a_scalar_tensor_from_outside_never_promotes_a_leaf",
    ),
    mutant(
        "pointwise: pieces of formulas that are not exact",
        "elementwise.py",
        "names_of(f, [x.view(-1)[:1] for x in row]) <= EXACT",
        '"not elementwise" not in names_of(f, [x.view(-1)[:1] for x in row])',
        "test_elementwise.py::test_pieces_are_for_exact_formulas",
    ),
    mutant(
        "pointwise: the first piece is the second too",
        "elementwise.py",
        'place.copy_(cast("Tensor", f(*piece)))',
        "place.copy_(first[: place.numel()])",
        "test_elementwise.py::test_a_formula_of_pieces_is_bitwise_the_formula_of_the_leaf",
    ),
    mutant(
        "batch: a subtraction turned round",
        "batch.py",
        "return _each(Tensor.__rsub__, (self, other), {})",
        "return _each(Tensor.sub, (self, other), {})",
        "test_batch.py::test_the_order_of_operands_is_kept",
    ),
    mutant(
        "batch: a half-precision scalar on the left is taken for one on the right",
        "batch.py",
        "WHOLE = frozenset({torch.float32, torch.float64})",
        "WHOLE = frozenset({torch.float32, torch.float64, torch.bfloat16})",
        "test_batch.py::test_the_order_of_operands_is_kept",
    ),
    mutant(
        "batch: integers are promoted as foreach does it",
        "batch.py",
        "if not leaf.is_floating_point() or (name in OWN_ROUNDING",
        "if (name in OWN_ROUNDING",
        "test_batch.py::test_the_order_of_operands_is_kept",
    ),
    mutant(
        "batch: a larger tensor from outside the formula is one for every leaf",
        "batch.py",
        "    if x.dim():\n",
        "    if x.dim() < 0:\n",
        "test_batch.py::test_a_formula_that_is_not_elementwise_is_the_loop",
    ),
    mutant(
        "batch: any function is elementwise",
        "batch.py",
        "if name not in ELEMENTWISE:",
        "if name in ():",
        "test_batch.py::test_a_formula_that_is_not_elementwise_is_the_loop",
    ),
    mutant(
        "paths: two names have one key",
        "paths.py",
        r"""escaped = entry.name.replace("\\", "\\\\").replace(".", r"\.")""",
        r"""escaped = entry.name.replace(".", r"\.")""",
        "test_paths.py::test_distinct_paths_have_distinct_keys",
    ),
    mutant(
        "holes: what has the shape of the gradients is taken for what has the shape of the parameters",
        "holes.py",
        "if fits(state, whole):",
        "if fits(state, like):",
        "test_holes.py::test_a_state_that_looks_like_the_parameters_is_not_taken_for_them",
    ),
    mutant(
        "record: a schedule made by another prints as that one",
        "record.py",
        "self.function, self.spec = function, spec",
        'self.function = function\n        self.__dict__.setdefault("spec", spec)',
        "test_base.py::test_a_function_that_a_factory_makes_prints_as_the_outermost_call",
    ),
    mutant(
        "pointwise: shapes that broadcast correspond",
        "tree.py",
        "_blame(tree, columns)  # (1, 3) and (3, 1) broadcast to more",
        "pass",
        "test_tree.py::test_leaves_of_another_shape_are_a_mismatch_even_where_torch_would_broadcast",
    ),
    mutant(
        "tree: leaves of dicts in another order do not meet by name",
        "tree.py",
        'return [cast("Tensor", there[path]) for path in here]',
        'return [cast("Tensor", x) for x in there.values()]',
        "test_tree.py::test_dicts_correspond_whatever_the_order_of_their_keys",
    ),
    mutant(
        "tree.norm: the sum of the norms",
        "tree.py",
        "torch.linalg.vector_norm(torch.cat([x.reshape(1) for x in norms]))",
        "torch.cat([x.reshape(1) for x in norms]).sum()",
        "test_tree.py::test_the_norm_is_that_of_all_numbers_in_one_vector",
    ),
)

THE_STEP = (
    mutant(
        "accumulation: the mean of means",
        "window.py",
        "share = new.weight / torch.where(weight == 0, torch.ones_like(weight), weight)",
        "share = 1 / (acc.pieces + 1)",
        "test_accumulation.py::test_weights_7_1_3_0_are_one_batch_of_11",
    ),
    mutant(
        "loss: a mean weighs one, whatever its batch",
        "loss.py",
        "torch.full_like(mean, length(batch), requires_grad=False)",
        "torch.full_like(mean, 1, requires_grad=False)",
        TRAINER + "test_a_window_weighs_its_batches_by_their_length",
    ),
    mutant(
        "loss: a gradient through the weight",
        "loss.py",
        'scalar("loss: the weight", out[1]).detach().to(total)',
        'scalar("loss: the weight", out[1]).to(total)',
        "test_loss.py::test_the_weight_is_detached_and_the_sum_is_not",
    ),
    mutant(
        "accumulation: buffers start anew with each micro-batch",
        "step.py",
        "state.buffers if acc is None else acc.buffers)",
        "state.buffers)",
        "test_accumulation.py::test_buffers_chain_through_the_micro_batches",
    ),
    mutant(
        "step: micro-batches share their masks",
        "step.py",
        "with self.randomness(state, 0 if acc is None or mapped() else int(acc.pieces)):",
        "with self.randomness(state, 0):",
        "test_accumulation.py::test_each_micro_batch_draws_its_own_masks_and_the_same_every_time",
    ),
    mutant(
        "step: updates share their masks",
        "step.py",
        "seeded(int(state.seed), int(state.step), piece,",
        "seeded(int(state.seed), 0, piece,",
        STEP + "test_masks_are_a_function_of_seed_and_step_alone",
    ),
    mutant(
        "seeding: generators stay where it left them",
        "seeding.py",
        "            generator.set_state(state)",
        "            pass",
        STEP + "test_the_step_leaves_global_generators_as_it_found_them",
    ),
    mutant(
        "step: clipping upside down",
        "step.py",
        "torch.where(norm > limit, limit / norm, torch.ones_like(norm))",
        "torch.where(norm > limit, norm / limit, torch.ones_like(norm))",
        STEP + "test_a_gradient_over_the_limit_is_scaled_down_to_it",
    ),
    mutant(
        "step: the update is clipped, not the gradient",
        "step.py",
        "updates, opt_state = self.tx.update(grads, state.opt_state, state.params, **needed)\n",
        "updates, opt_state = self.tx.update(acc.grads, state.opt_state, state.params, **needed)\n"
        "        if self.max_grad_norm is not None:\n"
        "            updates = tree.pointwise(lambda u: u * factor, updates)\n",
        STEP + "test_adamw_with_clipping_is_torchs_loop",
    ),
    mutant(
        "loss scale: gradients keep it",
        "window.py",
        "grads = tree.pointwise(lambda g: g / factor, grads)",
        "grads = tree.pointwise(lambda g: g, grads)",
        PRECISION + "test_norm_loss_and_update_do_not_depend_on_the_scale",
    ),
    mutant(
        "step: a skipped update moves the moments",
        "step.py",
        "opt_state, params, buffers = state.opt_state, state.params, state.buffers",
        "opt_state, params, buffers = self.updated(state, acc, norm, extra)[1], state.params, state.buffers",
        SKIP + "test_a_gradient_that_is_not_finite_changes_nothing_but_the_guard",
    ),
    mutant(
        "step: a skipped update moves the buffers",
        "step.py",
        "opt_state, params, buffers = state.opt_state, state.params, state.buffers",
        "opt_state, params, buffers = state.opt_state, state.params, acc.buffers",
        SKIP + "test_a_gradient_that_is_not_finite_changes_nothing_but_the_guard",
    ),
    mutant(
        "step: under torch.func a skip is applied",
        "step.py",
        "torch.where(ok, new, old), new, old)",
        "torch.where(ok | True, new, old), new, old)",
        SKIP + "test_a_skip_under_torch_func_is_a_skip",
    ),
    mutant(
        "step: a loss that is not finite goes through",
        "step.py",
        "finite = torch.isfinite(norm) & torch.isfinite(acc.loss)",
        "finite = torch.isfinite(norm)",
        SKIP + "test_a_loss_that_is_not_finite_is_a_skip_though_its_gradient_is",
    ),
    mutant(
        "step: a skipped update is not counted as an attempt",
        "step.py",
        "return new._replace(step=state.step + 1), metrics",
        'return new._replace(step=state.step + 1 - metrics["skipped"]), metrics',
        SKIP + "test_schedules_count_applied_updates_and_the_step_counts_attempts",
    ),
    mutant(
        "loss scale: grows an update late",
        "step.py",
        "grown = good >= GROWTH_INTERVAL",
        "grown = good > GROWTH_INTERVAL",
        PRECISION + "test_the_scale_doubles_after_the_growth_interval",
    ),
    mutant(
        "loss scale: an overflow leaves it",
        "step.py",
        "torch.where(grown, twice, guard.scale), guard.scale / 2)",
        "torch.where(grown, twice, guard.scale), guard.scale)",
        PRECISION + "test_an_overflow_halves_the_scale_and_changes_nothing_else",
    ),
    mutant(
        "loss scale: grows to infinity",
        "step.py",
        "twice = torch.where(torch.isfinite(guard.scale * 2), guard.scale * 2, guard.scale)",
        "twice = guard.scale * 2",
        PRECISION + "test_the_scale_never_grows_to_infinity",
    ),
    mutant(
        "per example: the norm of the sum is shown, not of the mean",
        "step.py",
        "tree.map(lambda g: g.mean(0), acc.grads)",
        "tree.map(lambda g: g.sum(0), acc.grads)",
        "test_per_example.py::test_a_rule_that_clips_each_and_takes_the_mean_is_its_loop",
    ),
    mutant(
        "state: shares the module's memory",
        "state.py",
        "return x.clone() if isinstance(x, Tensor) and copy else x",
        "return x",
        STEP + "test_create_copies_and_cuts_from_the_module",
    ),
    mutant(
        "gradient: autograd where a caller differentiates",
        "gradient.py",
        "return torch.is_grad_enabled() and any(",
        "return False and any(",
        "test_gradient.py::test_auto_is_torch_func_where_an_argument_requires_grad",
    ),
    mutant(
        "gradient: autograd inside autograd",
        "gradient.py",
        "if functional() or _inside.get() or",
        "if functional() or",
        "test_gradient.py::test_auto_is_torch_func_inside_itself",
    ),
    mutant(
        "gradient: checkpointing in a plain function is let through",
        "gradient.py",
        "            if opaque:\n",
        "            if not opaque:\n",
        "test_traps.py::test_checkpointing_inside_a_plain_function_is_refused",
    ),
    mutant(
        "gradient: the weights are swapped back before the backward pass",
        "gradient.py",
        "        out = evaluate(batch)\n        (grads,)",
        "        out = evaluate(batch)\n    with _autograd(loss.opaque):\n        (grads,)",
        "test_traps.py::test_a_step_with_checkpointing_is_a_step_without",
    ),
    mutant(
        "modules: the caller's buffers are written to",
        "bridge/modules.py",
        "**{name: x.clone() for name, x in _flat(buffers).items()}",
        "**_flat(buffers)",
        "test_modules.py::test_apply_changes_neither_the_module_nor_its_arguments",
    ),
    mutant(
        "modules: a tied weight is swapped in one of its places",
        "bridge/modules.py",
        "                for place in here:\n                    place.put(given[name])",
        "                for place in here[:1]:\n                    place.put(given[name])",
        "test_traps.py::test_a_tied_weight_is_one_parameter_whose_gradient_is_the_sum",
    ),
    mutant(
        "modules: the training flag stays changed",
        "bridge/modules.py",
        "                m.training = flag\n",
        "                m.training = bool(self._training)\n",
        "test_modules.py::test_eval_is_a_view_in_eval_mode",
    ),
    mutant(
        "jit: a donated state is taken again",
        "donation.py",
        "if mark is not None and mark() is tensor:",
        "if mark is not None and mark() is not tensor:",
        "test_donation.py::test_a_donated_state_is_refused_at_every_entry",
    ),
    mutant(
        "jit: one tensor in two places is donated twice",
        "compile.py",
        "                state = unshared(state)  # a state",
        "                pass  # a state",
        "test_donation.py::test_a_state_with_one_tensor_in_two_places_is_parted_before_it_is_written_to",
    ),
)

RUNS = (
    mutant(
        "checkpoint: the seal is not compared",
        "durable.py",
        "if file.read() != _COMMENT + digest.hexdigest().encode():",
        "if not file.read().startswith(_COMMENT):",
        "test_checkpoint.py::test_one_changed_bit_anywhere_is_an_error",
    ),
    mutant(
        "checkpoint: a file is renamed without being read back",
        "durable.py",
        "            if check:\n",
        "            if check and False:\n",
        "test_checkpoint.py::test_what_is_written_wrong_is_found_before_the_old_file_goes",
    ),
    mutant(
        "checkpoint: written in place",
        "durable.py",
        'temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")',
        "temporary = path",
        "test_checkpoint.py::test_a_full_disk_is_one_error_and_leaves_the_old_file",
    ),
    mutant(
        "checkpoint: shapes and dtypes are not compared",
        "checkpoint.py",
        "if _describe(found) != _describe(wanted):",
        "if type(found) is not type(wanted):",
        "test_checkpoint.py::test_each_misfit_names_the_first_leaf",
    ),
    mutant(
        "checkpoint: code in a file runs",
        "checkpoint.py",
        'map_location="cpu", weights_only=True',
        'map_location="cpu", weights_only=False',
        "test_checkpoint.py::test_no_code_in_a_file_runs",
    ),
    mutant(
        "checkpoint: the newest by name, not by number",
        "checkpoint.py",
        "(int(match[1]), path) for path in where",
        "(match[1], path) for path in where",
        "test_checkpoint.py::test_latest_is_the_newest_by_number_that_verifies",
    ),
    mutant(
        "trainer: a short last window is dropped",
        "run/recipe.py",
        "    if acc is None:\n        return state, {}",
        "    if acc is None or acc.pieces == 2:\n        return state, {}",
        TRAINER + "test_ten_batches_in_windows_of_four_move_the_weight_by_exactly_three",
    ),
    mutant(
        "trainer: a window goes on into the next epoch",
        "run/feed.py",
        "                return\n            self._fetched += 1",
        "                self._begin()\n                batch = self._fetch()\n            self._fetched += 1",
        TRAINER + "test_no_gradient_crosses_an_epochs_end",
    ),
    mutant(
        "resume: the epoch is replayed from other random numbers",
        "run/feed.py",
        "            restore(place.begun, self._sources)\n",
        "",
        RESUME + "test_stopped_after_any_update_and_resumed_is_not_stopped",
    ),
    mutant(
        "resume: the streams go on from the replay",
        "run/feed.py",
        "        restore(place.now, self._sources)\n",
        "",
        RESUME + "test_stopped_after_any_update_and_resumed_is_not_stopped",
    ),
    mutant(
        "resume: one batch too few is passed over",
        "run/feed.py",
        "for i in range(place.consumed):",
        "for i in range(place.consumed - 1):",
        RESUME + "test_resumed_twice_in_an_epoch_is_resumed_once",
    ),
    mutant(
        "validation: NaN is the best",
        "run/progress.py",
        "better = loss < self.best",
        "better = not loss >= self.best",
        TRAINER + "test_the_best_is_never_nan_and_of_equal_ones_the_first",
    ),
    mutant(
        "validation: of equal ones the last is the best",
        "run/progress.py",
        "better = loss < self.best",
        "better = loss <= self.best",
        TRAINER + "test_the_best_is_never_nan_and_of_equal_ones_the_first",
    ),
    mutant(
        "validation: in training mode",
        "run/evaluation.py",
        "casts(loss.eval(), chosen)",
        "casts(loss, chosen)",
        TRAINER + "test_validation_is_sum_over_weight_of_the_module_in_eval_mode",
    ),
    mutant(
        "validation: random streams go on from it",
        "run/evaluation.py",
        "            restore(before, sources)",
        "            pass",
        TRAINER + "test_validation_leaves_no_trace",
    ),
    mutant(
        "trainer: an update that is not finite is no error",
        "run/journal.py",
        "if not self.strict or not unread:",
        "if self.strict or not unread:",
        TRAINER + "test_a_loss_that_is_not_finite_is_an_error_at_the_next_look",
    ),
    mutant(
        "trainer: the checkpoint that it was resumed from is rotated away",
        "run/directory.py",
        "if self._protected is None or not os.path.samestat(path.stat(), self._protected):",
        "if self._protected is None or path:",
        TRAINER + "test_rotation_goes_by_number_and_spares_the_best_and_the_one_resumed_from",
    ),
)

MUTANTS = RULES + AROUND_RULES + THE_STEP + RUNS


# --- running them


def copy_tree(place: Path) -> None:
    """Copy what git keeps or would keep of the working tree."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # what is deleted and not yet committed is listed too
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, place / name)


def start(place: Path, killers: Sequence[str], log: Path) -> int:
    """Run these tests in a copy, to the first failure: the id of a forked process whose exit status is pytest's.

    It has what takes seconds to import, and nothing of functrain.
    """
    if child := os.fork():
        return child
    status = BROKEN
    try:
        signal.alarm(PATIENCE)  # ends the process
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(place)
        os.environ["PYTHONPATH"] = sys.path[0] = str(place)  # in place of tests/, where this program lies
        import functrain

        if Path(functrain.__file__).parent != place / "functrain":
            raise ImportError(f"the copy imports {functrain.__file__}, not its own")
        options = ["-x", "-q", "-p", "no:cacheprovider", "--assert=plain"]  # rewriting asserts would take seconds
        status = pytest.main([*options, *(f"tests/{killer}" for killer in killers)])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


class Job(NamedTuple):
    """Tests that run."""

    mutant: Mutant | None  # None: the source as it is
    place: Path  # the copy
    source: str  # of the file, before the fault
    began: float


def plant(mutant: Mutant, place: Path) -> str:
    """Put the fault in. The source as it was, or "" where the fault has no place."""
    path = place / "functrain" / mutant.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        return ""
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    return source


def verdict(mutant: Mutant | None, status: int) -> str:
    """What an exit status says of a fault, or of the source without one."""
    if os.WIFSIGNALED(status):
        return "HANGS" if os.WTERMSIG(status) == signal.SIGALRM else "CRASHED"
    code = os.waitstatus_to_exitcode(status)
    if mutant is None:
        return "passed" if code == PASSED else "FAILED"
    return {PASSED: "SURVIVED", FAILED: "killed"}.get(code, "BROKEN")


def run_all(places: Sequence[Path], mutants: Iterable[tuple[Mutant | None, Sequence[str]]]) -> Iterator[bool]:
    """Run the tests beside each mutant, one in each place at a time: whether each ended well, in no order."""
    free, running, waiting = list(places), dict[int, Job](), list(mutants)[::-1]
    while waiting or running:
        while waiting and free:
            mutant, killers = waiting.pop()
            place, began = free.pop(), time.monotonic()
            source = plant(mutant, place) if mutant else ""
            if mutant and not source:
                print(f"NOT FOUND exactly once  {mutant.file}: {mutant.fault}", flush=True)
                free.append(place)
                yield False
                continue
            running[start(place, killers, place / "mutant.log")] = Job(mutant, place, source, began)
        if running:
            child, status = os.wait()
            mutant, place, source, began = running.pop(child)
            word = verdict(mutant, status)
            told = f"{mutant.file}: {mutant.fault}" if mutant else "the tests without any fault"
            print(f"{word:8} {time.monotonic() - began:6.1f} s  {told}", flush=True)
            if word not in ("passed", "killed"):
                print((place / "mutant.log").read_text(encoding="utf-8", errors="replace")[-4000:], flush=True)
            if mutant:
                (place / "functrain" / mutant.file).write_text(source, encoding="utf-8")
            free.append(place)
            yield word in ("passed", "killed")


def main() -> int:
    """Run all; 0 if every fault was noticed."""
    began = time.monotonic()
    sys.dont_write_bytecode = True
    os.environ |= {
        "HYPOTHESIS_PROFILE": "mutants",
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": "1",
        # A mutant may have the size and the second of the file before it, which is all that bytecode is told by.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for slow in ("torch", "torch._dynamo", "jax", "optax", "mpmath", "hypothesis.strategies"):
        importlib.import_module(slow)
    gc.freeze()
    # jax has no thread yet: it starts them when it first computes.
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)

    with tempfile.TemporaryDirectory(prefix="functrain-mutants-") as directory:
        places = [Path(directory).resolve() / str(i) for i in range(AT_ONCE)]
        for place in places:
            place.mkdir()
            copy_tree(place)
        killers = sorted({killer for mutant in MUTANTS for killer in mutant.killers})
        if not all(list(run_all(places, [(None, killers[i::AT_ONCE]) for i in range(AT_ONCE)]))):
            return 1
        killed = sum(run_all(places, [(mutant, mutant.killers) for mutant in MUTANTS]))
    print(f"{killed} of {len(MUTANTS)} faults were noticed, in {time.monotonic() - began:.0f} s")
    return 0 if killed == len(MUTANTS) else 1


if __name__ == "__main__":
    sys.exit(main())
