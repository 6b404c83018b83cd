"""`python -m tests.proofs write | check | run`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.proofs.book import PAGE, Proof, check, promised, read_proofs, render
from tests.proofs.mutants import Verdict, run_proofs


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.proofs", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("write", help="make PROOFS.md")
    commands.add_parser("check", help="look that no guarantee lacks tests and mutants; runs nothing")
    running = commands.add_parser("run", help="make every mutant in a copy and see its tests fail")
    running.add_argument("--only", default="", metavar="WORD", help="where guarantee, file or words hold it")
    options = parser.parse_args()
    proofs = read_proofs()
    if options.command == "write":
        PAGE.write_text(render(proofs, promised()))
    if options.command == "run":
        return _run([proof for proof in proofs if _is_meant(proof, options.only.lower())])
    found = check(proofs, promised(), PAGE.read_text() if PAGE.exists() else "")
    sys.stdout.write(f"{found}\n")
    return 0 if found.is_sound else 1


def _is_meant(proof: Proof, word: str) -> bool:
    texts = [proof.guarantee, *(f"{one.file} {one.breaks}" for one in proof.controls)]
    return any(word in text.lower() for text in texts)


def _run(proofs: list[Proof]) -> int:
    with tempfile.TemporaryDirectory(prefix="shredlake-proofs-") as scratch:
        verdicts = run_proofs(proofs, Path(scratch), _tell)
    wrong = [one for one in verdicts if not one.is_right]
    idle = {test for one in verdicts for test in one.skipped}
    counts = f"{len(verdicts) - 1} mutants, {len(wrong)} runs were not as they must be"
    sys.stdout.write(f"{counts}, {len(idle)} tests were skipped and prove nothing here\n")
    return 1 if wrong or not proofs else 0


def _tell(verdict: Verdict) -> None:
    sys.stdout.write(f"{verdict.seconds:5.1f} s  {verdict.what}: {verdict.says}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
