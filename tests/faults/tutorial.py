"""Faults in the tutorial: a learner would take them for the algorithm."""

from tests.faults import mutant

OPTIMIZERS, TRAINER = "tutorial/optimizer_from_scratch.py", "tutorial/trainer_from_scratch.py"
SGD = "tutorial/test_optimizers.py::test_sgd_is_torchs_for_50_updates"
ADAMW = "tutorial/test_optimizers.py::test_adamw_is_torchs_for_50_updates"
RUNS = "tutorial/test_trainer.py::"
SAME = RUNS + "test_accumulation_clipping_schedule_and_ragged_windows_give_the_weights_of_ft_trainer"

FAULTS = (
    mutant("tutorial: momentum is an average", OPTIMIZERS, "m.mul_(self.momentum).add_(g)", "m.lerp_(g, 0.1)", SGD),
    mutant("tutorial: v is corrected by β₁", OPTIMIZERS, "v / (1 - b2**t)", "v / (1 - b1**t)", ADAMW),
    mutant("tutorial: ε within the root", OPTIMIZERS, "v_hat.sqrt() + self.eps", "(v_hat + self.eps).sqrt()", ADAMW),
    mutant(
        "tutorial: a micro-batch counts by its number and not by its rows",
        TRAINER,
        "share = len(x) / rows",
        "share = 1 / len(window)",
        SAME,
    ),
    mutant(
        "tutorial: clipping comes late",
        TRAINER,
        "norm > self.max_grad_norm",
        "norm > 2 * self.max_grad_norm",
        SAME,
    ),
    mutant(
        "tutorial: an overflow leaves the scale",
        TRAINER,
        "self.scale, self.good_updates = self.scale / 2, 0",
        "self.good_updates = 0",
        RUNS + "test_overflows_halve_the_scale_and_skip_the_updates_that_ft_trainer_skips",
    ),
    mutant(
        "tutorial: a run goes on with other samples",
        TRAINER,
        'torch.set_rng_state(checkpoint["random"])',
        "pass",
        RUNS + "test_a_run_that_goes_on_from_its_file_is_the_run_that_was_not_stopped",
    ),
)
