"""What the allocator does with memory that was freed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

GLIBC = "CS_GNU_LIBC_VERSION" in os.confstr_names and bool(os.confstr("CS_GNU_LIBC_VERSION"))
ROUNDS = """
import os, resource
if {keep}:
    from service.allocation import keep_freed_memory
    assert keep_freed_memory()
before = 0
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pages = [os.urandom(1) * 4096 for _ in range(5_000)]
    del pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(keep: bool, **variables: str) -> int:
    """Page faults of a process that needs 20 MB for the second time."""
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS.format(keep=keep)],
        env={name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(not GLIBC, reason="another C library has no mallopt")
def test_what_a_batch_freed_the_next_one_has_without_asking_the_system() -> None:
    assert _faults(keep=False) > 2_000
    assert _faults(keep=True) < 500


@pytest.mark.skipif(not GLIBC, reason="another C library has no mallopt")
def test_what_the_operator_said_of_the_allocator_stays() -> None:
    own = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}
    assert _faults(True, **own) > 2_000
