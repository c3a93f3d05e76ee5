"""Faults in the matrix rules of torch.optim, and in L-BFGS."""

from tests.faults import Mutant, mutant

MATRIX, LBFGS = "transforms/test_torch_matrix.py::", "transforms/test_torch_lbfgs.py::"
SEARCH, FACE = "transforms/test_torch_line_search.py::", "bridge/test_lbfgs.py::"


def torch(entry: str) -> str:
    """The test that compares an entry of the catalogue with torch.optim."""
    return f"test_catalogue.py::test_30_updates_agree_with_torch[torch.float64-1e-10-any-{entry}]"


FAULTS: tuple[Mutant, ...] = (
    # --- Adafactor and Muon
    mutant(
        "adafactor: the memory does not lengthen",
        "transforms/torch_matrix.py",
        "rest = t**beta2_decay",
        "rest = 2.0**beta2_decay",
        torch("scale_by_torch_adafactor"),
    ),
    mutant(
        "adafactor: rho is the larger of the two",
        "transforms/torch_matrix.py",
        "(t**-0.5).clamp(max=learning_rate)",
        "(t**-0.5).clamp(min=learning_rate)",
        MATRIX + "test_the_second_adafactor_step_by_hand",
    ),
    mutant(
        "adafactor: the mean of the columns divides",
        "transforms/torch_matrix.py",
        "r.mean(-2, keepdim=True)",
        "c.mean(-2, keepdim=True)",
        MATRIX + "test_the_factors_of_a_gradient_of_rank_one_are_exact",
    ),
    mutant(
        "adafactor: ε₁ is not squared under the root",
        "transforms/torch_matrix.py",
        "v.clamp(min=e * e)",
        "v.clamp(min=e)",
        MATRIX + "test_eps1_of_none_is_the_epsilon_of_each_leafs_own_dtype",
    ),
    mutant(
        "adafactor: its steps go uphill",
        "transforms/torch_matrix.py",
        "u * (-alpha /",
        "u * (alpha /",
        torch("scale_by_torch_adafactor"),
    ),
    mutant(
        "adafactor: the bound d multiplies",
        "transforms/torch_matrix.py",
        "(_rms(u) / d)",
        "(_rms(u) * d)",
        MATRIX + "test_an_update_has_at_most_the_rms_that_d_allows",
    ),
    mutant(
        "adafactor: a missing gradient leaves its rows in the state",
        "transforms/torch_matrix.py",
        "(punch(v, updates) for v in state[1:])",
        "state[1:]",
        MATRIX + "test_a_leaf_without_gradient_keeps_its_state_and_the_others_do_not_notice",
    ),
    mutant(
        "muon: μ and 1 - μ swapped",
        "transforms/torch_matrix.py",
        "_lerp(m, g, 1 - momentum)",
        "_lerp(m, g, momentum)",
        MATRIX + "test_the_momentum_buffer_by_hand",
    ),
    mutant(
        "muon: Nesterov looks ahead from the wrong end",
        "transforms/torch_matrix.py",
        "_lerp(g, m, momentum), g, m)",
        "_lerp(m, g, momentum), g, m)",
        torch("scale_by_torch_muon"),
    ),
    mutant(
        "muon: rows and columns swapped in the shape factor",
        "transforms/torch_matrix.py",
        "math.sqrt(max(1, m / max(n, 1)))",
        "math.sqrt(max(1, n / max(m, 1)))",
        MATRIX + "test_the_shape_factors_by_hand",
    ),
    mutant(
        "muon: b and c swapped",
        "transforms/torch_matrix.py",
        "beta=b, alpha=c",
        "beta=c, alpha=b",
        MATRIX + "test_a_one_by_one_matrix_goes_through_the_polynomial",
    ),
    # --- the core of L-BFGS
    mutant(
        "l-bfgs: the pairs in one order in both loops",
        "transforms/torch_quasi_newton.py",
        "for y, s, rho in reversed(pairs):",
        "for y, s, rho in pairs:",
        LBFGS + "test_two_loops_multiply_by_the_matrix_that_the_bfgs_formula_builds",
    ),
    mutant(
        "l-bfgs: pairs of any curvature are remembered",
        "transforms/torch_quasi_newton.py",
        "if not ys > CURVED:",
        "if ys == 0:",
        LBFGS + "test_a_pair_without_curvature_is_not_remembered",
    ),
    mutant(
        "l-bfgs: a full history forgets the newest pair",
        "transforms/torch_quasi_newton.py",
        "old_stps=(*memory.old_stps, s)[start:]",
        "old_stps=(*memory.old_stps, s)[:history_size]",
        LBFGS + "test_a_full_history_forgets_the_oldest_pair",
    ),
    mutant(
        "l-bfgs: γ upside down",
        "transforms/torch_quasi_newton.py",
        "H_diag=ys / y.dot(y)",
        "H_diag=y.dot(y) / ys",
        LBFGS + "test_the_history_by_hand",
    ),
    mutant(
        "l-bfgs: the last iteration evaluates in vain",
        "transforms/torch_quasi_newton.py",
        "        elif last:\n            at = at._replace(x=along(at.x, t, d))\n",
        "",
        FACE + "test_25_steps_are_torchs[torch.float64-1e-10-network-one iteration-fixed length]",
    ),
    mutant(
        "line search: the rule of sufficient decrease without its slope",
        "transforms/torch_line_search.py",
        "start.loss + SUFFICIENT * self.t * start.slope",
        "start.loss + 1e9",
        SEARCH + "test_the_length_that_is_found_satisfies_the_strong_wolfe_conditions",
    ),
    mutant(
        "line search: any slope is flat",
        "transforms/torch_line_search.py",
        "abs(self.slope) <= -FLAT * start.slope",
        "self.slope <= -FLAT * start.slope",
        SEARCH + "test_the_length_that_is_found_satisfies_the_strong_wolfe_conditions",
    ),
    mutant(
        "line search: the other root of the cubic",
        "transforms/torch_line_search.py",
        "d2 = square.sqrt()",
        "d2 = -square.sqrt()",
        SEARCH + "test_interpolation_finds_the_minimum_of_a_cubic",
    ),
    mutant(
        "line search: the wrong end of the bracket moves",
        "transforms/torch_line_search.py",
        "pair[high] = pair[low]",
        "pair[high] = at",
        FACE + "test_25_steps_are_torchs",
    ),
    # --- L-BFGS as a rule and as an optimizer
    mutant(
        "torch_lbfgs: the update is where the step ends, not the way there",
        "transforms/torch_lbfgs.py",
        "unflatten(end - x, updates)",
        "unflatten(end, updates)",
        LBFGS + "test_fifteen_updates_are_fifteen_steps_of_torchs",
    ),
    mutant(
        "torch_lbfgs: the state counts no pairs",
        "transforms/torch_lbfgs.py",
        "x.new_tensor(len(memory.ro), dtype=torch.int32)",
        "x.new_tensor(0, dtype=torch.int32)",
        LBFGS + "test_fifteen_updates_are_fifteen_steps_of_torchs",
    ),
    mutant(
        "LBFGS: what a closure does to the parameters is not seen",
        "bridge/lbfgs.py",
        "return here()[1]",
        "return here()[1]._replace(x=x)",
        FACE + "test_a_closure_may_move_the_parameters_into_a_box",
    ),
    mutant(
        "LBFGS: the parameters stay at the last length that was tried",
        "bridge/lbfgs.py",
        "        _write(params, x)\n        keep(",
        "        keep(",
        FACE + "test_25_steps_are_torchs",
    ),
    mutant(
        "LBFGS: the closure runs without gradients",
        "bridge/lbfgs.py",
        "with torch.enable_grad():",
        "with torch.no_grad():",
        FACE + "test_the_closure_runs_with_gradients_whatever_is_around_it",
    ),
)
