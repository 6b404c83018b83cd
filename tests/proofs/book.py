"""The book of proofs: read from `proofs.toml`, checked against guarantees, tests and code, and printed."""

from __future__ import annotations

import ast
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from attrs import frozen

from tests.proofs.guarantees import README, THREAT_MODEL, Guarantee, guarantees

ROOT: Final = Path(__file__).parents[2]
SOURCE: Final = ROOT / "src"
PAGE: Final = ROOT / "PROOFS.md"
_BOOK: Final = Path(__file__).with_name("proofs.toml")
_INTRODUCTION: Final = """\
# Proofs

Each guarantee of [README.md](README.md) and [docs/threat-model.md](docs/threat-model.md), the tests that
hold it, and what was broken in the code to see these tests fail. A test that nothing turns red proves nothing:
`make proofs` makes every mutant below in a copy of the code and runs its tests there. Each test below is
turned red by at least one mutant, and each mutant turns at least one test red.

{count} guarantees, {tests} tests, {controls} mutants. Made from [tests/proofs/proofs.toml](tests/proofs/proofs.toml)
by `python -m tests.proofs write`; `python -m tests.proofs check` finds what is missing.
"""
_SECTIONS: Final = (
    ("What the README guarantees", lambda one: one.page == README),
    ("What the threat model calls stopped", lambda one: one.page == THREAT_MODEL and bool(one.cannot)),
    ("Evidence levels", lambda one: one.page == THREAT_MODEL and not one.cannot),
)


@frozen
class Control:
    """A mutant: one place of the code that is broken to see tests fail.

    Attributes:
        file: below the source folder.
        find, replace: the text that occurs there once, and what takes its place.
        breaks: what does not hold any more, in words.
        tests: ids of those that must fail, or of some of their forms.
    """

    file: str
    find: str
    replace: str
    breaks: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """The file's text with the mutation; raises ValueError where `find` is not there exactly once."""
        if (times := text.count(self.find)) != 1:
            raise ValueError(f"{self.file}: {self.find!r} is there {times} times, not once")
        return text.replace(self.find, self.replace)


@frozen
class Proof:
    """What proves one guarantee.

    Attributes:
        guarantee: the words that it begins with, enough to tell it from every other.
        tests: pytest ids.
    """

    guarantee: str
    tests: tuple[str, ...]
    controls: tuple[Control, ...]


@frozen
class Checked:
    """What a check found.

    Attributes:
        unmapped: guarantees without a proof.
        uncontrolled: guarantees with a test that no mutant turns red.
        faults: everything else that is wrong.
    """

    guarantees: int
    tests: int
    controls: int
    unmapped: tuple[str, ...]
    uncontrolled: tuple[str, ...]
    faults: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is missing and nothing is wrong."""
        return not (self.unmapped or self.uncontrolled or self.faults)

    def __str__(self) -> str:
        counts = f"{self.guarantees} guarantees, {self.tests} tests, {self.controls} mutants: "
        counts += f"{len(self.unmapped)} unmapped, {len(self.uncontrolled)} without a red control"
        lines = [counts, *(f"unmapped: {one}" for one in self.unmapped)]
        lines += [f"without a red control: {one}" for one in self.uncontrolled]
        return "\n".join([*lines, *(f"wrong: {one}" for one in self.faults)])


def read_proofs(text: str | None = None) -> list[Proof]:
    """The proofs of a book in TOML; by default of ours."""
    book = tomllib.loads(_BOOK.read_text() if text is None else text)
    return [_proof(entry) for entry in book["proof"]]


def promised() -> list[Guarantee]:
    """The guarantees of this repository."""
    return guarantees((ROOT / README).read_text(), (ROOT / THREAT_MODEL).read_text())


def check(proofs: Sequence[Proof], promises: Sequence[Guarantee], page: str) -> Checked:
    """Whether every guarantee has tests and mutants, all of them exist, and PROOFS.md says so."""
    proven = {proof.guarantee for proof in proofs}
    unmapped = [one.text for one in promises if not any(map(one.text.startswith, proven))]
    controls = [control for proof in proofs for control in proof.controls]
    tests = {test for proof in proofs for test in proof.tests}
    faults = [*_words_that_fit_not_one(proofs, promises), *_wrong_tests(proofs), *_wrong_mutants(controls)]
    if not faults and not unmapped and page != render(proofs, promises):
        faults.append("PROOFS.md is not what is made from the book: run `python -m tests.proofs write`")
    return Checked(
        guarantees=len(promises),
        tests=len(tests),
        controls=len(controls),
        unmapped=tuple(unmapped),
        uncontrolled=tuple(one.guarantee for one in proofs if _uncontrolled(one)),
        faults=tuple(faults),
    )


def render(proofs: Sequence[Proof], promises: Sequence[Guarantee]) -> str:
    """PROOFS.md."""
    tests = {test for proof in proofs for test in proof.tests}
    controls = sum(len(proof.controls) for proof in proofs)
    parts = [_INTRODUCTION.format(count=len(promises), tests=len(tests), controls=controls)]
    for title, belongs in _SECTIONS:
        parts.append(
            f"\n## {title}\n\n| guarantee | tests | what was broken to see them red |\n|---|---|---|\n"
        )
        for one in filter(belongs, promises):
            parts += [_row(one, proof) for proof in proofs if one.text.startswith(proof.guarantee)]
    return "".join(parts)


def _row(one: Guarantee, proof: Proof) -> str:
    says = f"Somebody who {one.text} **cannot** {one.cannot}." if one.cannot else one.text
    tests = "<br>".join(f"`{test}`" for test in proof.tests)
    broken = "<br>".join(f"`{control.file}`: {control.breaks}" for control in proof.controls)
    return f"| {says} | {tests} | {broken} |\n"


def _proof(entry: dict[str, object]) -> Proof:
    tests = tuple(entry["tests"])  # type: ignore[arg-type]
    controls = [Control(**({"tests": tests} | one)) for one in entry.get("control", [])]  # type: ignore[attr-defined]
    return Proof(
        str(entry["guarantee"]),
        tests,
        tuple(Control(c.file, c.find, c.replace, c.breaks, tuple(c.tests)) for c in controls),
    )


def is_form(one: str, test: str) -> bool:
    """Whether a pytest id is that of a test, or of one of its forms: with parameters that the test's names not."""
    return one == test or one.startswith(f"{test}[")


def _uncontrolled(proof: Proof) -> bool:
    reddened = [test for control in proof.controls for test in control.tests]
    return not proof.tests or not all(any(is_form(one, test) for one in reddened) for test in proof.tests)


def _words_that_fit_not_one(proofs: Sequence[Proof], promises: Sequence[Guarantee]) -> Iterator[str]:
    for proof in proofs:
        fitting = [one for one in promises if one.text.startswith(proof.guarantee)]
        if len(fitting) != 1:
            yield f"{len(fitting)} guarantees begin with {proof.guarantee!r}, not one"
    for words, times in Counter(proof.guarantee for proof in proofs).items():
        if times > 1:
            yield f"{times} proofs of {words!r}: one guarantee is one line"


def _wrong_tests(proofs: Sequence[Proof]) -> Iterator[str]:
    for proof in proofs:
        for test in proof.tests:
            if not _exists(test):
                yield f"there is no test {test}"
        for control in proof.controls:
            strange = [one for one in control.tests if not any(is_form(one, test) for test in proof.tests)]
            if strange or not control.tests:
                yield f"{control.breaks!r} is to redden what is no test of its proof: {', '.join(strange)}"


def _wrong_mutants(controls: Sequence[Control]) -> Iterator[str]:
    for control in controls:
        try:
            control.applied((SOURCE / control.file).read_text())
        except (OSError, ValueError) as error:
            yield f"mutant {control.breaks!r}: {error}"
        if control.find == control.replace or not control.breaks:
            yield f"a mutant of {control.file} breaks nothing, or does not say what"


def _exists(test: str) -> bool:
    """Whether a file defines the function, or the class and the method, that an id names."""
    file, *names = test.partition("[")[0].split("::")
    if not names or not (ROOT / file).is_file():
        return False
    found: Sequence[ast.stmt] = _tree(file).body
    for name in names:
        named = [n for n in found if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name]
        if not named:
            return False
        found = named[0].body
    return names[-1].startswith("test")


@cache
def _tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())
