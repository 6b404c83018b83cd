"""Every guarantee has tests, and mutants that turn them red; and the check that says so can say otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from attrs import evolve

from tests.proofs.book import PAGE, Checked, Proof, check, is_form, promised, read_proofs, render
from tests.proofs.guarantees import Guarantee, guarantees
from tests.proofs.mutants import not_green, not_red, skipped

README = """# X

## Guarantees

- **Once.** A thing
  happens once.
- **Twice.** Another twice.

## Not guaranteed

- **Thrice.**
"""
THREATS = """## Stopped

| somebody who … | cannot … | because |
|---|---|---|
| steals `a` | read | sealed |

## Not stopped

| what | why |
|---|---|
| root | root |

## Evidence levels

| level | meaning | evidence |
|---|---|---|
| E0 | nobody reads | leases |
| E3 | no residue | not issued: nothing to show |
"""


def test_every_guarantee_has_tests_and_a_red_control() -> None:
    """0 unmapped, 0 without a red control, and PROOFS.md says it; `make proofs` sees the tests turn red."""
    found = check(read_proofs(), promised(), PAGE.read_text())
    assert found.is_sound, str(found)
    assert "0 unmapped, 0 without a red control" in str(found)


def test_every_test_of_the_book_is_there_with_its_parameters(request: pytest.FixtureRequest) -> None:
    """Of the files that this run has collected: a name in brackets that changed proves nothing any more."""
    collected = {item.nodeid for item in request.session.items}
    files = {one.partition("::")[0] for one in collected}
    named = {test for proof in read_proofs() for one in (proof, *proof.controls) for test in one.tests}
    asked = {test for test in named if test.partition("::")[0] in files}
    assert [test for test in sorted(asked) if not any(is_form(one, test) for one in collected)] == []


def test_bullets_rows_and_issued_levels_are_guarantees_and_nothing_else_is() -> None:
    """As somebody reads them who looks at the pages."""
    assert guarantees(README, THREATS) == [
        Guarantee("README.md", "Once. A thing happens once."),
        Guarantee("README.md", "Twice. Another twice."),
        Guarantee("docs/threat-model.md", "steals `a`", "read"),
        Guarantee("docs/threat-model.md", "E0: nobody reads"),
    ]
    with pytest.raises(ValueError, match="no heading"):
        guarantees(README.replace("## Guarantees", "## Promises"), THREATS)


def checked(proofs: Sequence[Proof], promises: Sequence[Guarantee] | None = None) -> Checked:
    """With the page that these proofs make."""
    promises = promised() if promises is None else promises
    return check(proofs, promises, render(proofs, promises))


def test_a_guarantee_that_nobody_proves_is_unmapped() -> None:
    """One that was added to a page, and one whose proof was taken out of the book."""
    proofs, promises = read_proofs(), promised()
    new = Guarantee("README.md", "Whatever you can think of.")
    assert checked(proofs, [*promises, new]).unmapped == (new.text,)
    assert len(checked(proofs[1:]).unmapped) == 1


def test_a_test_that_no_mutant_turns_red_is_without_a_control() -> None:
    """Neither a proof without mutants nor one of whose tests none of them reddens."""
    first, *rest = read_proofs()
    idle = "tests/test_proofs.py::test_a_guarantee_that_nobody_proves_is_unmapped"
    for changed in (
        evolve(first, controls=()),
        evolve(first, tests=(*first.tests, idle)),
        evolve(first, tests=()),
    ):
        assert first.guarantee in checked([changed, *rest]).uncontrolled


def test_what_does_not_exist_or_breaks_nothing_is_wrong() -> None:
    """A test, a file, a text that occurs never or twice, words of no guarantee."""
    first, *rest = read_proofs()
    control = first.controls[0]
    no_test = evolve(first, tests=(*first.tests, "tests/test_proofs.py::test_of_nothing"))
    for changed in (
        evolve(control, file="lake/nowhere.py"),
        evolve(control, find="nothing like this"),
        evolve(control, find="import"),
        evolve(control, replace=control.find),
        evolve(control, breaks=""),
        evolve(control, tests=("tests/test_proofs.py::checked",)),
    ):
        assert checked([evolve(first, controls=(changed, *first.controls[1:])), *rest]).faults, changed
    assert checked([no_test, *rest]).faults
    assert checked([evolve(first, guarantee="never promised"), *rest]).faults
    assert checked([first, *read_proofs()]).faults, "a guarantee is one line"
    assert check(read_proofs(), promised(), "an older page").faults


def test_a_mutant_is_red_only_where_the_test_itself_fails() -> None:
    """Not where it was not there or broke before it began; green is all that ran; a skipped one is told."""
    outcomes = {
        "t::failed": ["failed"],
        "t::passed": ["passed"],
        "t::skipped": ["skipped"],
        "t::error": ["error"],
        "t::some[a]": ["passed"],
        "t::some[b]": ["failed"],
        "t::both[a]": ["passed"],
        "t::both[b]": ["passed"],
        "t::server[a]": ["passed"],
        "t::server[b]": ["skipped"],
    }
    every = [
        "t::failed",
        "t::passed",
        "t::skipped",
        "t::error",
        "t::some",
        "t::both",
        "t::server",
        "t::absent",
    ]
    assert not_red(outcomes, every) == ["t::passed", "t::error", "t::both", "t::server", "t::absent"]
    assert not_green(outcomes, every) == ["t::failed", "t::error", "t::some", "t::absent"]
    assert skipped(outcomes, every) == ["t::skipped"]
    assert not_red(outcomes, ["t::some[a]", "t::some[b]"]) == ["t::some[a]"]
