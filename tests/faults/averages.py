"""Faults in rules that average the parameters."""

from tests.faults import mutant

AVERAGES = "transforms/test_averages.py::"
FILE = "transforms/averages.py"

FAULTS = (
    mutant(
        "params_ema: the memory is of the new ones",
        FILE,
        "p + decay * (e - p)",
        "e + decay * (p - e)",
        AVERAGES + "test_without_memory_the_average_is_exactly_the_parameters_after_each_update",
    ),
    mutant(
        "params_ema: without memory it is rounded",
        FILE,
        "p + decay * (e - p)",
        "e + (1 - decay) * (p - e)",
        AVERAGES + "test_without_memory_the_average_is_exactly_the_parameters_after_each_update",
    ),
    mutant(
        "params_ema: of constant parameters it is rounded",
        FILE,
        "p + decay * (e - p)",
        "decay * e + (1 - decay) * p",
        AVERAGES + "test_the_average_of_constant_parameters_is_exactly_those_parameters",
    ),
    mutant(
        "params_ema: the parameters before the update",
        FILE,
        "lambda p, u: p + u, params",
        "lambda p, u: p, params",
        AVERAGES + "test_the_first_averages_by_hand",
    ),
    mutant(
        "params_ema: it begins at zero",
        FILE,
        "tree.map(torch.clone, tree.upcast(params))",
        "tree.zeros_like(tree.upcast(params))",
        AVERAGES + "test_30_updates_average_to_what_torch_averages",
    ),
    mutant(
        "params_ema: the average shares memory with the parameters",
        FILE,
        "tree.map(torch.clone, tree.upcast(params))",
        "tree.upcast(params)",
        AVERAGES + "test_the_average_has_memory_of_its_own",
    ),
    mutant(
        "params_ema: kept in half precision",
        FILE,
        "return updates, ParamsEmaState(e)",
        "return updates, ParamsEmaState(tree.cast_like(e, params))",
        AVERAGES + "test_an_average_in_half_precision_does_not_lose_small_steps",
    ),
    mutant(
        "params_ema: the parameters are not rounded as they will be",
        FILE,
        "params, tree.cast_like(updates, params))",
        "tree.upcast(params), updates)",
        AVERAGES + "test_the_parameters_are_averaged_as_they_are_rounded",
    ),
    mutant(
        "params_ema: it moves where there is no gradient",
        FILE,
        "p = tree.pointwise(lambda p, u: p + u, params, tree.cast_like(updates, params))",
        "from functrain.base import apply_updates\n        p = apply_updates(params, updates)",
        AVERAGES + "test_a_leaf_without_gradient_keeps_its_average",
    ),
    mutant(
        "params_ema: the updates become the way of the average",
        FILE,
        "return updates, ParamsEmaState(e)",
        "return tree.pointwise(lambda e, p: e - p, e, params), ParamsEmaState(e)",
        AVERAGES + "test_updates_pass_as_they_are",
    ),
    mutant(
        "step: a skipped update is averaged",
        "step.py",
        "opt_state, params, buffers = state.opt_state, state.params, state.buffers",
        "params, buffers = state.params, state.buffers\n"
        "            opt_state = self.tx.update(tree.zeros_like(params), state.opt_state, params)[1]",
        AVERAGES + "test_amp_3_a_skipped_update_leaves_the_average_bitwise",
    ),
)
