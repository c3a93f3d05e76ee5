"""Faults in the example of callbacks."""

from tests.faults import mutant

CALLBACKS = "test_example_callbacks.py::"
NORMS = CALLBACKS + "test_the_norms_are_those_of_the_modules_weights_and_of_their_change"
NOTHING = CALLBACKS + "test_a_look_changes_nothing_that_a_run_depends_on"
SAME = CALLBACKS + "test_a_run_that_was_looked_at_is_bitwise_the_run_that_was_not"
DRY = CALLBACKS + "test_the_dry_run_tells_the_losses_of_one_update_and_one_validation_batch"
RATE = CALLBACKS + "test_the_finder_finds_a_rate_that_trains_and_not_one_that_explodes"
FILE = "../examples/callbacks.py"

FAULTS = (
    mutant(
        "callbacks: the ratio is of the way from the first parameters",
        FILE,
        "(old := kept.pop(now - 1, {}))",
        "(old := kept[min(kept)])",
        NORMS,
    ),
    mutant(
        "callbacks: a layer's norm is the sum of its parameters'",
        FILE,
        "norm, moved = ft.tree.norm([params[k] for k in own]),",
        "norm, moved = sum(ft.tree.norm(params[k]) for k in own),",
        NORMS,
    ),
    mutant(
        "callbacks: what the loader drew stays drawn",
        FILE,
        "        restore(before, sources)",
        "        pass",
        NOTHING,
        SAME,
    ),
    mutant(
        "callbacks: the finder goes on in the run's own state",
        FILE,
        "        curve.append((loss, rate))",
        "        curve.append((loss, rate))\n        trainer.state = state",
        NOTHING,
    ),
    mutant(
        "callbacks: the dry run's update is the run's",
        FILE,
        "    state, metrics = trainer.step(ft.tree.map(torch.clone, trainer.state), batch)",
        "    trainer.state, metrics = trainer.step(trainer.state, batch)\n    state = trainer.state",
        NOTHING,
        SAME,
    ),
    mutant(
        "callbacks: the finder looks at the place of the run",
        FILE,
        "batches, state, curve = peek(trainer.feed.loader, n, trainer.device)",
        "batches, state, curve = list(trainer.feed.window(n))",
        NOTHING,
    ),
    mutant("callbacks: it looks at every event", FILE, "pending.pop()(trainer)", "pending[0](trainer)", SAME),
    mutant(
        "callbacks: the dry run validates all",
        FILE,
        "    small.loader = peek(small.loader or [], 1, trainer.device)\n",
        "",
        DRY,
    ),
    mutant(
        "callbacks: the rate is that at which the loss is about to explode",
        FILE,
        "math.nan))[1] / 10",
        "math.nan))[1]",
        RATE,
    ),
    mutant(
        "callbacks: a rate that nobody obeys is tried",
        FILE,
        "if not all(math.isclose(",
        "if not any(True or math.isclose(",
        CALLBACKS + "test_a_rate_that_nobody_obeys_is_an_error",
    ),
    mutant(
        "callbacks: workers that stay are looked at",
        FILE,
        'getattr(loader, "persistent_workers", False)',
        'getattr(loader, "persistent", False)',
        CALLBACKS + "test_a_loader_that_remembers_being_looked_at_is_refused",
    ),
)
