"""Faults in saving, in the directory of a run, and in stopping by a signal."""

from tests.faults import mutant

SAVING, DISK = "trainer/test_saving.py::", "trainer/test_full_disk.py::"
DIRECTORY, LOCK, SIGNALS = "trainer/test_directory.py::", "trainer/test_lock.py::", "trainer/test_signals.py::"
OF_ITS_UPDATE = SAVING + "test_a_background_checkpoint_is_of_its_update_though_training_goes_on[rule]"
AGAIN = SAVING + "test_a_run_whose_last_background_save_failed_is_saved_under_all_names_when_it_goes_on"
EVERY_INSTANT = DIRECTORY + "test_ckpt_6_at_every_instant_of_every_save_what_must_be_there_is_there[hard links]"
LEFT = LOCK + "test_ckpt_7_what_killed_writers_left_half_written_is_removed_and_nothing_else"
AUTO = DIRECTORY + "test_ckpt_5_auto_takes_the_newest_that_verifies_and_names_each_that_it_skips"
CTRL_C = SIGNALS + "test_sig_1_ctrl_c_exits_with_130_and_sigusr1_with_143"

FAULTS = (
    mutant(
        "saving: training waits for the disk",
        "run/saving.py",
        "if not self.background or wait:",
        "if not self.background or not wait:",
        OF_ITS_UPDATE,
    ),
    mutant(
        "saving: the state is not copied before training goes on",
        "run/saving.py",
        "snapshot(state), meta",
        "state, meta",
        SAVING + "test_a_background_checkpoint_is_of_its_update_though_a_compiled_step_takes_the_states_memory[rule]",
    ),
    mutant(
        "saving: what goes wrong in the background is not told",
        "run/saving.py",
        "return writing.result()",
        "return None if writing.exception() else writing.result()",
        SAVING + "test_what_goes_wrong_in_the_last_background_save_is_an_error_at_the_end",
    ),
    mutant(
        "saving: what goes wrong beside another error is not said",
        "run/keeper.py",
        "say(str(error))",
        "pass",
        SAVING + "test_what_goes_wrong_in_the_background_beside_a_users_error_is_said",
    ),
    mutant(
        "saving: the best is forgotten when its save failed in the background",
        "run/keeper.py",
        "if self._lost and self._lost[0] == where:",
        "if False:",
        AGAIN,
    ),
    mutant(
        "saving: the thread is left to itself",
        "run/saving.py",
        "            self._pool.shutdown()\n            self._pool = None\n",
        "            pass\n",
        "trainer/test_keeper.py::test_no_thread_is_left_when_training_has_ended",
    ),
    mutant(
        "directory: old checkpoints go before the new one is there",
        "run/directory.py",
        "            checkpoint.save(path, tree, meta=meta)\n",
        "            for old in self.path.glob('step-*.pt'):\n"
        "                if not self._is_protected(old):\n"
        "                    old.unlink()\n"
        "            checkpoint.save(path, tree, meta=meta)\n",
        EVERY_INSTANT,
    ),
    mutant(
        "directory: last.pt is away for an instant",
        "run/directory.py",
        "            os.link(path, temporary)\n            os.replace(temporary, name)\n",
        "            name.unlink(missing_ok=True)\n            os.link(path, name)\n",
        EVERY_INSTANT,
    ),
    mutant(
        "directory: the newest by name, not by number",
        "run/directory.py",
        "past = [path for number, path in found if number <= step and (self._begun or number == step)]",
        "past = sorted(path for number, path in found if number <= step and (self._begun or number == step))",
        DIRECTORY + "test_ckpt_6_the_newest_are_those_of_the_greatest_numbers",
    ),
    mutant(
        "directory: the checkpoint that was resumed from is rotated away",
        "run/directory.py",
        "            if not self._is_protected(path):\n",
        "            if True:\n",
        DIRECTORY + "test_ckpt_6_the_one_resumed_from_is_never_deleted",
    ),
    mutant(
        "directory: the checkpoint that was resumed from, saved anew, is rotated away",
        "run/directory.py",
        "                if protected:",
        "                if False:",
        EVERY_INSTANT,
    ),
    mutant("directory: auto skips in silence", "run/directory.py", 'say(f"skipped: {error}")', "None", AUTO),
    mutant(
        "directory: a full disk at the start is an error of the system",
        "run/directory.py",
        "    except (OSError, Damaged) as error:\n        raise CheckpointError",
        "    except Damaged as error:\n        raise CheckpointError",
        DISK + "test_ckpt_2_a_disk_that_is_full_from_the_start_is_an_error_before_the_first_update",
    ),
    mutant(
        "lock: of a process, not of a Trainer",
        "run/directory.py",
        "fcntl.flock(descriptor",
        "fcntl.lockf(descriptor",
        LOCK + "test_ckpt_7_two_trainers_at_once_in_one_process_are_refused",
        LOCK + "test_ckpt_7_a_second_live_process_is_refused_with_the_pid_of_the_first",
    ),
    mutant(
        "lock: forked workers hold it on",
        "run/directory.py",
        "    os.register_at_fork(after_in_child=_let_go)",
        "    pass",
        LOCK + "test_ckpt_7_forked_workers_that_live_on_do_not_hold_the_directory",
    ),
    mutant(
        "lock: a save outside a run does without",
        "run/directory.py",
        "with nullcontext() if self._locked else self._alone():",
        "with nullcontext():",
        LOCK + "test_ckpt_7_a_second_live_process_is_refused_with_the_pid_of_the_first",
    ),
    mutant(
        "lock: what was half-written stays",
        "run/directory.py",
        "                    if HALF_WRITTEN.fullmatch(path.name):",
        "                    if False:",
        LEFT,
    ),
    mutant(
        "lock: every temporary file is taken for half-written",
        "run/directory.py",
        "                    if HALF_WRITTEN.fullmatch(path.name):",
        "                    if path.suffix == '.tmp':",
        LEFT,
    ),
    mutant(
        "signals: the second of any kind does what it did before",
        "run/stopping.py",
        "        if number == signal.SIGINT:\n            _put_back(signal.SIGINT, previous[signal.SIGINT])\n",
        "        _put_back(signal.Signals(number), previous[signal.Signals(number)])\n",
        SIGNALS + "test_sig_1_signals_that_come_again_while_it_saves_do_not_abort_the_save",
    ),
    mutant(
        "signals: a second Ctrl-C is like the first",
        "run/stopping.py",
        "        if number == signal.SIGINT:\n",
        "        if False:\n",
        SIGNALS + "test_sig_1_a_second_ctrl_c_aborts_where_the_run_is",
    ),
    mutant(
        "signals: the last one decides the status",
        "run/stopping.py",
        "stop.signal = stop.signal or signal.Signals(number)",
        "stop.signal = signal.Signals(number)",
        SIGNALS + "test_sig_1_the_status_is_that_of_the_first_signal",
    ),
    mutant(
        "signals: each has its own status",
        "run/stopping.py",
        "128 + (signal.SIGINT if self.signal == signal.SIGINT else signal.SIGTERM)",
        "128 + self.signal",
        CTRL_C,
    ),
    mutant(
        "signals: handlers stay",
        "run/stopping.py",
        "        for number, handler in previous.items():\n            _put_back(number, handler)\n",
        "        pass\n",
        SIGNALS + "test_sig_1_handlers_are_ours_in_a_run_and_theirs_after_it",
    ),
    mutant(
        "signals: handlers are set off the main thread too",
        "run/stopping.py",
        "if threading.current_thread() is threading.main_thread():",
        "if threading.current_thread():",
        SIGNALS + "test_sig_1_off_the_main_thread_a_run_leaves_signals_alone",
    ),
    mutant(
        "signals: a validation is finished first",
        "run/evaluation.py",
        "                    if stop():\n                        break\n",
        "",
        SIGNALS + "test_sig_1_a_validation_is_left_at_its_next_batch_and_made_up_for",
    ),
    mutant(
        "saving: what failed in the background counts as saved",
        "run/keeper.py",
        "            self.saved, self._best = None, self._best_before\n",
        "            self._best = self._best_before\n",
        "trainer/test_keeper.py::test_what_failed_at_the_very_end_is_saved_by_a_further_train",
    ),
    mutant(
        "saving: a best that the disk did not take stays the best",
        "run/keeper.py",
        "            self.progress.best = self._best\n",
        "",
        "trainer/test_keeper.py::test_a_best_that_the_disk_did_not_take_is_not_the_best",
    ),
    mutant(
        "validation: NaN is the best",
        "run/progress.py",
        "better = loss < self.best",
        "better = not loss >= self.best",
        "trainer/test_directory.py::test_ckpt_8_nan_is_never_best_and_of_equal_ones_it_is_the_first",
    ),
    mutant(
        "validation: of equal ones the last is the best",
        "run/progress.py",
        "better = loss < self.best",
        "better = loss <= self.best",
        "trainer/test_directory.py::test_ckpt_8_nan_is_never_best_and_of_equal_ones_it_is_the_first",
    ),
    mutant(
        "records: a run that is stopped writes one that another has not",
        "run/loop.py",
        "self.journal.pending and self.cadence.log_due(self.updates, self.feed.place)",
        "self.journal.pending and (self.cadence.log_due(self.updates, self.feed.place) or self._over())",
        "trainer/test_rows.py::test_res_1_a_run_that_was_stopped_has_no_record_that_another_has_not",
    ),
    mutant(
        "records: numbers that are not finite are passed over at a stop",
        "run/loop.py",
        "        self._finite()\n        if self.run and",
        "        if self.run and",
        "trainer/test_rows.py::test_nan_1_at_a_stop_too_it_is_an_error",
    ),
    mutant(
        "directory: a new run deletes another run's checkpoints",
        "run/directory.py",
        "if number > step or (number < step and not self._begun):",
        "if number > step:",
        "trainer/test_directory.py::test_a_new_run_sets_aside_all_that_another_run_saved_and_deletes_nothing_of_it",
    ),
    mutant(
        "boundary: the place follows only when the look for the end went well",
        "run/loop.py",
        "        self.feed.mark()\n        if updated",
        "        self.feed.look()\n        self.feed.mark()\n        if updated",
        "trainer/test_boundaries.py::test_an_error_at_the_look_for_an_epochs_end_leaves_update_and_place_together",
    ),
    mutant(
        "end: what a callback does to the module is undone",
        "run/loop.py",
        "        self._training = False  # what a callback does to the module now stays\n",
        "",
        "trainer/test_boundaries.py::test_what_a_callback_does_to_the_module_at_the_end_stays",
    ),
    mutant(
        "resume: the seed that is told is the argument's",
        "trainer.py",
        "self.seed = int(self.state.seed)",
        'self.seed = vars(self).get("seed", int(self.state.seed))',
        "trainer/test_boundaries.py::test_a_resumed_run_tells_the_seed_that_it_has",
    ),
)
