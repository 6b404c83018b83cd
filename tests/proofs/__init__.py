"""What proves each guarantee: its tests, and the mutants of the code that turn these tests red.

`proofs.toml` holds it, `python -m tests.proofs write` makes PROOFS.md of it, `check` looks that nothing is
missing, and `run` breaks the code in a copy, one mutant after the other, to see the tests fail.
"""
