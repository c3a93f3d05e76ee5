"""Faults in how a run goes on: its place in the data, its random streams, and what it says will differ."""

from tests.faults import mutant

FEED, PLACE, STREAMS, PROGRESS, LOOP, DIRECTORY = (
    "run/feed.py", "run/place.py", "run/streams.py", "run/progress.py", "run/loop.py", "run/directory.py",
)  # fmt: skip
EXACT, AFTER, WORKERS, STATEFUL = (
    f"trainer/resume/test_{name}.py::test_res_" for name in ("exact", "exceptions", "workers", "stateful")
)
SAID, FILES, BEST = (f"trainer/resume/test_{name}.py::test_res_" for name in ("inexact", "files", "best"))
ANYWHERE = EXACT + "1_saved_after_any_update_and_resumed_is_not_stopped"
SHUFFLED, OWN = f"{ANYWHERE}[shuffle-settings0]", f"{ANYWHERE}[own streams-settings0]"
DIFFERS = SAID + "7_one_warning_says_what_differs_and_it_does"

FAULTS = (
    mutant(
        "resume: the epoch is replayed from other random numbers",
        FEED,
        "        restore(begun, self._sources)\n        if isinstance",
        "        if isinstance",
        SHUFFLED,
    ),
    mutant(
        "resume: the streams go on from the replay",
        FEED,
        "            restore(place.now, self._sources)\n",
        "            pass\n",
        SHUFFLED,
    ),
    mutant(
        "resume: one batch too few is passed over",
        FEED,
        "for i in range(place.consumed):",
        "for i in range(place.consumed - 1):",
        EXACT + "2_two_and_five_resumes_in_one_epoch_are_as_exact_as_one",
    ),
    mutant(
        "resume: a failed replay leaves its traces in the streams",
        FEED,
        "                restore(before, self._sources)\n                raise",
        "                raise",
        FILES + "5_a_replay_that_fails_leaves_the_streams_as_they_were",
    ),
    mutant(
        "resume: after an exception the streams are taken for those of the last boundary",
        FEED,
        "        if not self._settled:\n",
        "        if False:\n",
        AFTER + "1_saved_after_an_exception_and_resumed_is_the_run_that_had_none",
    ),
    mutant(
        "resume: batches of the window that an exception ended count as consumed",
        FEED,
        "            self._newest = batch, versions(batch)\n",
        "            self._newest = batch, versions(batch)\n"
        "            self.place = self.place._replace(consumed=self._fetched)\n",
        AFTER + "1_saved_after_an_exception_and_resumed_is_the_run_that_had_none",
    ),
    mutant(
        "resume: persistent workers live on between two calls of train()",
        FEED,
        '            vars(self.loader)["_iterator"] = None\n',
        "            pass\n",
        WORKERS + "1_train_again_in_the_same_process_goes_on_exactly",
    ),
    mutant(
        "resume: a stateful loader is not asked for its place",
        FEED,
        "        keeps = isinstance(self.loader, Stateful) and place.replays",
        "        keeps = False and place.replays",
        STATEFUL + "1_of_a_stateful_loader_nothing_is_replayed",
    ),
    mutant(
        "resume: what a stateful dataset remembers is lost at an epoch's end",
        STREAMS,
        'found[f"{name}.dataset"] = _stateful(data)',
        "pass",
        STATEFUL + "1_a_stateful_loader_goes_on_exactly_from_everywhere",
    ),
    mutant(
        "resume: a loader's own streams are not found",
        STREAMS,
        "        found |= _owned(name, loader, seen)\n",
        "",
        OWN,
    ),
    mutant(
        "resume: numpy's stream is not put back",
        STREAMS,
        "lambda state: legacy.set_state(_tuple(state))",
        "lambda state: None",
        SHUFFLED,
    ),
    mutant(
        "resume: Python's stream is not put back",
        STREAMS,
        "        set_to((version, _tuple(words), gauss))\n",
        "        pass\n",
        SHUFFLED,
    ),
    mutant(
        "resume: an epoch that has no more batches is replayed",
        PLACE,
        "return self.consumed > 0 and not self.exhausted",
        "return self.consumed > 0",
        STATEFUL + "1_of_a_stateful_loader_nothing_is_replayed",
    ),
    mutant(
        "resume: another number of workers is no difference",
        PLACE,
        "    if None not in (place.workers, workers) and place.workers != workers:",
        "    if False:",
        DIFFERS,
    ),
    mutant(
        "resume: another batch size is no difference",
        PLACE,
        "    if place.batch_size != size:",
        "    if False:",
        DIFFERS,
    ),
    mutant(
        "resume: another number of batches is no difference",
        PLACE,
        "    elif place.length is not None and length is not None and place.length != length:",
        "    elif False:",
        DIFFERS,
    ),
    mutant(
        "resume: persistent workers are no difference",
        PLACE,
        "and (place.epoch or place.exhausted):",
        "and place.epoch > 9:",
        DIFFERS,
    ),
    mutant(
        "resume: persistent workers are a difference where they go on exactly",
        PLACE,
        "and (place.epoch or place.exhausted):",
        "and True:",
        WORKERS + "1_persistent_workers_go_on_exactly_from_within_the_first_epoch",
    ),
    mutant(
        "resume: what stateful workers draw is no difference",
        PLACE,
        "    elif workers and kept and not isinstance(data, Stateful):",
        "    elif False:",
        DIFFERS,
    ),
    mutant(
        "resume: an iterable is no difference",
        PLACE,
        "    elif streamed and began and",
        "    elif streamed and False and",
        DIFFERS,
    ),
    mutant(
        "resume: a stream that came or went is no difference",
        PLACE,
        '    if names := ", ".join(sorted(odd)):',
        '    if names := "":',
        DIFFERS,
    ),
    mutant(
        "resume: other data is no difference",
        FEED,
        "place.last == checksum(batch) or",
        "True or",
        DIFFERS,
    ),
    mutant(
        "resume: a run that is over is warned of what will differ",
        FEED,
        "        if replay:\n            different += more\n",
        "        if True:\n            different += more\n",
        SAID + "7_a_run_that_is_over_or_has_not_begun_is_warned_of_nothing",
    ),
    mutant(
        "resume: a place that lacks the epoch's streams is not refused",
        PROGRESS,
        "    if place.replays and place.begun is None:",
        "    if False:",
        FILES + "6_streams_that_are_missing_are_named",
    ),
    mutant(
        "resume: a part that is missing has a default",
        PROGRESS,
        "        return None if name in source and source[name] is None else part(name, kind, source)",
        "        return None if source.get(name) is None else part(name, kind, source)",
        FILES + "6_a_part_that_is_missing_is_named",
    ),
    mutant(
        "resume: the best so far is forgotten",
        PROGRESS,
        'part("best", float), part(',
        'part("best", float) + math.inf, part(',
        BEST + "8_the_best_value_survives",
    ),
    mutant(
        "resume: a run that went back replaces the best by worse",
        DIRECTORY,
        "        return not isinstance(found, float) or least < found",
        "        return True",
        BEST + "8_a_run_that_goes_on_from_an_older_checkpoint_never_replaces_the_best_by_worse",
    ),
    mutant(
        "resume: a finished run is saved again",
        LOOP,
        "        if self.run and self._keeper.wants(self._where(), due=True):",
        "        if self.run:",
        BEST + "9_a_finished_run_with_the_same_limit_does_nothing_and_says_so",
    ),
    mutant(
        "resume: the state of a checkpoint is taken up before its meta is read",
        "trainer.py",
        "        progress, place = read_progress(contents, self.driver.outline)\n",
        "        self.state = checkpoint.rebuild(contents, self.state)\n"
        "        progress, place = read_progress(contents, self.driver.outline)\n",
        FILES + "5_a_load_that_fails_changes_nothing",
    ),
    mutant(
        "resume: the record of an update that a callback saves is not in the file",
        "trainer.py",
        "        self.journal.check()\n        self._log()\n",
        "        self.journal.check()\n",
        SHUFFLED,
    ),
    mutant(
        "resume: when the last validation was is forgotten",
        "run/progress.py",
        'part("validated", int))',
        "0)",
        "trainer/resume/test_exact.py::test_res_3_save_load_save_is_equal_content",
    ),
    mutant(
        "saving: a random number is drawn",
        "run/feed.py",
        "return place._replace(now=capture(self._sources), loader=state)",
        "return place._replace(now=capture(self._sources) if torch.rand(1) >= 0 else None, loader=state)",
        "trainer/resume/test_workers.py::test_res_4_asynchronous_saves_validations_with_workers_and_logs_leave_no_trace",
    ),
    mutant(
        "resume: a module's own random numbers are passed over in silence",
        "run/loop.py",
        'own = ", ".join(own_streams(self.model.module)) if self._resumed else ""',
        'own = ""',
        "trainer/resume/test_inexact.py::test_res_7_a_module_with_random_numbers_of_its_own_is_named_and_differs",
    ),
)
