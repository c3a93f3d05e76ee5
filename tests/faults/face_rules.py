"""Faults in the torch face of any rule: groups, whole trees, optimizers by name, the pure form, compiled steps."""

from tests.faults import mutant

RULES, GROUPS = "bridge/test_torch_optimizer.py::", "bridge/test_torch_groups.py::"
WHOLE, LOSS = "bridge/test_whole.py::", "bridge/test_loss_rules.py::"
FACTORIES, FROM = "bridge/test_factories.py::", "bridge/test_from_torch.py::"
PURE, NUMBERS, COMPILED = "bridge/test_pure.py::", "bridge/test_pure_numbers.py::", "bridge/test_compiled_face.py::"

FAULTS = (
    # --- groups
    mutant(
        "TorchOptimizer: lr is no factor of a rule without a rate",
        "bridge/torch_optimizer.py",
        "return chain(self.factory(**arguments), scale(lr))",
        "return chain(self.factory(**arguments), scale(1.0))",
        GROUPS + "test_lr_is_one_and_a_factor_of_what_the_rule_makes[no rate]",
    ),
    mutant(
        "TorchOptimizer: the factor begins at the rate of a schedule",
        "bridge/torch_optimizer.py",
        'return Recipe(rule, fixed, False), {"lr": 1.0 if rate is None else rate, **values}',
        'return Recipe(rule, fixed, False), {"lr": 0.1 if rate is None else rate, **values}',
        GROUPS + "test_lr_is_one_and_a_factor_of_what_the_rule_makes[a schedule]",
    ),
    mutant(
        "TorchOptimizer: a scheduler is not obeyed",
        "bridge/torch_optimizer.py",
        "return self.factory(**arguments, **{RATE: lr})",
        "return self.factory(**arguments, **{RATE: 0.1})",
        GROUPS + "test_a_scheduler_drives_the_rate[lion-cosine]",
    ),
    mutant(
        "TorchOptimizer: arguments besides the rate are dropped",
        "bridge/torch_optimizer.py",
        "for name, value in values.items() if name in names}}",
        "for name, value in values.items() if name == RATE}}",
        GROUPS + "test_a_value_that_is_edited_is_obeyed_at_the_next_step[b1-0.1]",
    ),
    mutant(
        "TorchOptimizer: masks and schedules are in the groups",
        "bridge/torch_optimizer.py",
        "values = {name: value for name, value in arguments.items() if _plain(value)}",
        "values = dict(arguments)",
        GROUPS + "test_what_is_no_plain_value_is_in_no_group",
    ),
    mutant(
        "TorchOptimizer: a number that counts is a number like others",
        "bridge/torch_optimizer.py",
        '"int" in annotation.split(" | ")',
        'annotation == "int"',
        PURE + "test_any_rule_does_what_step_does[MultiSteps]",
    ),
    mutant(
        "torch face: a mask sees numbers in place of names",
        "bridge/face.py",
        'names = group.get("param_names") or [',
        "names = [",
        GROUPS + "test_a_mask_sees_the_names_of_the_parameters",
    ),
    # --- rules that see all parameters
    mutant(
        "torch face: the state of all parameters is not saved",
        "bridge/face.py",
        'return {**state_dict, "functrain": whole} if whole else state_dict',
        "return state_dict",
        WHOLE + "test_saved_pickled_or_copied_it_goes_on_as_if_it_had_not_been[chain]",
    ),
    mutant(
        "torch face: the state of all parameters is not pickled",
        "bridge/face.py",
        '"compile": self._compile, "functrain": self.whole.flat()}',
        '"compile": self._compile, "functrain": {}}',
        WHOLE + "test_saved_pickled_or_copied_it_goes_on_as_if_it_had_not_been[chain]",
    ),
    mutant(
        "torch face: a parameter that comes late makes the others begin anew",
        "bridge/whole.py",
        "return first if found is None or found.shape != first.shape else",
        "return first if found is None or found.shape else",
        WHOLE + "test_a_parameter_added_late_begins_as_the_others_go_on",
    ),
    mutant(
        "as_transform: the state of all parameters is the optimizer's own",
        "bridge/whole.py",
        "found.to(first.device, copy=True)",
        "found.to(first.device)",
        PURE + "test_its_first_state_shares_no_memory_with_the_optimizers[whole]",
    ),
    mutant(
        "torch face: value_fn leaves the parameters elsewhere",
        "bridge/whole.py",
        "p.copy_(x)\n                    p.grad = g",
        "p.grad = g",
        LOSS + "test_value_fn_leaves_parameters_and_gradients_as_they_were[no]",
    ),
    mutant(
        "torch face: value_fn drops the gradients",
        "bridge/whole.py",
        "p.grad = g\n",
        "p.grad = None\n",
        LOSS + "test_value_fn_leaves_parameters_and_gradients_as_they_were[no]",
    ),
    mutant(
        "torch face: a loss that is a number is rounded to float32",
        "bridge/whole.py",
        'return torch.tensor(float(cast("float", returned)), dtype=torch.float64)',
        'return torch.tensor(float(cast("float", returned)))',
        LOSS + "test_a_closure_may_return_a_number[value]",
    ),
    # --- by name, for a module, from torch
    mutant(
        "create_optimizer: neighbours are the first of all names",
        "bridge/factories.py",
        "near = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.5)",
        "near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)",
        FACTORIES + "test_an_unknown_name_is_told_its_neighbours[AdamW]",
    ),
    mutant(
        "create_optimizer: a rate of zero is none",
        "bridge/factories.py",
        "given = kw if lr is None else",
        "given = kw if not lr else",
        FACTORIES + "test_a_rate_that_is_given_counts_even_zero[0.0]",
    ),
    mutant(
        "create_optimizer: a rule goes before torch's class",
        "bridge/factories.py",
        "if name in CLASSES:",
        "if name in CLASSES and name not in rules():",
        FACTORIES + "test_where_torch_has_the_name_its_numbers_are_torchs[AdamW]",
    ),
    mutant(
        "configure_optimizer: vectors decay too",
        "bridge/factories.py",
        '"weight_decay": 0.0},',
        '"weight_decay": weight_decay},',
        FACTORIES + "test_matrices_decay_and_vectors_do_not[adamw]",
    ),
    mutant(
        "configure_optimizer: frozen parameters are in",
        "bridge/factories.py",
        "for name, p in module.named_parameters() if p.requires_grad]",
        "for name, p in module.named_parameters()]",
        FACTORIES + "test_matrices_decay_and_vectors_do_not[adamw]",
    ),
    mutant(
        "from_torch: the state stays behind",
        "bridge/factories.py",
        "made.load_state_dict(optimizer.state_dict())",
        "made.load_state_dict({**optimizer.state_dict(), 'state': {}})",
        FROM + "test_it_goes_on_as_torch_goes_on[Adam]",
    ),
    mutant(
        "from_torch: defaults are the class's own",
        "bridge/factories.py",
        "made = chosen(groups, **defaults)",
        "made = chosen(groups)",
        FROM + "test_values_that_were_edited_are_carried_over_and_so_are_the_defaults_of_groups_to_come[ASGD]",
    ),
    mutant(
        "from_torch: a class is known by its name",
        "bridge/factories.py",
        "getattr(torch.optim, name, None) is not type(optimizer) or name.lower() not in CLASSES",
        "name.lower() not in CLASSES",
        FROM + "test_a_class_without_an_equal_is_named[namesake]",
    ),
    # --- as a pure function
    mutant(
        "as_transform: one counter for all parameters",
        "bridge/pure.py",
        "found.setdefault(layout.cohort(states[name], False), [])",
        "found.setdefault(0, [])",
        PURE + "test_it_does_what_step_does[holes-Adam]",
    ),
    mutant(
        "as_transform: its numbers are the optimizer's, whatever its state says",
        "bridge/pure.py",
        "rule = part.make(**values_from(numbers, others))",
        "rule = part.make(**values_of(part.group))",
        NUMBERS + "test_a_number_that_is_changed_in_its_state_is_obeyed[eps-0.3]",
    ),
    mutant(
        "as_transform: it begins anew",
        "bridge/pure.py",
        "return {**copies, **past}",
        "return past",
        PURE + "test_it_goes_on_from_the_optimizers_state[Adam]",
    ),
    mutant(
        "as_transform: a counter that torch has not begins anew",
        "bridge/pure.py",
        "torch.full_like(fresh[key], n)",
        "torch.full_like(fresh[key], 0)",
        PURE + "test_it_goes_on_from_the_optimizers_state[SGD]",
    ),
    mutant(
        "as_transform: names are matched by place",
        "bridge/face.py",
        'called.get(id(p), f"({own})")',
        'dict(zip([q for _, q in self.named(i)], names, strict=False)).get(p, f"({own})")',
        PURE + "test_names_that_are_given_belong_to_the_parameters_that_are_meant",
    ),
    mutant(
        "take_back: what there is stays",
        "bridge/pure.py",
        "states[p] = kept",
        "states.setdefault(p, kept)",
        PURE + "test_taken_back_it_goes_on_where_the_pure_form_stopped[Adam]",
    ),
    mutant(
        "take_back: the optimizer has the state's own tensors",
        "bridge/pure.py",
        "kept = {key: x.detach().clone() for",
        "kept = {key: x.detach() for",
        PURE + "test_what_is_taken_back_is_a_copy",
    ),
    mutant(
        "take_back: a parameter that has not stepped has a state",
        "bridge/pure.py",
        "return not counters or any(bool(x > 0) for x in counters)",
        "return True",
        PURE + "test_a_parameter_that_has_not_stepped_has_no_state_to_take_back",
    ),
    mutant(
        "take_back: the state of all parameters is forgotten",
        "bridge/pure.py",
        "whole.load(dict(zip(tree.keys(state.whole), tree.leaves(state.whole), strict=True)))",
        "whole.load({})",
        PURE + "test_taken_back_it_goes_on_where_the_pure_form_stopped[whole]",
    ),
    # --- compiled
    mutant(
        "compile=True: a graph for each size",
        "bridge/compiled.py",
        "fullgraph=True, dynamic=True, options=options",
        "fullgraph=True, dynamic=False, options=options",
        COMPILED + "test_one_graph_serves_all_sizes",
    ),
    mutant(
        "compile=True: parameters move, and their states stay",
        "bridge/compiled.py",
        "row[2 + i].copy_(new.each[key][name])",
        "row[2 + i].copy_(row[2 + i])",
        COMPILED + "test_it_agrees_with_eager_and_writes_in_place[AdamW]",
    ),
    mutant(
        "compile=True: everybody compiles",
        "bridge/face.py",
        'if self._compile or group.get("fused") else None',
        'if not self._compile or group.get("fused") else None',
        COMPILED + "test_without_compile_nothing_is_compiled",
    ),
)
