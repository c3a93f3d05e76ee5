"""Faults in what users are told of their mistakes."""

from tests.faults import mutant

TREES, RUNS = "mistakes/test_trees.py::", "mistakes/test_runs.py::"
ARGUMENTS, EVAL = "mistakes/test_arguments.py::", "mistakes/test_eval_mode.py::"
TREE = TREES + "test_a_tree_that_is_none_is_told_word_for_word"
RUN = RUNS + "test_a_run_that_cannot_be_is_told_word_for_word"
ARGUMENT = ARGUMENTS + "test_an_argument_that_cannot_be_is_told_word_for_word"
PLACE = TREES + "test_two_devices_are_named_with_what_is_there"

FAULTS = (
    mutant(
        "a rule without its parameters goes on",
        "base.py",
        "if params is None and requires_params:",
        "if params is None and requires_params and not name:",
        f"{TREE}[adamw]",
    ),
    mutant(
        "a number among the updates is left to Python",
        "hints.py",
        '        check_tensors(name, "update", updates)\n',
        "",
        f"{TREE}[update of a float]",
    ),
    mutant(
        "a combinator says again what the rule inside has said",
        "hints.py",
        'if not isinstance(error, RuntimeError) and "hint: " not in str(error):',
        "if not isinstance(error, RuntimeError):",
        f"{TREE}[update of a float]",
    ),
    mutant(
        "a module among the parameters is another tree",
        "base.py",
        '        check_tensors(name, "parameter", params)\n        raise',
        "        raise",
        f"{TREE}[update, as parameters]",
    ),
    mutant(
        "a note blames the parameters' device alone",
        "hints.py",
        "        if x.device != one.device:\n",
        "        if x.device == one.device:\n",
        f"{PLACE}[step, the inputs]",
    ),
    mutant(
        "a 0-dim tensor on the CPU is a culprit",
        "hints.py",
        "if x.dim() or not x.is_cpu]",
        "if x.dim() or x.is_cpu]",
        TREES + "test_a_number_on_the_cpu_goes_with_every_device",
    ),
    mutant(
        "every error is given a note",
        "hints.py",
        """if not isinstance(x, Tensor) and ("Tensor" in text or f"{type(x).__name__}' object" in text):""",
        "if True:",
        TREES + "test_an_error_of_the_users_comes_out_as_it_is",
    ),
    mutant(
        "a compiled step tells no device",
        "compile.py",
        "            self.explain(error, state, batch)\n",
        "",
        f"{PLACE}[step, compiled]",
    ),
    mutant(
        "a loss that no parameter is in trains on",
        "gradient.py",
        "if all(g is None for g in found) and bool(out.weight != 0):",
        "if all(g is None for g in found) and bool(out.weight < 0):",
        f"{RUN}[another module]",
    ),
    mutant(
        "a micro-batch that weighs nothing must depend on a parameter",
        "gradient.py",
        "if all(g is None for g in found) and bool(out.weight != 0):",
        "if all(g is None for g in found):",
        EVAL + "test_a_micro_batch_that_weighs_nothing_may_depend_on_nothing",
    ),
    mutant(
        "a parameter that takes no part is refused",
        "gradient.py",
        "if all(g is None for g in found) and",
        "if any(g is None for g in found) and",
        EVAL + "test_some_parameters_may_take_no_part",
    ),
    mutant(
        "eval mode: nobody is told",
        "bridge/modules.py",
        "if wrong := in_eval(self.model.module):",
        "if (wrong := in_eval(self.model.module)) is None:",
        EVAL + "test_a_module_in_eval_mode_is_warned_of_if_it_trains_otherwise",
    ),
    mutant(
        "eval mode: told at every step",
        "bridge/modules.py",
        "            self._warned = True\n",
        "",
        EVAL + "test_it_is_said_once_a_step_and_at_the_call_that_it_is_true_of",
    ),
    mutant(
        "eval mode: looked at once and never again",
        "bridge/modules.py",
        "            self._asked = False\n",
        "            pass\n",
        EVAL + "test_a_part_that_leaves_training_mode_later_is_seen_when_the_module_has_been_back",
    ),
    mutant(
        "eval mode: a part that is frozen is warned of",
        "bridge/modes.py",
        "if any(m.training for m in parts.values()):",
        "if all(m.training for m in parts.values()):",
        EVAL + "test_what_is_meant_is_not_warned_of",
    ),
    mutant(
        "eval mode: the view is warned of",
        "bridge/modules.py",
        "self.model.module.training or self.model.fixed or",
        "self.model.module.training or",
        EVAL + "test_what_is_meant_is_not_warned_of",
    ),
    mutant(
        "eval mode: a LayerNorm is warned of",
        "bridge/modes.py",
        "return isinstance(m, _NormBase) and m.track_running_stats",
        "return isinstance(m, nn.LayerNorm | _NormBase)",
        EVAL + "test_a_module_that_is_the_same_in_both_modes_is_not",
    ),
    mutant(
        "the Trainer takes the number of updates for a rule's learning rate",
        "run/driver.py",
        'first in ("learning_rate", "lr", "params")',
        'first in ("lr", "params")',
        f"{ARGUMENT}[a factory]",
    ),
    mutant(
        "the Trainer takes the number of updates for a scheduler's second argument",
        "run/scheduler.py",
        "    if isinstance(scheduler, type):\n",
        "    if scheduler is type:\n",
        f"{RUN}[a class]",
    ),
    mutant(
        "a dataset is a loader",
        "run/recipe.py",
        "if isinstance(loader, Dataset) and not isinstance(loader, Iterable):",
        "if isinstance(loader, Dataset) and isinstance(loader, Iterable):",
        f"{RUN}[a loader that is a dataset]",
    ),
    mutant(
        "a state that was given away is saved",
        "checkpoint/writing.py",
        '    check_leaves("checkpoint.save", tree)\n',
        "",
        ARGUMENTS + "test_a_donated_state_is_refused_where_it_is_used_again",
    ),
    mutant(
        "anything is a state",
        "state.py",
        "    if not isinstance(state, TrainState):\n",
        "    if not isinstance(state, tuple | dict):\n",
        f"{ARGUMENT}[parameters for a state]",
    ),
)
