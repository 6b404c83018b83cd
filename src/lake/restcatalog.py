"""The REST catalog's client."""

from __future__ import annotations

from typing import Any, Final

import requests
from pyiceberg.catalog.rest import RestCatalog

_ANSWER_SECONDS: Final = (5.0, 60.0)  # to connect, between bytes


class TimedRestCatalog(RestCatalog):
    """`RestCatalog` that does not wait for ever: its client sets no time limit of its own."""

    def _create_session(self) -> requests.Session:
        session = super()._create_session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, _TimedAdapter())
        return session


class _TimedAdapter(requests.adapters.HTTPAdapter):
    def send(self, *arguments: Any, **options: Any) -> requests.Response:
        return super().send(*arguments, **{**options, "timeout": options.get("timeout") or _ANSWER_SECONDS})
