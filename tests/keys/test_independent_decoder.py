"""The vectors against a decoder that knows the documentation alone, as one in another language would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.vectors.decoder import decode

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "cse1.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["must_pass"], ids=lambda v: v["name"])
def test_a_must_pass_vector_opens(vector: dict[str, Any]) -> None:
    """To its body."""
    assert decode(vector) == bytes.fromhex(vector["body"])


@pytest.mark.parametrize("vector", VECTORS["must_fail"], ids=lambda v: v["name"])
def test_a_must_fail_vector_is_refused(vector: dict[str, Any]) -> None:
    """With the code of its fault."""
    assert decode(vector) == vector["fault"], vector["reason"]
