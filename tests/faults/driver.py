"""Faults in the Trainer's side of torch optimizers and schedulers."""

from tests.faults import mutant

FILE, LOOP, RESUME, SAYS = (
    "run/driver.py", "test_trainer_torch.py::", "test_trainer_torch_resume.py::", "test_driver.py::",
)  # fmt: skip
ENCODING, WRITTEN = "run/encoding.py", "trainer/test_encoding.py::"
RESUMED = RESUME + "test_sch_1_a_run_that_is_resumed_is_bit_for_bit_the_run_that_went_on"

FAULTS = (
    mutant(
        "driver: groups are read once",
        FILE,
        "if values == self._values and not changing:",
        "if self._values is not None:",
        LOOP + "test_a_callback_that_edits_a_group_is_obeyed_at_the_next_update",
    ),
    mutant(
        "driver: tensors in a group are read once",
        FILE,
        "if values == self._values and not changing:",
        "if values == self._values:",
        LOOP + "test_values_in_tensors_are_obeyed_when_they_change_in_place",
    ),
    mutant(
        "driver: a record has the rate that was set after its update",
        "bridge/values.py",
        'return x.detach().to("cpu", torch.float64, copy=True)',
        'return x.detach().to("cpu", torch.float64)',
        LOOP + "test_values_in_tensors_are_obeyed_when_they_change_in_place",
    ),
    mutant(
        "driver: the groups of torch's own optimizer are not read",
        FILE,
        "            mine.update(values_of(given))\n",
        "            pass\n",
        LOOP + "test_a_callback_that_edits_a_group_is_obeyed_at_the_next_update",
    ),
    mutant(
        "driver: the scheduler steps when an update is skipped",
        FILE,
        'ReduceLROnPlateau) and not metrics["skipped"]:',
        "ReduceLROnPlateau):",
        LOOP + "test_sch_2_a_skipped_update_does_not_step_the_scheduler",
    ),
    mutant(
        "driver: a plateau is not told the validation loss",
        FILE,
        "            self.scheduler.step(loss)\n",
        "            self.scheduler.step(0.0)\n",
        LOOP + "test_sch_5_on_a_plateau_the_rate_falls_after_a_validation_and_by_its_loss",
    ),
    mutant(
        "driver: the scheduler is told of no step",
        FILE,
        '            vars(self.given)["_opt_called"] = True',
        "            pass",
        LOOP + "test_sch_1_adamw_under_one_cycle_is_torchs_loop",
    ),
    mutant(
        "driver: the rate is the last group's",
        FILE,
        'return {"learning_rate": metrics["learning_rate/0"], **metrics}',
        'return {"learning_rate": metrics["learning_rate/1"], **metrics}',
        LOOP + "test_two_groups_are_both_recorded_and_the_first_is_the_rate",
    ),
    mutant(
        "driver: the state does not go back into torch's own optimizer",
        FILE,
        "if self.given is not self.face:",
        "if self.given is None:",
        LOOP + "test_the_state_dict_is_true_whenever_a_checkpoint_is_saved",
    ),
    mutant(
        "driver: with the state, the groups of the last update go back",
        FILE,
        '{**self.given.state_dict(), "state": self.face.state_dict()["state"]})',
        "self.face.state_dict())",
        SAYS + "test_a_group_that_comes_while_training_is_an_error_at_the_next_update",
    ),
    mutant(
        "driver: a group is another dict after the state went back",
        FILE,
        "            self.given.param_groups = groups",
        "            pass",
        LOOP + "test_groups_and_what_they_hold_are_the_same_objects_after_training",
    ),
    mutant(
        "driver: a state that there was not yet stays",
        FILE,
        "            self.face.state.pop(self.names[name], None)",
        "            pass",
        RESUME + "test_loading_an_earlier_checkpoint_takes_back_the_state_too",
    ),
    mutant(
        "driver: a checkpoint does not bring the scheduler back",
        FILE,
        '                self.scheduler.load_state_dict(cast("dict[str, object]", schedule))',
        "                pass",
        RESUMED,
    ),
    mutant(
        "driver: a scheduler that took up half a state keeps it",
        FILE,
        "                self.scheduler.load_state_dict(before)\n",
        "",
        RESUME + "test_what_a_scheduler_cannot_take_up_changes_nothing",
    ),
    mutant(
        "driver: a checkpoint does not bring the groups back",
        FILE,
        "                    group[name] = value\n",
        "                    pass\n",
        RESUMED,
    ),
    mutant(
        "driver: a checkpoint of a rule that ascends is loaded",
        FILE,
        "        if changed := self._another_rule(groups):\n",
        "        if changed := self._another_rule(groups) and None:\n",
        RESUME + "test_a_checkpoint_of_another_optimizer_or_scheduler_changes_nothing",
    ),
    mutant(
        "driver: all rules have one name",
        FILE,
        "    if not isinstance(face, TorchOptimizer):",
        "    if face:",
        RESUME + "test_a_rule_as_an_optimizer_goes_on_from_its_own_kind_alone",
    ),
    mutant(
        "driver: a change of the rule is passed over",
        FILE,
        "        if changed := self._another_rule(values):\n",
        "        if changed := self._another_rule(values) and None:\n",
        SAYS + "test_a_change_that_makes_another_rule_is_an_error_at_the_next_update",
    ),
    mutant(
        "driver: a rule over all parameters has the first group's values",
        FILE,
        "if not self.rule.local and any(v != values[0] for v in values):",
        "if not self.rule.local and False:",
        SAYS + "test_groups_of_a_rule_that_sees_all_parameters_must_have_equal_values",
    ),
    mutant(
        "driver: a Counter comes back as a dict",
        "run/encoding.py",
        'return Counter(cast("Mapping[object, int]", pairs)) if kind == "counter" else pairs',
        "return pairs",
        RESUME + "test_types_and_infinities_of_a_schedulers_state_survive",
        WRITTEN + "test_what_json_cannot_say_comes_back_from_json",
    ),
    mutant(
        "encoding: a tuple comes back as a list",
        ENCODING,
        'return {"tuple": tuple, "list": list}[kind](made)',
        'return {"tuple": list, "list": list}[kind](made)',
        WRITTEN + "test_what_json_cannot_say_comes_back_from_json",
    ),
    mutant(
        "encoding: a tensor loses its shape",
        ENCODING,
        "        return flat.reshape(shape)\n",
        "        return flat\n",
        WRITTEN + "test_a_tensor_of_any_size_and_dtype_comes_back_with_its_bits",
    ),
    mutant(
        "encoding: a view is written as the elements that lie beside it",
        ENCODING,
        "flat = x.detach().cpu().contiguous().reshape(-1)",
        "flat = x.detach().cpu().T.contiguous().reshape(-1)",
        WRITTEN + "test_a_view_that_is_not_contiguous_comes_back_as_its_elements",
    ),
)
