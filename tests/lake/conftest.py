"""Fixtures of the lake's tests."""

from __future__ import annotations

from tests.lake.far import anywhere, farthest, versions

__all__ = ["anywhere", "farthest", "versions"]
