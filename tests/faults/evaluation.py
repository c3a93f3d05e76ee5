"""Faults in validation, metrics, and batches on their way to the device."""

from tests.faults import mutant

EVALUATION, METRICS = "trainer/test_evaluation.py::", "trainer/test_metrics.py::"
ERRORS, DEVICES = "trainer/test_metric_errors.py::", "trainer/test_devices.py::"
NO_TRACE = EVALUATION + "test_eval_1_no_leaf_no_stream_no_flag_and_no_hook_changes"
WITHOUT = EVALUATION + "test_eval_2_training_with_validation_is_training_without"
ALL_AT_ONCE = EVALUATION + "test_eval_3_the_loss_is_that_of_all_samples_at_once_whatever_the_batch_size"
FLOAT64 = EVALUATION + "test_eval_3_many_small_batches_add_up_in_float64"
WEIGHED = METRICS + "test_eval_3_a_functions_mean_weighs_its_batch_and_a_pair_is_summed"
MOVES = DEVICES + "test_dev_1_what_has_tensors_moves_inside_any_container_of_the_same_type"

FAULTS = (
    mutant(
        "validation: in training mode",
        "run/evaluation.py",
        "casts(loss.eval(), chosen)",
        "casts(loss, chosen)",
        EVALUATION + "test_eval_1_every_submodule_is_in_eval_mode_while_it_is_measured_and_only_then",
    ),
    mutant(
        "validation: random streams go on from it",
        "run/evaluation.py",
        "            restore(before, sources)",
        "            pass",
        WITHOUT,
    ),
    mutant(
        "validation: random streams go on from one that failed or was stopped",
        "run/evaluation.py",
        "        finally:\n            restore(before, sources)",
        "        except ZeroDivisionError:\n            pass\n        else:\n            restore(before, sources)",
        NO_TRACE,
    ),
    mutant(
        "validation: the loader's own streams go on from it",
        "run/evaluation.py",
        "streams(self.loader)",
        "streams()",
        NO_TRACE,
    ),
    mutant(
        "validation: stopped half-way, it has a result",
        "run/evaluation.py",
        "                if stop():\n                    return {}\n",
        "",
        NO_TRACE,
    ),
    mutant(
        "validation: the mean of the batches' means",
        "run/evaluation.py",
        'losses.add("loss", out.sum, out.weight)',
        'losses.add("loss", out.mean, 1.0)',
        ALL_AT_ONCE,
    ),
    mutant(
        "validation: logs are not weighed",
        "run/evaluation.py",
        "losses.add_mean(name, x, out.weight)",
        "losses.add_mean(name, x, 1.0)",
        EVALUATION + "test_eval_3_a_log_is_averaged_by_weight_over_the_batches_that_have_it",
    ),
    mutant(
        "validation: an empty loader is found out late",
        "run/evaluation.py",
        "if loader is not None and known_length(loader) == 0:",
        "if False:",
        EVALUATION + "test_eval_4_a_loader_known_to_be_empty_is_an_error_at_construction",
    ),
    mutant(
        "validation: nothing is a result",
        "run/evaluation.py",
        "                if not found:\n",
        "                if found is None:\n",
        EVALUATION + "test_eval_4_a_loader_that_yields_nothing_is_an_error_when_it_is_measured",
    ),
    mutant(
        "metrics: they see the module's own weights",
        "run/evaluation.py",
        "            self.metrics.add(means, outputs, batch)",
        "        self.metrics.add(means, outputs, batch)",
        METRICS + "test_a_metric_sees_the_module_as_it_is_measured_and_calls_of_its_own_do_not_count",
    ),
    mutant(
        "metrics: a name that the loss logs is found out late",
        "run/evaluation.py",
        "            distinct(dict.fromkeys(names), dict.fromkeys(out.logs))",
        "            distinct(dict.fromkeys(names), {})",
        ERRORS + "test_a_name_that_the_loss_logs_is_told_at_the_first_batch",
    ),
    mutant(
        "metrics: sums in float32",
        "run/metrics.py",
        "dtype=wide(device)",
        "dtype=torch.float32",
        FLOAT64,
    ),
    mutant(
        "metrics: sums of numbers become float32",
        "run/metrics.py",
        "torch.as_tensor(x, dtype=dtype, device=device)",
        "torch.as_tensor(x).to(device, dtype)",
        FLOAT64,
    ),
    mutant(
        "metrics: a mean in half precision is weighed in it",
        "run/metrics.py",
        "self._wide(mean) * self._wide(weight)",
        "mean * self._wide(weight)",
        METRICS + "test_a_mean_in_half_precision_is_weighed_in_float64",
    ),
    mutant(
        "metrics: every batch weighs the same",
        "run/metrics.py",
        "length(batch))",
        "1)",
        WEIGHED,
    ),
    mutant(
        "metrics: every batch waits for its number",
        "run/metrics.py",
        "return x.detach().to(self._like) if",
        "return x.item() if",
        METRICS + "test_no_batch_waits_for_a_number",
    ),
    mutant(
        "metrics: the hook stays in the module",
        "run/metrics.py",
        "stack.enter_context(module.register_forward_hook(remember))",
        "module.register_forward_hook(remember)",
        NO_TRACE,
    ),
    mutant(
        "metrics: of the first call on a batch",
        "run/metrics.py",
        "outputs[:] = [output]",
        "outputs[:] = outputs or [output]",
        METRICS + "test_a_metric_is_given_what_the_last_call_returned_after_the_users_own_hooks",
    ),
    mutant(
        "metrics: an object still has what it gathered before",
        "run/metrics.py",
        "                gatherer.reset()\n            yield",
        "            yield",
        METRICS + "test_what_a_metric_gathered_before_does_not_count_and_it_is_left_empty",
    ),
    mutant(
        "metrics: an object is left full",
        "run/metrics.py",
        "        finally:\n            for gatherer in self._gatherers.values():\n                gatherer.reset()",
        "        finally:\n            pass",
        NO_TRACE,
    ),
    mutant(
        "metrics: an object stays on the device that it was made on",
        "run/metrics.py",
        "                    to(self.device)",
        "                    pass",
        METRICS + "test_a_metric_goes_to_the_device_of_the_batches",
    ),
    mutant(
        "metrics: a collection's numbers go without its name",
        "run/metrics.py",
        'f"{name}/{key}"',
        'f"{key}"',
        METRICS + "test_a_collection_gives_a_number_for_each_of_its_own",
    ),
    mutant(
        "batches: what has its own `to` stays",
        "data.py",
        'if callable(getattr(batch, "to", None)):',
        'if callable(getattr(batch, "to_", None)):',
        MOVES,
    ),
    mutant(
        "batches: the loader's dict is changed",
        "data.py",
        "entries = copy.copy(batch)",
        "entries = batch",
        MOVES,
    ),
    mutant(
        "batches: the loader's dataclass is changed",
        "data.py",
        "fields = copy.copy(batch)",
        "fields = batch",
        MOVES,
    ),
    mutant(
        "batches: a frozen dataclass is not carried over",
        "data.py",
        "object.__setattr__(fields, field.name,",
        "setattr(fields, field.name,",
        MOVES,
    ),
    mutant(
        "batches: a tensor that is on the device is copied",
        "data.py",
        "if batch.device != device else batch\n",
        "if batch.device != device else batch.clone()\n",
        DEVICES + "test_dev_1_a_tensor_that_is_there_already_is_not_copied",
    ),
    mutant(
        "batches: a tensor of the loader's is written to",
        "data.py",
        "if batch.device != device else batch\n",
        "if batch.device != device else batch.mul_(1)\n",
        DEVICES + "test_dev_2_the_loaders_tensors_are_never_written_to",
    ),
    mutant(
        "batches: what moves itself in place is moved in the loader",
        "data.py",
        'return copy.copy(cast("Tensor", batch)).to(device)',
        'return cast("Tensor", batch).to(device)',
        DEVICES + "test_dev_2_what_moves_itself_in_place_stays_where_it_is_in_the_loader",
    ),
    mutant(
        "batches: what is no plain container counts as one sample",
        "data.py",
        "for x in [leaf] if isinstance(leaf, Tensor) else tensors(leaf):",
        "for x in [leaf] if isinstance(leaf, Tensor) else []:",
        "test_data.py::test_a_mean_weighs_the_batch_whatever_holds_it",
    ),
)
