"""Registering event types from several processes at once."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from lake import SchemaError, TypeRegistry

CONTEXT = multiprocessing.get_context("forkserver")


def document(name: str, mark: str) -> dict[str, Any]:
    """A type whose only field says who registered it."""
    return {"name": name, "version": 1, "type": "object", "properties": {mark: {"type": "string"}}}


def register(folder: str, mark: str, rounds: int, barrier: Any, said: Any) -> None:
    """Registers a type per round, at the same moment as the others."""
    won = []
    registry = TypeRegistry(Path(folder))
    for number in range(rounds):
        barrier.wait()
        try:
            registry.register(document(f"Type{number}", mark))
            won.append(number)
        except SchemaError:
            pass
    said.put((mark, won))


def test_of_two_processes_with_other_contents_exactly_one_wins(tmp_path: Path) -> None:
    """The other gets the usual error, and the file is the winner's."""
    rounds, barrier, said = 30, CONTEXT.Barrier(2), CONTEXT.SimpleQueue()
    processes = [
        CONTEXT.Process(target=register, args=(str(tmp_path), mark, rounds, barrier, said)) for mark in "ab"
    ]
    for process in processes:
        process.start()
    won = dict(said.get() for _ in processes)
    for process in processes:
        process.join(60)
    assert sorted(won["a"] + won["b"]) == list(range(rounds))
    registry = TypeRegistry(tmp_path)
    for mark in "ab":
        assert all([f.name for f in registry.get(f"Type{n}").fields] == [mark] for n in won[mark])
    assert list(tmp_path.rglob(".*")) == [], "no draft is left"


@pytest.mark.parametrize("same", [True, False])
def test_a_registration_that_comes_between_look_and_write_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """The same document is no error; another one is refused."""
    link, other = os.link, TypeRegistry(tmp_path)

    def late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        other.register(document("Paid", "mine" if same else "theirs"))
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    registry = TypeRegistry(tmp_path)
    if same:
        assert registry.register(document("Paid", "mine")) == other.get("Paid")
    else:
        with pytest.raises(SchemaError, match="another content"):
            registry.register(document("Paid", "mine"))
        assert [f.name for f in TypeRegistry(tmp_path).get("Paid").fields] == ["theirs"]
