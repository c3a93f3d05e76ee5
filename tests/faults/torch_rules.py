"""Faults in the rules that compute what torch.optim computes."""

from tests.faults import mutant

ADAPTIVE, STEPS = "transforms/torch_adaptive.py", "transforms/torch_steps.py"
CLAIMS, CLAIMS_OF_STEPS = "transforms/test_torch_adaptive.py::", "transforms/test_torch_steps.py::"
CLAIMS_OF_DECAY = "transforms/test_decay.py::"
BESIDE = "transforms/test_against_torch.py::"


def torch(entry: str) -> str:
    """The test that compares an entry of the catalogue with torch.optim."""
    return f"test_catalogue.py::test_30_updates_agree_with_torch[torch.float64-1e-10-any-{entry}]"


FAULTS = (
    # --- AMSGrad
    mutant(
        "amsgrad: the greatest is forgotten",
        ADAPTIVE,
        "nu_max = tree.pointwise(torch.maximum, state.nu_max, tree.cast_like(nu, state.nu_max))",
        "nu_max = tree.cast_like(nu, state.nu_max)",
        CLAIMS + "test_the_greatest_mean_square_never_falls_and_is_one_that_adam_has_had",
        torch("scale_by_torch_amsgrad"),
    ),
    mutant(
        "amsgrad: the least instead of the greatest",
        ADAPTIVE,
        "tree.pointwise(torch.maximum, ",
        "tree.pointwise(torch.minimum, ",
        CLAIMS + "test_amsgrad_is_adam_bit_for_bit_while_gradients_double",
    ),
    mutant(
        "amsgrad: the greatest is not corrected",
        ADAPTIVE,
        "(m / c1) / (root(v / c2) + eps), mu, nu_max)",
        "(m / c1) / (root(v) + eps), mu, nu_max)",
        CLAIMS + "test_amsgrad_by_hand",
    ),
    # --- NAdam
    mutant(
        "nadam: the product does not look ahead",
        ADAPTIVE,
        "ahead / (1 - product.to(ahead.dtype) * ahead)",
        "ahead / (1 - product.to(ahead.dtype))",
        CLAIMS + "test_of_a_constant_gradient_nadam_is_its_sign_times_two_weights",
    ),
    mutant(
        "nadam: the gradient has the next momentum",
        ADAPTIVE,
        "(1 - now) / (1 - product.to(now.dtype))",
        "(1 - ahead) / (1 - product.to(now.dtype))",
        torch("scale_by_torch_nadam"),
    ),
    mutant(
        "nadam: the product is rounded once, after it is computed in float64",
        ADAPTIVE,
        "product = state.mu_product * now.to(state.mu_product.dtype)",
        "product = (state.mu_product * now).to(state.mu_product.dtype)",
        BESIDE + "test_with_weight_decay_and_maximize_around_it_it_agrees_and_so_does_its_state[0.0-False-nadam]",
    ),
    mutant(
        "nadam: the momentum falls",
        ADAPTIVE,
        "b1 * (1 - 0.5 * 0.96 **",
        "b1 * (0.5 + 0.5 * 0.96 **",
        CLAIMS + "test_the_momentum_grows_from_half_of_b1_and_stays_under_it",
    ),
    # --- RAdam
    mutant(
        "radam: trusted from 4 on, as in the paper",
        ADAPTIVE,
        "trusted = rho > 5",
        "trusted = rho > 4",
        CLAIMS + "test_the_first_five_steps_of_radam_are_plain_momentum",
        CLAIMS + "test_the_rectification_is_right_and_begins_where_rho_passes_5",
    ),
    mutant(
        "radam: ν is not corrected",
        ADAPTIVE,
        "torch.where(trusted, r * c2.sqrt(), 1.0)",
        "torch.where(trusted, r, 1.0)",
        CLAIMS + "test_the_sixth_step_of_radam_is_rectified",
    ),
    mutant(
        "radam: a root of what is negative in the branch that is not taken",
        ADAPTIVE,
        "rho, rho_inf = (torch.where(trusted, x, 6.0) for x in (rho, rho_inf))",
        "rho = rho + 0",
        CLAIMS + "test_radam_has_finite_derivatives_in_the_branch_that_it_does_not_take",
    ),
    mutant(
        "radam: divided by the root mean square before that is trusted",
        ADAPTIVE,
        "m * factor / torch.where(trusted, root(v) + eps, 1.0)",
        "m * factor / (root(v) + eps)",
        CLAIMS + "test_the_first_five_steps_of_radam_are_plain_momentum",
    ),
    # --- Adagrad
    mutant(
        "adagrad: the rate falls from the first update on",
        ADAPTIVE,
        "slower = 1 + state.count.to(",
        "slower = 1 + increment(state.count).to(",
        CLAIMS + "test_adagrad_by_hand",
    ),
    mutant(
        "adagrad: ε under the root",
        ADAPTIVE,
        "g / (root(s) + eps) / slower",
        "g / root(s, eps) / slower",
        torch("scale_by_torch_adagrad/all arguments"),
    ),
    mutant(
        "adagrad: the sum begins at zero",
        ADAPTIVE,
        "squares_like(params, initial_accumulator_value)",
        "squares_like(params)",
        CLAIMS + "test_adagrad_by_hand",
    ),
    # --- momentum
    mutant(
        "torch_trace: the first gradient is dampened too",
        STEPS,
        "(state.count > 0)",
        "(state.count >= 0)",
        CLAIMS_OF_STEPS + "test_dampened_momentum_by_hand",
    ),
    mutant(
        "torch_trace: Nesterov looks ahead from the wrong end",
        STEPS,
        "u = tree.pointwise(lambda g, m: g + decay * m, g, m) if nesterov else m",
        "u = tree.pointwise(lambda g, m: m + decay * g, g, m) if nesterov else m",
        CLAIMS_OF_STEPS + "test_dampened_momentum_by_hand",
    ),
    # --- Rprop
    mutant(
        "rprop: it shrinks where the sign stays",
        STEPS,
        "torch.where(same > 0, d * plus, torch.where(same < 0, d * minus, d))",
        "torch.where(same < 0, d * plus, torch.where(same > 0, d * minus, d))",
        CLAIMS_OF_STEPS + "test_rprop_by_hand",
    ),
    mutant(
        "rprop: it steps where the sign turned",
        STEPS,
        "torch.where(same < 0, 0.0, g)",
        "torch.where(same < 0, g, g)",
        CLAIMS_OF_STEPS + "test_where_the_sign_turns_there_is_no_step_and_the_next_is_eta_minus_as_long",
    ),
    mutant(
        "rprop: the product of two gradients underflows",
        STEPS,
        "return torch.sgn(g) * torch.sgn(prev)",
        "return torch.sgn(g * prev)",
        CLAIMS_OF_STEPS + "test_a_step_grows_by_eta_plus_while_its_sign_stays",
    ),
    mutant(
        "rprop: no least step",
        STEPS,
        "grown.clamp_min(least).clamp_max(greatest)",
        "grown.clamp_max(greatest)",
        CLAIMS_OF_STEPS + "test_a_step_stays_between_the_least_and_the_greatest",
    ),
    # --- ASGD
    mutant(
        "asgd: the rate falls by λ t, not λ γ t",
        STEPS,
        "(1 + lambd * learning_rate * rate_t) ** alpha",
        "(1 + lambd * rate_t) ** alpha",
        CLAIMS_OF_STEPS + "test_asgd_by_hand",
    ),
    mutant(
        "asgd: the average lags two steps",
        STEPS,
        "1 / (float_t - t0).clamp_min(1.0)",
        "1 / (float_t - 1 - t0).clamp_min(1.0)",
        CLAIMS_OF_STEPS + "test_the_average_is_the_mean_of_the_parameters_from_step_t0_plus_2_on",
    ),
    mutant(
        "asgd: it averages the parameters before the update",
        STEPS,
        "after = tree.upcast(apply_updates(params, u))",
        "after = tree.upcast(params)",
        CLAIMS_OF_STEPS + "test_the_average_is_the_mean_of_the_parameters_from_step_t0_plus_2_on",
    ),
    mutant(
        "asgd: the rate is kept in float64",
        STEPS,
        "dtype=torch.get_default_dtype(), device=count.device)",
        "dtype=torch.float64, device=count.device)",
        BESIDE + "test_with_weight_decay_and_maximize_around_it_it_agrees_and_so_does_its_state[0.0-False-asgd]",
    ),
    # --- decay behind the rate
    mutant(
        "shrink_weights: the gradient is shrunk too",
        "transforms/decay.py",
        "g + (p * keep - p)",
        "(g + p) * keep - p",
        CLAIMS_OF_DECAY + "test_shrinking_is_the_same_whatever_the_gradient",
        torch("shrink_weights"),
    ),
    mutant(
        "shrink_weights: r p is subtracted, and 1 - r never rounded",
        "transforms/decay.py",
        "g + (p * keep - p)",
        "g - p * (1 - keep)",
        CLAIMS_OF_DECAY + "test_without_gradients_weights_shrink_as_torchs_adamw_shrinks_them_bit_for_bit",
    ),
)
