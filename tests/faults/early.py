"""Faults in stopping early."""

from tests.faults import mutant

EARLY = "trainer/test_early.py::"
WHEN = EARLY + "test_a_run_stops_once_nothing_was_better_for_as_long_as_the_patience"
FILE = "run/early.py"

FAULTS = (
    mutant(
        "early stopping: equal is better", FILE, "if x + self.min_delta < best", "if x + self.min_delta <= best", WHEN
    ),
    mutant(
        "early stopping: NaN is better",
        FILE,
        "if x + self.min_delta < best:",
        "if not x + self.min_delta >= best:",
        WHEN,
    ),
    mutant("early stopping: the margin helps", FILE, "if x + self.min_delta <", "if x - self.min_delta <", WHEN),
    mutant(
        "early stopping: the best is the last one",
        FILE,
        "                    waited += 1",
        "                    best, waited = x, waited + 1",
        WHEN,
    ),
    mutant(
        "early stopping: the best is the least, whatever the margin",
        FILE,
        "                    waited += 1",
        "                    best, waited = min(x, best), waited + 1",
        WHEN,
    ),
    mutant(
        "early stopping: one validation too late", FILE, "if waited < self.patience", "if waited <= self.patience", WHEN
    ),
    mutant(
        "early stopping: the greatest is taken for the least",
        FILE,
        "sign = 1 if self.mode",
        "sign = 1 if self.mode or self.mode",
        EARLY + "test_the_greatest_is_the_least_of_the_negated",
    ),
    mutant(
        "early stopping: every record counts",
        FILE,
        "if self.monitor in record:\n                x = sign * number(record[self.monitor])",
        "if record:\n                x = sign * number(record.get(self.monitor))",
        EARLY + "test_records_without_the_number_do_not_count",
    ),
    mutant(
        "early stopping: patience is of all records, not of those in a row",
        FILE,
        "best, where, waited = x, f\"{sign * x:.5g} of update {record['step']:,}\", 0",
        "best, where = x, f\"{sign * x:.5g} of update {record['step']:,}\"",
        WHEN,
    ),
    mutant(
        "early stopping: a number that never comes is waited for",
        FILE,
        "        self._check_names(history)\n",
        "",
        EARLY + "test_a_number_that_no_record_has_is_an_error_that_lists_what_there_is",
    ),
    mutant(
        "early stopping: a number that may yet come is an error",
        FILE,
        '"val_loss" in names and first in names and',
        '"val_loss" in names and',
        EARLY + "test_a_number_that_may_come_or_came_is_no_error",
    ),
    mutant(
        "early stopping: the wrong mode is no error",
        FILE,
        'if self.mode not in ("min", "max"):',
        "if not self.mode:",
        EARLY + "test_a_value_out_of_its_range_is_an_error",
    ),
)
