"""Faults in what makes an update of a run, at what rate, and of which batches."""

from tests.faults import mutant

GATHERED, ONCE = "trainer/test_accumulation.py::", "trainer/test_window_gradients.py::"
WINDOWS, CUT = "trainer/test_windows.py::", "trainer/test_cut_windows.py::"
RATES, PLATEAU = "trainer/test_schedules.py::", "trainer/test_plateau.py::"
LOADERS, AHEAD = "trainer/test_loaders.py::", "trainer/test_look_ahead.py::"
CUT_AND_RESUMED = CUT + "test_win_2_stopped_within_a_window_of_each_epoch_and_resumed_is_not_stopped"

FAULTS = (
    mutant(
        "accumulation: gradients are added and not averaged",
        "window.py",
        "        tree.pointwise(mean, acc.grads, new.grads),\n",
        "        tree.pointwise(lambda old, new: old + new, acc.grads, new.grads),\n",
        GATHERED + "test_acc_1_k_batches_of_one_size_are_one_batch_of_them_all",
    ),
    mutant(
        "accumulation: every batch of a window has the same share",
        "window.py",
        "    share = new.weight / torch.where(weight == 0, torch.ones_like(weight), weight)\n",
        "    share = 1 / (acc.pieces + 1)\n",
        GATHERED + "test_acc_2_weights_7_1_3_0_are_one_batch_of_11",
    ),
    mutant(
        "accumulation: a bare mean weighs one, however long its batch is",
        "loss.py",
        "weight = torch.full_like(mean, length(batch), requires_grad=False)",
        "weight = torch.full_like(mean, 1, requires_grad=False)",
        GATHERED + "test_acc_3_the_update_does_not_depend_on_how_samples_are_split",
    ),
    mutant(
        "accumulation: a window of no weight divides by its number of batches",
        "window.py",
        "    weight = acc.weight + new.weight\n",
        "    weight = acc.weight + new.weight.clamp(min=1)\n",
        GATHERED + "test_acc_3_nor_does_it_with_masked_tokens",
    ),
    mutant(
        "accumulation: the logged loss is that of the last batch",
        "window.py",
        "        mean(acc.loss, new.loss),\n",
        "        new.loss,\n",
        GATHERED + "test_acc_4_the_logged_loss_is_the_same_for_every_k_with_k_times_b_fixed",
    ),
    mutant(
        "accumulation: an evaluation leaves the random streams where it ended",
        "run/evaluation.py",
        "            restore(before, sources)\n",
        "            pass\n",
        ONCE + "test_acc_5_evaluation_within_a_window_changes_nothing",
        ONCE + "test_acc_5_validation_between_windows_changes_nothing",
    ),
    mutant(
        "accumulation: each batch of a window is clipped",
        "step.py",
        "        return new if acc is None else fold(acc, new)\n",
        "        limit = self.max_grad_norm\n"
        "        norm = tree.norm(new.grads)\n"
        "        if limit is not None and norm > limit:\n"
        "            new = new._replace(grads=tree.map(lambda g: g * limit / norm, new.grads))\n"
        "        return new if acc is None else fold(acc, new)\n",
        ONCE + "test_acc_6_batches_over_the_limit_are_untouched_where_their_window_is_under_it",
    ),
    mutant(
        "accumulation: gradients are summed in the precision that they came in",
        "window.py",
        "    grads = tree.upcast(grads)\n",
        "    if chosen.compute is not None:\n        grads = tree.cast(grads, chosen.compute)\n",
        ONCE + "test_acc_7_gradients_in_half_precision_are_summed_in_float32",
    ),
    mutant(
        "window: a short one is applied though it should be dropped",
        "run/recipe.py",
        "    if acc is None or (drop and int(acc.pieces) < k):\n",
        "    if acc is None:\n",
        WINDOWS + "test_win_1_ten_batches_in_windows_of_four_move_the_weight_by",
        WINDOWS + "test_win_1_a_dropped_window_leaves_the_buffers_too",
    ),
    mutant(
        "window: a short one is dropped by default",
        "run/recipe.py",
        "(drop and int(acc.pieces) < k)",
        "int(acc.pieces) < k",
        WINDOWS + "test_win_1_ten_batches_in_windows_of_four_move_the_weight_by",
    ),
    mutant(
        "window: a short one is divided by the batches that it lacks",
        "run/recipe.py",
        "    return step.apply(state, acc, **extra)\n",
        "    share = int(acc.pieces) / k\n"
        "    few = acc._replace(grads={name: g * share for name, g in acc.grads.items()})\n"
        "    return step.apply(state, few, **extra)\n",
        WINDOWS + "test_win_1_ten_batches_in_windows_of_four_move_the_weight_by",
    ),
    mutant(
        "window: it is carried over one epoch's end and not over two",
        "run/feed.py",
        "self._ended = not (taken and self._epoch + 1 < epochs)",
        "self._ended = not (taken and self._epoch + 1 < epochs) or self._epoch > self.place.epoch",
        WINDOWS + "test_win_1_carried_through_epochs_that_are_shorter_than_it_a_window_has_all_its_batches",
    ),
    mutant(
        "window: it goes on into the next epoch though it is not carried",
        "run/feed.py",
        "self._ended = not (taken and self._epoch + 1 < epochs)",
        "self._ended = not taken",
        WINDOWS + "test_win_2_a_gradient_crosses_an_epochs_end_if_it_is_carried_and_only_then",
    ),
    mutant(
        "window: it is carried beyond the last epoch",
        "run/cadence.py",
        "return sys.maxsize if self.max_epochs is None else self.max_epochs\n",
        "return sys.maxsize\n",
        WINDOWS + "test_win_1_1_to_5_twice_in_windows_of_three_move_the_weight_by_these_means",
    ),
    mutant(
        "window: cut by an exception, it is saved with the random numbers that it drew",
        "run/feed.py",
        "        if not self._settled:\n",
        "        if self._settled is None:\n",
        CUT_AND_RESUMED,
    ),
    mutant(
        "window: that it crossed an epoch's end is not noticed",
        "run/feed.py",
        "        crossed = self.place.crossed or self._epoch > self.place.epoch\n",
        "        crossed = False\n",
        ONCE + "test_acc_5_validation_between_windows_changes_nothing",
    ),
    mutant(
        "window: that it crossed an epoch's end is not saved",
        "run/place.py",
        '{**self._asdict(), "begun"',
        '{**self._asdict(), "crossed": False, "begun"',
        CUT_AND_RESUMED,
    ),
    mutant(
        "window: a place within one epoch is replayed from the beginning of another",
        "run/feed.py",
        "Place(self._epoch, self._fetched, self._ended, crossed, self._begun)",
        "Place(self._epoch, self._fetched, self._ended, crossed, self.place.begun)",
        CUT_AND_RESUMED,
    ),
    mutant(
        "window: a short one is not counted",
        "run/cadence.py",
        "return epochs * math.ceil(length / k) + math.ceil(rest / k)",
        "return epochs * (length // k) + rest // k",
        WINDOWS + "test_win_3_the_updates_the_bar_and_the_schedule_have_one_number",
    ),
    mutant(
        "window: one that crosses is in no epoch's count",
        "run/cadence.py",
        "return math.ceil(batches / k) if length else batches // k",
        "return batches // k",
        WINDOWS + "test_win_3_the_updates_the_bar_and_the_schedule_have_one_number",
    ),
    mutant(
        "window: dropped ones are counted",
        "run/cadence.py",
        'if self.short_window == "drop":\n            return',
        'if self.short_window == "dropped":\n            return',
        WINDOWS + "test_win_3_the_updates_the_bar_and_the_schedule_have_one_number",
    ),
    mutant(
        "window: an epoch that drop leaves nothing of is no error",
        "run/cadence.py",
        'if self.short_window == "drop" and 0 < length < self.grad_accum_steps:',
        'if self.short_window == "dropped" and 0 < length < self.grad_accum_steps:',
        WINDOWS + "test_win_1_an_epoch_of_which_drop_leaves_nothing_is_an_error",
    ),
    mutant(
        "schedule: a skipped update counts",
        "step.py",
        "opt_state, params, buffers = state.opt_state, state.params, state.buffers",
        "params, buffers = state.params, state.buffers\n"
        "            opt_state = self.updated(state, acc, norm, extra)[1]",
        RATES + "test_sch_2_skipped_updates_do_not_advance_the_schedule",
    ),
    mutant(
        "schedule: torch's steps twice an update",
        "run/driver.py",
        "            self.scheduler.step()\n",
        "            self.scheduler.step()\n            self.scheduler.step()\n",
        RATES + "test_sch_1_the_rate_at_update_u_is_schedule_u_whatever_else_goes_on",
    ),
    mutant(
        "schedule: the whole run is one epoch of it",
        "run/cadence.py",
        "limits.append(self._updates(length * self.max_epochs, length))",
        "limits.append(self._updates(length, length))",
        RATES + "test_sch_4_a_schedule_over_the_whole_run_comes_to_its_end_with_the_run",
    ),
    mutant(
        "schedule: max_steps does not shorten the run",
        "run/cadence.py",
        "return min(limits, default=None)",
        "return max(limits, default=None)",
        RATES + "test_sch_4_a_schedule_over_the_whole_run_comes_to_its_end_with_the_run",
    ),
    mutant(
        "schedule: a length that nobody knows is none at all",
        "run/driver.py",
        "    if total is None:\n",
        "    if total == -1:\n",
        RATES + "test_sch_4_without_a_length_and_max_steps_it_is_an_error_at_construction",
    ),
    mutant(
        "plateau: it steps after the checkpoint",
        "run/loop.py",
        '        self.driver.validated(result["loss"])\n',
        '        steps = [lambda: self.driver.validated(result["loss"])]\n'
        '        self.callbacks.append(lambda event, _: event == "save" and steps and steps.pop()())\n',
        PLATEAU + "test_sch_5_a_plateau_steps_before_the_checkpoint",
        PLATEAU + "test_sch_5_resumed_it_does_not_step_again",
    ),
    mutant(
        "plateau: a validation that was broken off counts",
        "run/loop.py",
        "        if self._stop:\n            return None\n",
        '        if self._stop:\n            self.driver.validated(result.get("loss", 0.0))\n            return None\n',
        PLATEAU + "test_sch_5_a_validation_that_is_broken_off_steps_when_it_is_made_up_for",
    ),
    mutant(
        "plateau: it steps at each update",
        "run/driver.py",
        "if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau) and",
        'if isinstance(self.scheduler, ReduceLROnPlateau):\n            self.scheduler.step(metrics["loss"])\n'
        "        if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau) and",
        PLATEAU + "test_sch_5_a_plateau_steps_once_a_validation",
    ),
    mutant(
        "loader: a length that is not implemented is an error",
        "run/place.py",
        "    except (TypeError, NotImplementedError):\n        return None\n",
        "    except TypeError:\n        return None\n",
        LOADERS + "test_iter_1_a_loader_without_a_length_is_trained_and_validated_on",
    ),
    mutant(
        "loader: that it is empty is no error",
        "run/feed.py",
        "                if not self._fetched:\n",
        "                if self._fetched < 0:\n",
        LOADERS + "test_iter_2_a_loader_that_yields_nothing_raises",
    ),
    mutant(
        "loader: a look ahead counts as consumed",
        "run/feed.py",
        "            self._ahead.append(batch)\n",
        "            self._ahead.append(batch)\n            self._fetched += 1\n",
        AHEAD + "test_iter_3_what_was_fetched_and_not_trained_on_comes_again",
    ),
    mutant(
        "loader: what a look ahead found is lost",
        "run/feed.py",
        "            self._ahead.append(batch)\n",
        "            pass\n",
        AHEAD + "test_iter_3_what_was_fetched_and_not_trained_on_comes_again",
    ),
    mutant(
        "loader: an epoch that its length says is over is over",
        "run/feed.py",
        "        self._settled = self._ended = batch is _END\n",
        "        self._settled = self._ended = True\n",
        AHEAD + "test_iter_3_what_was_fetched_and_not_trained_on_comes_again",
    ),
    mutant(
        "loader: one that is spent ends the run in silence",
        "run/feed.py",
        "                    raise ValueError(self._nothing())\n",
        "                    self._ended = True\n                    continue\n",
        LOADERS + "test_iter_5_a_one_shot_generator_fails_in_epoch_2",
    ),
    mutant(
        "loader: one that is spent is said to be empty",
        "run/feed.py",
        '        if not self._epoch:\n            return "Trainer',
        '        if self._epoch < 2:\n            return "Trainer',
        LOADERS + "test_iter_5_a_one_shot_generator_fails_in_epoch_2",
    ),
)
