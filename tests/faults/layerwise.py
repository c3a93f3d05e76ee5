"""Faults in rules of Optax that look at a leaf as a whole, keep rows and columns, or average points."""

from tests.faults import mutant, optax

RULES, FACTORED = "transforms/test_layerwise.py::", "transforms/test_factored.py::"
AVERAGE, NAMED = "combinators/test_average.py::", "optimizers/test_layerwise.py::"
SPELLED = NAMED + "test_an_alias_is_the_chain_that_it_names_bit_for_bit"
AVERAGED = "optimizers/test_averaged.py::test_an_alias_is_the_transformation_that_it_names_bit_for_bit"

FAULTS = (
    # --- whole leaves
    mutant(
        "trust ratio: upside down",
        "transforms/layerwise.py",
        "size, step = norm(p).clamp(min=min_norm), norm(g).clamp(min=min_norm)",
        "size, step = norm(g).clamp(min=min_norm), norm(p).clamp(min=min_norm)",
        RULES + "test_the_trust_ratio_by_hand",
    ),
    mutant(
        "trust ratio: a leaf of zeros stays at zero",
        "transforms/layerwise.py",
        "none = (size == 0) | (step == 0)",
        "none = step == 0",
        RULES + "test_the_update_of_every_leaf_has_the_norm_of_the_leaf_times_the_coefficient",
    ),
    mutant(
        "trust ratio: a zero is divided by before it is left out",
        "transforms/layerwise.py",
        "g / torch.where(none, 1.0, step + eps)",
        "g / (step + eps)",
        RULES + "test_derivatives_of_the_trust_ratio_are_finite_at_zero",
    ),
    mutant(
        "trust ratio: the factor is computed first",
        "transforms/layerwise.py",
        "torch.where(none, g, direction * (trust_coefficient * size))",
        "torch.where(none, g, g * (trust_coefficient * size / torch.where(none, 1.0, step + eps)))",
        RULES + "test_a_ratio_beyond_the_dtype_is_no_infinity",
    ),
    mutant(
        "block rms: the norm in its place",
        "transforms/layerwise.py",
        "return g * rms(p).clamp(min=min_scale)",
        "return g * norm(p).clamp(min=min_scale)",
        RULES + "test_the_block_rms_by_hand",
    ),
    mutant(
        "novograd: the mean square begins at zero",
        "transforms/layerwise.py",
        "torch.where(first, s, b2 * n + (1 - b2) * s)",
        "b2 * n + (1 - b2) * s",
        RULES + "test_novograd_by_hand",
    ),
    mutant(
        "novograd: the new gradient weighs 1 - β₁",
        "transforms/layerwise.py",
        "b1 * m + d + weight_decay * p",
        "b1 * m + (1 - b1) * d + weight_decay * p",
        optax("scale_by_novograd"),
    ),
    mutant(
        "novograd: norms in half precision",
        "transforms/layerwise.py",
        "square = tree.map(square_of_norm, g)",
        "square = tree.map(square_of_norm, updates)",
        RULES + "test_norms_of_half_precision_leaves_do_not_overflow",
    ),
    # --- rows and columns
    mutant(
        "factored rms: rows and columns swapped",
        "transforms/factored.py",
        "r, c = row.unsqueeze(first), column.unsqueeze(second)",
        "r, c = row.unsqueeze(second), column.unsqueeze(first)",
        FACTORED + "test_a_factored_mean_square_by_hand",
    ),
    mutant(
        "factored rms: the mean is left out",
        "transforms/factored.py",
        "return root(r / mean) * root(c)",
        "return root(r) * root(c)",
        FACTORED + "test_a_factored_mean_square_by_hand",
    ),
    mutant(
        "factored rms: β and 1 - β swapped",
        "transforms/factored.py",
        "beta * v + (1 - beta) * s",
        "(1 - beta) * v + beta * s",
        FACTORED + "test_a_mean_square_that_is_not_factored_by_hand",
    ),
    mutant(
        "factored rms: the largest dimension decides",
        "transforms/factored.py",
        "x.shape[largest(x.shape)[1]] >= min_dim_size_to_factor",
        "x.shape[largest(x.shape)[0]] >= min_dim_size_to_factor",
        FACTORED + "test_two_numbers_short_of_a_matrix",
    ),
    mutant(
        "factored rms: the offset is added",
        "transforms/factored.py",
        "state.count - step_offset",
        "state.count + step_offset",
        FACTORED + "test_the_offset_is_left_out_of_t",
    ),
    mutant(
        "factored rms: a missing gradient is a mismatch",
        "transforms/factored.py",
        "seen = punch(old, new)",
        "seen = old",
        FACTORED + "test_a_leaf_without_a_gradient_keeps_its_rows_and_columns",
    ),
    mutant(
        "decay of Adafactor: in float32",
        "transforms/factored.py",
        "(i.to(wide(i.device)) + 1) ** -exponent",
        "(i.float() + 1) ** -exponent",
        FACTORED + "test_the_decay_is_one_minus_a_power_of_t_in_float64",
    ),
    # --- averages of points
    mutant(
        "schedule-free: the average moves before the point",
        "combinators/average.py",
        "(1 - c) * x + c * z, x, z)",
        "(1 - c) * x + c * z, x, state.z)",
        AVERAGE + "test_schedule_free_by_hand",
    ),
    mutant(
        "schedule-free: gradients are taken at the wrong end",
        "combinators/average.py",
        "b1 * x + (1 - b1) * z - y, x, z, y)",
        "b1 * z + (1 - b1) * x - y, x, z, y)",
        AVERAGE + "test_the_evaluation_parameters_are_the_mean_of_all_z_weighed_by_the_greatest_rate_so_far",
    ),
    mutant(
        "schedule-free: the last rate weighs, not the greatest",
        "combinators/average.py",
        "max_lr = torch.maximum(state.max_lr, value_at(where, rate, state.step_count))",
        "max_lr = value_at(where, rate, state.step_count)",
        AVERAGE + "test_the_evaluation_parameters_are_the_mean_of_all_z_weighed_by_the_greatest_rate_so_far",
    ),
    mutant(
        "schedule-free: the point is the parameters themselves",
        "combinators/average.py",
        "p.to(state_dtype or p.dtype, copy=True)",
        "p.to(state_dtype or p.dtype)",
        AVERAGE + "test_the_state_shares_no_memory_with_the_parameters",
    ),
    mutant(
        "schedule-free: no weight at all is divided by",
        "combinators/average.py",
        "torch.where(weight_sum == 0, 1.0, weight_sum)",
        "weight_sum",
        AVERAGE + "test_a_rate_of_zero_weighs_nothing",
    ),
    # --- optimizers
    mutant(
        "lamb: decay after the trust ratio",
        "optimizers/layerwise.py",
        "        add_decayed_weights(weight_decay, mask),\n        scale_by_trust_ratio(),\n",
        "        scale_by_trust_ratio(),\n        add_decayed_weights(weight_decay, mask),\n",
        NAMED + "test_every_leaf_of_lamb_moves_by_the_rate_times_its_norm",
    ),
    mutant(
        "lars: momentum before the trust ratio",
        "optimizers/layerwise.py",
        "        scale_by_learning_rate(learning_rate),\n        trace(momentum, nesterov),\n",
        "        trace(momentum, nesterov),\n        scale_by_learning_rate(learning_rate),\n",
        optax("lars/masks"),
    ),
    mutant(
        "lars: the wrong mask",
        "optimizers/layerwise.py",
        "eps=eps), trust_ratio_mask)",
        "eps=eps), weight_decay_mask)",
        SPELLED + "[lars]",
    ),
    mutant(
        "novograd: its decay is lost",
        "optimizers/layerwise.py",
        "scale_by_novograd(b1, b2, eps, eps_root, weight_decay)",
        "scale_by_novograd(b1, b2, eps, eps_root)",
        SPELLED + "[novograd]",
    ),
    mutant(
        "adafactor: decay times the rate",
        "optimizers/layerwise.py",
        "scale(-1.0),",
        "scale(-learning_rate if isinstance(learning_rate, float) else -1.0),",
        NAMED + "test_the_decay_of_adafactor_is_not_multiplied_by_the_rate",
    ),
    mutant(
        "adafactor: no threshold",
        "optimizers/layerwise.py",
        "identity() if clipping_threshold is None else clip_by_block_rms(clipping_threshold)",
        "identity()",
        NAMED + "test_no_update_of_adafactor_is_larger_than_its_threshold_relative_to_the_leaf",
    ),
    mutant(
        "schedule-free AdamW: ν is not corrected",
        "optimizers/averaged.py",
        "scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)",
        "scale_by_rms(b2, eps, eps_in_sqrt=False)",
        AVERAGED + "[adamw]",
    ),
    mutant(
        "schedule-free SGD: the weights have no warmup",
        "optimizers/averaged.py",
        "chain(decay, scale_by_learning_rate(rate)), rate, b1",
        "chain(decay, scale_by_learning_rate(rate)), learning_rate, b1",
        AVERAGED + "[sgd]",
    ),
)
