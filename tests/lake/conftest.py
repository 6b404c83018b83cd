"""Fixtures of the lake's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lake.privacylint import commit_findings
from lake.table import Committed, IcebergTable
from tests.lake.far import anywhere, far, farthest, versions

__all__ = ["anywhere", "every_commit_is_linted", "far", "farthest", "versions"]


@pytest.fixture(autouse=True)
def every_commit_is_linted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Whatever a test does, no commit of this process may say more than is allowed in clear.

    A test that plants something on purpose empties the list.
    """
    found: list[str] = []

    def linted(committing: Callable[..., Committed]) -> Callable[..., Committed]:
        def commits(self: IcebergTable, *given: Any, **named: Any) -> Committed:
            done = committing(self, *given, **named)
            found.extend(commit_findings(self, done.snapshot_id))
            return done

        return commits

    for name in ("commit", "put"):
        monkeypatch.setattr(IcebergTable, name, linted(getattr(IcebergTable, name)))
    yield found
    assert found == []
