"""Every guarantee has a test that carries its name, and a planted fault which that test notices."""

from __future__ import annotations

from tests import guarantees


def test_every_guarantee_is_proven_by_a_test_of_its_name() -> None:
    assert [entry for entry, found in guarantees.proofs().items() if not found] == []


def test_every_test_of_a_guarantee_names_one_that_there_is() -> None:
    assert guarantees.proofs().keys() == guarantees.ENTRIES.keys()


def test_every_guarantee_has_a_planted_fault_that_its_test_notices() -> None:
    proven = guarantees.proofs()
    assert [entry for entry, found in proven.items() if not any(proof.faults for proof in found)] == []


def test_the_page_is_what_the_tests_say() -> None:
    assert guarantees.PAGE.read_text("utf-8") == guarantees.page(), "hint: python -m tests.guarantees --write"


def test_an_entry_is_read_from_a_tests_name() -> None:
    assert guarantees.entry_of("test_ckpt_10_tied_weights_stay_tied") == "CKPT-10"
    assert guarantees.entry_of("test_ckpt_tied") is None
    assert guarantees.entry_of("test_abc_1_x") is None
