"""The HTTP API as a client meets it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient

from keys import EnvelopeFault, WrongKey
from purge import STAGES
from purge.verifier import verify
from service.app import create_app
from service.runtime import Runtime
from tests.world import paid, publish, send

CANARY = "canary-person-4711"
WAIT = {"Prefer": "wait=30"}


@pytest.fixture
def client(world: Runtime) -> Iterator[TestClient]:
    """A client with the token, and the worker running."""
    headers = {"Authorization": f"Bearer {world.token}"}
    with TestClient(create_app(world), headers=headers, raise_server_exceptions=False) as found:
        yield found


def wait_for(client: TestClient, location: str, status: str) -> dict[str, Any]:
    """Polls a request until it has a status."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        body: dict[str, Any] = client.get(location).json()
        if body["status"] == status:
            return body
        time.sleep(0.05)
    raise AssertionError(f"never became {status}: {body['status']}")


def test_every_route_but_health_asks_for_the_token(client: TestClient) -> None:
    """Without it 401, as a problem; health answers anybody."""
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method in methods:
            answer = client.request(method, path, headers={"Authorization": "Bearer wrong"}, json={})
            expected = 200 if "/health/" in path else 401
            assert answer.status_code == expected, (method, path)
            if expected == 401:
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.headers["www-authenticate"] == "Bearer"


def test_a_batch_is_answered_event_by_event(client: TestClient, world: Runtime) -> None:
    """Accepted, rejected with the rule, suppressed; and durable before the answer."""
    send(world, [paid("gone", event_id="0")])
    from tests.world import shred

    shred(world, "gone")
    events = [
        paid("ann", event_id="1"),
        paid("ann", event_id="2") | {"data": {"cents": "x"}},
        paid("gone", event_id="3"),
    ]
    answer = client.post("/v1/events", json=events, headers=WAIT)
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "wait=30"
    assert [r["status"] for r in answer.json()["results"]] == ["accepted", "rejected", "suppressed"]
    assert answer.json()["results"][1]["reason"] == "wrong_type"
    assert len(world.lake.events.history()) == 2


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("post", "/v1/events", b"{", 400),
        ("post", "/v1/events", b"[5", 400),
        ("post", "/v1/erasure-requests", b'{"subject": "nobody-here"}', 404),
        ("post", "/v1/erasure-requests", b'{"subject": ""}', 422),
        ("post", "/v1/erasure-requests", b'{"subject": 5, "surprise": 1}', 422),
        ("get", "/v1/erasure-requests/none", None, 404),
        ("get", "/v1/views/none", None, 404),
        ("get", "/v1/views/cents_per_day?as_of=2001-01-01T00:00:00Z", None, 404),
        ("get", "/v1/views/cents_per_day?as_of=yesterday", None, 422),
        ("get", "/v1/views/cents_per_day?as_of=2026-01-01T00:00:00", None, 422),
    ],
)
def test_bad_input_is_a_problem_that_says_what_to_do(
    client: TestClient, world: Runtime, method: str, path: str, body: bytes | None, status: int
) -> None:
    """RFC 9457, and the input is not echoed."""
    send(world, [paid("ann", event_id="1")])
    publish(world)
    answer = client.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]
    assert "nobody-here" not in answer.text


def test_an_erasure_from_request_to_receipt(client: TestClient, world: Runtime) -> None:
    """Dry run, request, stages, receipt that verifies, 410 for the row."""
    send(world, [paid(CANARY, 5, event_id="1"), paid("bob", 7, event_id="2")])
    publish(world)
    row = client.post("/v1/views/balance/row", json={"subject": CANARY})
    assert row.json()["row"]["cents"] == 5
    plan = client.post("/v1/erasure-requests", json={"subject": CANARY, "dry_run": True})
    assert (plan.status_code, plan.json()["events"]) == (200, 1)
    asked = client.post("/v1/erasure-requests", json={"subject": CANARY})
    assert asked.status_code == 202
    done = wait_for(client, asked.headers["location"], "completed")
    assert [s["stage"] for s in done["stages"]] == list(STAGES)
    receipt = client.get(done["receipt_url"]).content
    verify(receipt, client.get("/v1/log/key").text, CANARY, asked.json()["salt"])
    gone = client.post("/v1/views/balance/row", json={"subject": CANARY})
    assert (gone.status_code, gone.json()["receipt_id"]) == (410, done["request_id"])
    again = client.post("/v1/erasure-requests", json={"subject": CANARY}).json()
    assert (again["request_id"], again["salt"]) == (done["request_id"], None)


def test_the_past_is_asked_with_its_three_modes(client: TestClient, world: Runtime) -> None:
    """Each answer carries its publication and a log proof."""
    send(world, [paid(CANARY, 5, event_id="1"), paid("bob", 7, event_id="2")])
    publish(world)
    world.purge.log_publications()
    at = datetime.now(UTC).isoformat()
    asked = client.post("/v1/erasure-requests", json={"subject": CANARY})
    wait_for(client, asked.headers["location"], "completed")

    def ask(mode: str) -> dict[str, Any]:
        body: dict[str, Any] = client.get(
            "/v1/views/people_per_day", params={"as_of": at, "mode": mode}
        ).json()
        return body

    assert ask("as_reported")["rows"][0]["people"] == 2
    assert ask("as_recomputed")["rows"][0]["people"] == 1
    assert ask("reconcile")["explanation"] == {"erased_events": 1, "residual": 0}
    assert ask("as_reported")["proof"].startswith("c2sp.org/tlog-proof@v1")


def test_no_identifier_reaches_a_log_line_or_an_error(
    client: TestClient, world: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    """A canary goes through every door; no log line and no problem holds it."""
    with caplog.at_level(logging.DEBUG):
        client.post("/v1/events", json=[paid(CANARY, event_id=f"{CANARY}-1")], headers=WAIT)
        client.post("/v1/events", json=[paid(CANARY, event_id="2") | {"data": {"cents": CANARY}}])
        client.post("/v1/events", content=f'{{"broken {CANARY}'.encode())
        publish(world)
        texts = [
            client.post("/v1/erasure-requests", json={"subject": CANARY + "x"}).text,
            client.post("/v1/erasure-requests", json={"subject": CANARY, "regime": CANARY}).text,
            client.post("/v1/legal-holds", json={"subject": CANARY + "y"}).text,
        ]
        asked = client.post("/v1/erasure-requests", json={"subject": CANARY})
        texts.append(json.dumps(wait_for(client, asked.headers["location"], "completed")))
    assert all(CANARY not in text for text in texts)
    assert [r for r in caplog.records if CANARY in r.getMessage() or CANARY in str(r.args)] == []


def test_an_unexpected_error_shows_its_place_and_not_its_words(client: TestClient, world: Runtime) -> None:
    """A foreign library may quote a value in its message; neither answer nor log file repeats it."""
    from service.runtime import log_to_file

    log_to_file(world.home)

    def explode(*_: object) -> None:
        raise ValueError(f"cannot parse {CANARY}")

    world.purge.journal.get = explode  # type: ignore[method-assign,assignment]
    answer = client.get("/v1/erasure-requests/x")
    assert (answer.status_code, answer.json()["detail"].split(":")[0]) == (
        500,
        "ValueError at service/app.py",
    )
    logging.getLogger("uvicorn.error").error("failed", exc_info=ValueError(CANARY))
    logging.getLogger().handlers[-1].close()
    logging.getLogger().removeHandler(logging.getLogger().handlers[-1])
    text = (world.home / "logs" / "shredlake.log").read_text()
    assert "ValueError" in text
    assert CANARY not in text + answer.text


def test_a_damaged_envelope_is_a_problem_with_the_code_of_its_fault(
    client: TestClient, world: Runtime
) -> None:
    """Whoever watches the server tells a changed byte from a foreign key without reading prose."""

    def refuse(*_: object) -> None:
        raise WrongKey("the envelope commits to another key", fault=EnvelopeFault.COMMITMENT)

    world.purge.journal.get = refuse  # type: ignore[method-assign,assignment]
    answer = client.get("/v1/erasure-requests/x")
    assert (answer.status_code, answer.json()["title"], answer.json()["fault"]) == (
        500,
        "WrongKey",
        "commitment",
    )


def test_ready_says_when_it_is_not_safe_to_read(client: TestClient, world: Runtime) -> None:
    """A fence without its destruction shuts the gate; converging opens it."""
    from keys import SubjectId

    send(world, [paid("ann", event_id="1")])
    assert client.get("/v1/health/ready").json()["status"] == "ready"
    ref = world.keyring.ref_of(SubjectId("ann"))
    assert ref is not None
    world.keyring.fence([(SubjectId("ann"), ref)], "r")
    answer = client.get("/v1/health/ready")
    assert (answer.status_code, "keys converge" in answer.json()["next_step"]) == (503, True)
    world.keyring.converge()
    assert client.get("/v1/health/ready").status_code == 200


def test_a_hold_over_http_lets_the_erasure_wait_and_go_on(client: TestClient, world: Runtime) -> None:
    """Released, it completes by itself."""
    send(world, [paid(CANARY, event_id="1")])
    assert client.post("/v1/legal-holds", json={"subject": CANARY, "why": "court"}).status_code == 204
    asked = client.post("/v1/erasure-requests", json={"subject": CANARY})
    wait_for(client, asked.headers["location"], "held")
    assert client.post("/v1/legal-holds/release", json={"subject": CANARY}).status_code == 204
    wait_for(client, asked.headers["location"], "completed")


def test_the_openapi_document_describes_every_answer(client: TestClient) -> None:
    """Each operation has a summary line and a described success."""
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            assert operation.get("description"), (method, path)
            if method == "post" and not path.endswith("/cancel"):
                assert operation["requestBody"]["content"], (method, path)
            assert any(code.startswith("2") for code in operation["responses"]), (method, path)
