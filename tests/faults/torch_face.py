"""Faults in the torch face."""

from tests.faults import mutant

FACE, DATABASE = "bridge/test_promises.py::", "bridge/test_database.py::"
STATES, SCALER, ERRORS = "bridge/test_state_dicts.py::", "bridge/test_grad_scaler.py::", "bridge/test_errors.py::"

FAULTS = (
    mutant(
        "torch face: the values of a group are read once",
        "bridge/face.py",
        "if old and not has_tensor(values) and values == old.values:",
        "if old:",
        FACE + "test_what_is_done_by_hand_between_steps_counts_as_in_torch[halve-Adam]",
    ),
    mutant(
        "torch face: a closure runs as the step does, without gradients",
        "bridge/face.py",
        "with torch.enable_grad():",
        "with torch.no_grad():",
        FACE + "test_a_closure_runs_with_gradients_on_and_its_loss_is_returned[SGD]",
    ),
    mutant(
        "torch face: one counter for all parameters",
        "bridge/layout.py",
        "return fresh, *numbers, *[field.key in state for field in self.fields if field.each]",
        "return ()",
        FACE + "test_a_parameter_without_a_gradient_is_left_alone_and_its_steps_are_not_counted[Adam]",
    ),
    mutant(
        "torch face: a counter has a dtype of its own",
        "bridge/layout.py",
        "return count.to(torch.get_default_dtype(), copy=True)",
        "return count.to(torch.float64, copy=True)",
        STATES + "test_a_state_dict_has_torchs_keys_dtypes_shapes_and_numbers[Adam]",
    ),
    mutant(
        "torch face: a differentiable step is tried",
        "bridge/face.py",
        'if any(group.get("differentiable") for group in self.param_groups):',
        "if not self.param_groups:",
        ERRORS + "test_differentiable_names_the_pure_way[Adam]",
    ),
    mutant(
        "torch face: found_inf is not obeyed",
        "bridge/face.py",
        "if found is not None and bool(found):",
        "if found is None:",
        SCALER + "test_a_fused_step_divides_by_grad_scale_and_does_nothing_when_found_inf_is_set[SGD]",
    ),
    mutant(
        "torch face: gradients are scaled once more",
        "bridge/face.py",
        "p.grad.div_(scale)",
        "p.grad.mul_(scale)",
        SCALER + "test_a_fused_step_divides_by_grad_scale_and_does_nothing_when_found_inf_is_set[SGD]",
    ),
    mutant(
        "torch face: every optimizer unscales for itself",
        "bridge/face.py",
        'return any(bool(group.get("fused")) for group in self.param_groups)',
        "return True",
        SCALER + "test_only_a_fused_optimizer_asks_to_unscale_for_itself[Adam]",
    ),
    mutant(
        "torch face: updates are subtracted",
        "bridge/blocks.py",
        "torch._foreach_add_(list(params), list(updates))",
        "torch._foreach_sub_(list(params), list(updates))",
        DATABASE + "test_30_updates_agree_with_torch[float64-Adam, default]",
    ),
    mutant(
        "torch face: maximize is ignored",
        "bridge/torch_face.py",
        "return scale(-1.0) if maximize else identity()",
        "return identity()",
        DATABASE + "test_30_updates_agree_with_torch[float64-Adam, maximize]",
    ),
    mutant(
        "torch face: decoupled weight decay is not scaled by the rate",
        "bridge/torch_face.py",
        "shrink_weights(lr * weight_decay)",
        "shrink_weights(weight_decay)",
        DATABASE + "test_30_updates_agree_with_torch[float64-AdamW, default]",
    ),
    mutant(
        "torch face: a beta may be one",
        "bridge/given.py",
        "if not 0 <= b < 1:",
        "if not 0 <= b <= 1:",
        ERRORS + "test_betas_out_of_range_are_refused_by_their_index[Adam]",
    ),
    mutant(
        "torch face: an empty list is taken",
        "bridge/given.py",
        "if not found:",
        "if found is params:",
        ERRORS + "test_an_error_says_more_than_torchs[empty-Adam]",
    ),
    mutant(
        "torch face: loaded state gets the dtype of its parameter",
        "bridge/saving.py",
        'value.detach().to("cpu" if key in numbers else param.device, copy=True)',
        'value.detach().to("cpu" if key in numbers else param.device, param.dtype, copy=True)',
        STATES + "test_float32_moments_over_bfloat16_parameters_stay_float32[Adam]",
    ),
    mutant(
        "torch face: loaded state shares memory with what it came from",
        "bridge/saving.py",
        'value.detach().to("cpu" if key in numbers else param.device, copy=True)',
        'value.detach().to("cpu" if key in numbers else param.device)',
        STATES + "test_a_loaded_state_shares_no_tensor_with_what_was_loaded[Adam]",
    ),
    mutant(
        "torch face: a state of another shape is loaded",
        "bridge/saving.py",
        "value.shape != shape",
        "value.dim() < 0",
        STATES + "test_a_state_of_another_shape_is_refused_by_the_parameters_number[Adam]",
    ),
)
