"""Fixtures of the lake's tests."""

from __future__ import annotations

from tests.lake.far import anywhere, far, farthest, versions

__all__ = ["anywhere", "far", "farthest", "versions"]
