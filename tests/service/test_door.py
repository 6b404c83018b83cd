"""The HTTP API under requests that nobody should send: refused as a problem, never a failure of ours."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import uvicorn
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import door
from service.app import create_app
from service.doctor import examine
from service.door import LARGE_BODIES, MAX_BODY_BYTES, Door
from service.errors import BadSettings
from service.runtime import Runtime, initialise
from service.server import check_tls, make_server
from service.slowness import PatientProtocol
from tests.world import paid, publish, send

ROUTES = [
    ("GET", "/v1/health/live"),
    ("GET", "/v1/health/ready"),
    ("POST", "/v1/events"),
    ("GET", "/v1/batches/{}"),
    ("POST", "/v1/erasure-requests"),
    ("GET", "/v1/erasure-requests"),
    ("GET", "/v1/erasure-requests/{}"),
    ("GET", "/v1/erasure-requests/{}/receipt"),
    ("GET", "/v1/erasure-requests/{}/supplements/{}"),
    ("GET", "/v1/erasure-requests/{}/salt"),
    ("DELETE", "/v1/erasure-requests/{}/salt"),
    ("POST", "/v1/erasure-requests/{}/cancel"),
    ("POST", "/v1/legal-holds"),
    ("POST", "/v1/legal-holds/release"),
    ("GET", "/v1/views"),
    ("GET", "/v1/views/{}"),
    ("POST", "/v1/views/{}/row"),
    ("GET", "/v1/log/checkpoint"),
    ("GET", "/v1/log/key"),
]


@pytest.fixture
def client(world: Runtime) -> Iterator[TestClient]:
    """A client with the token."""
    send(world, [paid("ann", event_id="1")])
    publish(world)
    headers = {"Authorization": f"Bearer {world.token}"}
    with TestClient(create_app(world), headers=headers, raise_server_exceptions=False) as found:
        yield found


@contextmanager
def served(world: Runtime) -> Iterator[int]:
    """A real server; the port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(create_app(world), http=PatientProtocol, log_config=None, access_log=False)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


# -- before the body --------------------------------------------------------------------------------


def test_these_are_all_the_routes(client: TestClient) -> None:
    """So that a walk over them leaves none out."""
    paths = client.get("/openapi.json").json()["paths"]
    known = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert {(m, "/".join("{}" if "{" in part else part for part in p.split("/"))) for m, p in known} == set(
        ROUTES
    )


@pytest.mark.parametrize(("method", "path"), [one for one in ROUTES if "health" not in one[1]])
@pytest.mark.parametrize("token", [None, "Bearer wrong", "Bearer \xe9\xff", "Basic x", "Bearer", "\xff"])
def test_no_byte_of_a_body_is_read_without_the_token(
    world: Runtime, method: str, path: str, token: str | None
) -> None:
    """Whatever stands in its place."""

    async def route(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("a route was reached")

    async def receive() -> Any:
        raise AssertionError("the body was read")

    sent: list[Any] = []

    async def answer(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", token.encode("latin-1"))] if token is not None else []
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    anyio.run(Door(route, world.token), scope, receive, answer)
    assert sent[0]["status"] == 401
    assert dict(sent[0]["headers"])[b"content-type"] == b"application/problem+json"
    assert (b"connection", b"close") in sent[0]["headers"]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("told", [True, False], ids=["told", "chunked"])
def test_every_route_has_a_limit_on_its_body(client: TestClient, method: str, path: str, told: bool) -> None:
    """By what the client tells, and by what comes."""
    most = LARGE_BODIES.get((method, path), MAX_BODY_BYTES)
    if not told and (method in ("GET", "DELETE") or path.endswith("/cancel") or most > MAX_BODY_BYTES):
        return  # a route without a body reads none; the large one is below
    body: Any = (
        b" " * (MAX_BODY_BYTES + 1) if told else (b" " * 1024 for _ in range(MAX_BODY_BYTES // 1024 + 1))
    )
    headers = {"Content-Type": "application/json"}
    if told:
        headers["Content-Length"] = str(most + 1)
    answer = client.request(method, path, content=body, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")


def test_events_that_are_too_large_are_not_read_to_their_end(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nobody tells beforehand."""
    monkeypatch.setitem(door.LARGE_BODIES, ("POST", "/v1/events"), 2048)
    read = [0]

    def parts() -> Iterator[bytes]:
        for _ in range(10):
            read[0] += 1
            yield b" " * 1024

    assert client.post("/v1/events", content=parts()).status_code == 413


def test_a_body_that_comes_too_slowly_is_not_waited_for(world: Runtime) -> None:
    """A minute for nothing; as long as it takes where it comes at some speed."""
    now = [0.0]

    async def come(seconds: float, size: int) -> str:
        left = [5]

        async def receive() -> Any:
            now[0] += seconds
            await anyio.sleep(0)
            left[0] -= 1
            return {"type": "http.request", "body": b"x" * size, "more_body": left[0] > 0}

        limited = Door(None, "t", lambda: now[0])._limited(receive, 1 << 30)  # type: ignore[arg-type]
        try:
            while (await limited())["more_body"]:
                pass
        except door.HTTPException as error:
            return str(error.status_code)
        return "whole"

    assert anyio.run(come, 10.0, 1) == "408"
    assert anyio.run(come, 10.0, 10 * door.LEAST_BYTES_PER_SECOND) == "whole"


def test_a_client_that_goes_away_leaves_no_traceback(
    world: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of a body, on a real connection; the server answers the next one."""
    with served(world) as port:
        for path in ("/v1/events", "/v1/erasure-requests"):
            with socket.create_connection(("127.0.0.1", port)) as one:
                head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n"
                head += f"Content-Type: application/json\r\nAuthorization: Bearer {world.token}\r\n\r\n"
                one.sendall(head.encode() + b"[1,")
                time.sleep(0.2)
        time.sleep(0.3)
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/v1/health/live")
        assert connection.getresponse().status == 200
        connection.close()
    assert [one for one in caplog.records if one.levelno >= logging.ERROR] == []


# -- whatever is sent -------------------------------------------------------------------------------

_TEXT = st.text(max_size=20)
_MOMENTS = st.sampled_from(
    [
        "0001-01-01T00:00:00+14:00",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59-14:00",
        "9999-12-31T23:59:59.999999Z",
        "-1",
        "0",
        "1e300",
        "NaN",
        "2026-01-01",
        "2026-01-01T00:00:00+99:99",
    ]
)
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _TEXT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)
_BODIES = st.one_of(
    st.binary(max_size=60),
    _JSON.map(lambda one: json.dumps(one).encode()),
    st.fixed_dictionaries(
        {"subject": _JSON},
        optional={"purpose": _JSON, "regime": _JSON, "dry_run": _JSON, "why": _JSON, "extra": _JSON},
    ).map(lambda one: json.dumps(one).encode()),
    st.sampled_from([b"[" * 30_000, b'{"subject":' * 5000, b'{"subject": "\\ud800"}', b'{"\\ud800": 1}']),
    st.just(b"[" + b"{}," * 20_000 + b"{}]"),
)
_HEADERS = st.dictionaries(
    st.sampled_from(
        ["Content-Type", "Idempotency-Key", "Prefer", "ce-id", "ce-specversion", "ce-time", "Accept", "X"]
    ),
    st.one_of(
        st.binary(max_size=20).map(
            lambda raw: raw.replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"")
        ),
        st.sampled_from(
            [b"application/json", b"application/cloudevents+json", b"wait=99999999", b"text/x; q"]
        ),
    ),
    max_size=3,
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_request_makes_an_error_of_ours(client: TestClient, data: st.DataObject) -> None:
    """A walk over all routes with paths, queries, headers and bodies of any kind."""
    method, template = data.draw(st.sampled_from(ROUTES))
    place = data.draw(
        st.sampled_from(
            ["cents_per_day", "balance", "empty", "x" * 5000, "%00", "%ff", "..%2f", "%F0%9F%98%80", "é"]
        )
    )
    query = data.draw(
        st.dictionaries(
            st.sampled_from(["as_of", "mode", "limit", "more"]),
            st.one_of(_MOMENTS, st.sampled_from(["reconcile", "as_recomputed", "-1", "9" * 400]), _TEXT),
            max_size=3,
        )
    )
    url = template.replace("{}", place)
    answer = client.request(
        method,
        url,
        params=[(k, v.encode(errors="replace")) for k, v in query.items()],
        headers=[(k.encode(), v) for k, v in data.draw(_HEADERS).items()],
        content=data.draw(_BODIES) if method == "POST" else None,
    )
    assert answer.status_code < 500, (method, url, query, answer.text)
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_key_that_is_not_known_is_not_repeated(client: TestClient) -> None:
    """It is input: it may name somebody."""
    answer = client.post("/v1/legal-holds", json={"subject": "ann", "dora@example.org": 1})
    assert answer.status_code == 422
    assert "dora" not in answer.text


@pytest.mark.parametrize("path", ["/v1/events", "/v1/erasure-requests"])
def test_an_idempotency_key_with_another_body_is_a_conflict_on_every_route(
    client: TestClient, path: str
) -> None:
    """One status for one thing."""
    bodies = {
        "/v1/events": [paid("ann", event_id="1"), paid("ann", event_id="2")],
        "/v1/erasure-requests": [{"subject": "ann"}, {"subject": "ann", "regime": "ccpa"}],
    }[path]
    answers = [client.post(path, json=body, headers={"Idempotency-Key": "k"}) for body in bodies]
    assert [one.status_code for one in answers] == [202, 409]


# -- TLS and modes ----------------------------------------------------------------------------------


def pair(folder: Path, name: str, *more: str) -> tuple[Path, Path]:
    """A certificate and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    protect = more or ("-nodes",)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subprocess.run(
        [*command, *protect, "-keyout", key, "-out", cert, "-days", "1", "-subj", "/CN=localhost"],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_tls_is_tried_before_anything_listens(tmp_path: Path) -> None:
    """Each thing that is wrong by its setting, with what to do."""
    cert, key = pair(tmp_path, "one")
    _, other = pair(tmp_path, "two")
    _, locked = pair(tmp_path, "three", "-passout", "pass:secret")
    junk = tmp_path / "junk"
    junk.write_text("no PEM")
    assert check_tls(None, None) is False
    assert check_tls(cert, key) is True
    for given_cert, given_key, words in (
        (cert, None, "tls_key is not"),
        (None, key, "tls_cert is not"),
        (tmp_path / "none", key, "tls_cert cannot be read"),
        (cert, tmp_path, "tls_key cannot be read"),
        (cert, other, "not the certificate's"),
        (cert, locked, "has a password"),
        (junk, key, "TLS cannot be served"),
    ):
        with pytest.raises(BadSettings, match=words) as caught:
            check_tls(given_cert, given_key)
        assert caught.value.next_step


def test_a_folder_that_was_there_becomes_private_and_the_doctor_sees_one_that_is_not(
    tmp_path: Path, world: Runtime
) -> None:
    """The settings, the token and the log as well."""
    home = tmp_path / "there"
    home.mkdir(mode=0o755)
    home.chmod(0o755)
    assert initialise(home)
    modes = {path: stat.S_IMODE((home / path).stat().st_mode) for path in (".", "shredlake.toml", "token")}
    assert modes == {".": 0o700, "shredlake.toml": 0o600, "token": 0o600}
    check = "mode of the lake's folder"
    assert [one.level for one in examine(world) if one.check == check] == ["ok"]
    world.home.chmod(0o755)
    (found,) = [one for one in examine(world) if one.check == check]
    assert (found.level, "chmod 0700" in found.text) == ("error", True)


@pytest.mark.parametrize("before", [b"", b"GET /v1/health/live HTTP/1.1\r\nHost: here\r\n\r\n"])
@pytest.mark.parametrize("sent", [b"", b"G", b"GET /v1/health/live HTTP/1.1\r\nX-Some: "])
def test_a_client_that_sends_no_headers_or_ever_more_of_them_is_let_go(
    world: Runtime, monkeypatch: pytest.MonkeyPatch, before: bytes, sent: bytes
) -> None:
    """A byte at a time, from the first or behind an answered request: 408 in time, and the connection ends."""
    monkeypatch.setattr(PatientProtocol, "header_seconds", 0.3)
    with served(world) as port, socket.create_connection(("127.0.0.1", port)) as slow:
        slow.settimeout(10)
        slow.sendall(before)
        answered = slow.recv(65536) if before else b""
        assert before == b"" or b"200 OK" in answered
        slow.sendall(sent)
        got, began = b"", time.monotonic()
        while (found := _dripped(slow)) is not None:
            got += found
            assert time.monotonic() - began < 10
        assert b"408" in got
        quick = http.client.HTTPConnection("127.0.0.1", port)
        quick.request("GET", "/v1/health/live")
        assert quick.getresponse().status == 200


def _dripped(slow: socket.socket) -> bytes | None:
    """What came meanwhile; None at the end of the connection."""
    slow.settimeout(0.05)
    try:
        slow.sendall(b"x")
        return slow.recv(65536) or None
    except TimeoutError:
        return b""
    except OSError:
        return None


def test_the_server_that_is_served_has_the_limit_on_headers(world: Runtime) -> None:
    """Shorter than a client of good will needs, by far."""
    server, listener = make_server(world, port=0)
    listener.close()
    assert server.config.http is PatientProtocol
    assert PatientProtocol.header_seconds <= 10
