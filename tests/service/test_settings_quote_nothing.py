"""Errors of settings name the place and the setting, and quote nothing that stands there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lake.errors import MappingError
from lake.mapping import load_mapping
from service.errors import BadSettings
from service.kafka import _format
from service.settings import Kafka, load_settings

SECRET = "hunter2"


@pytest.mark.parametrize(
    "text",
    [
        f"{SECRET} = {SECRET}",
        f'a = "{SECRET}',
        f'a = "{SECRET}\\q"',
        f"[{SECRET}]\n[{SECRET}]",
        f"{SECRET} = 1\n{SECRET} = 2",
        f"a = {{ {SECRET} = 1, {SECRET} = 2 }}",
        f"a = {{}}\n[a.{SECRET}]",
        f"{SECRET}.a = 1\n{SECRET} = 2",
        f"[[{SECRET}]]\n[{SECRET}]",
        f"a = 1{SECRET}",
    ],
)
def test_no_document_that_is_not_toml_is_quoted(tmp_path: Path, text: str) -> None:
    """Of the settings and of a mapping: the place alone."""
    types: Any = None
    for name, load, kind in (
        ("shredlake.toml", lambda: load_settings(tmp_path), BadSettings),
        ("mapping.toml", lambda: load_mapping(tmp_path / "mapping.toml", types), MappingError),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(kind) as refused:
            load()
        assert "is not valid TOML at " in refused.value.message
        assert SECRET not in refused.value.message
    (tmp_path / "shredlake.toml").write_bytes(SECRET.encode() + b"\xff")
    with pytest.raises(BadSettings, match="not UTF-8 at byte 7"):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    ("url", "client", "named"),
    [
        (f"ftp://u:{SECRET}@there", {}, "`url`"),
        ("", {}, "`url`"),
        ("http://there", {"basic.auth.user.info": SECRET}, "`basic.auth.user.info`"),
        ("http://there", {"nonsense": SECRET}, "`nonsense`"),
        ("http://there", {"ssl.ca.location": f"/{SECRET}"}, "FileNotFoundError"),
    ],
)
def test_what_the_registry_s_client_does_not_take_is_named_and_no_value_is_quoted(
    url: str, client: dict[str, str], named: str
) -> None:
    """A log-in stands in an address and among its settings."""
    settings = Kafka.model_validate(
        {"bootstrap": "there:1", "topics": ["t"], "registry": {"url": url, "client": client}}
    )
    feed: Any = SimpleNamespace(types=None)
    with pytest.raises(BadSettings) as refused:
        _format(feed, settings)
    assert named in refused.value.message
    assert "kafka.registry" in refused.value.next_step
    assert SECRET not in refused.value.message
    assert refused.value.__cause__ is None
