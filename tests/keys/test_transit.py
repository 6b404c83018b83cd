"""The custodian on a real Vault or OpenBao: roles, outages, log-ins, and what an answer means."""

from __future__ import annotations

import base64
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hvac
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from infra.vault import VERSION as PINNED
from infra.vault import Vault
from infra.vault.setup import make_keys, set_up
from keys import (
    CustodianUnavailable,
    FenceLog,
    Keyring,
    LeaseBook,
    RootKeyDeleted,
    RootKeyRetired,
    RootMismatch,
    Shredded,
    SqlitePageStore,
)
from keys.errors import (
    CustodianBusy,
    CustodianDenied,
    CustodianError,
    CustodianSealed,
    CustodianStandby,
    CustodianTokenExpired,
)
from keys.transit import TransitCustodian
from keys.transitcheck import (
    OLDEST_TESTED,
    inspect_server,
    inspect_transit,
    product_of,
    root_flaws,
    version_flaw,
)
from keys.vaulterrors import error_of
from keys.vaultsession import Jwt, Token, TokenFile, VaultServer, VaultSession
from tests.keys.people import ANN, BOB, WORD, now, provision, seal, shred, unseal
from tests.keys.servers import admin_session, role_login, role_session, schema_of, server_of

ROOT = "transit/keys/shredlake-root"
WRAP = {"plaintext": base64.b64encode(b"k" * 32).decode(), "context": "Yw=="}
OPERATIONS: dict[str, tuple[str, str, dict[str, object] | None]] = {
    "wrap": ("post", "transit/encrypt/shredlake-root", WRAP),
    "unwrap": ("post", "transit/decrypt/shredlake-root", {"ciphertext": "vault:v1:AAAA", "context": "Yw=="}),
    "rewrap": ("post", "transit/rewrap/shredlake-root", {"ciphertext": "vault:v1:AAAA", "context": "Yw=="}),
    "rotate": ("post", f"{ROOT}/rotate", {}),
    "raise a minimum": ("post", f"{ROOT}/config", {"min_decryption_version": 1}),
    "allow deletion": ("post", f"{ROOT}/config", {"deletion_allowed": True}),
    "make exportable": ("post", f"{ROOT}/config", {"exportable": True}),
    "trim": ("post", f"{ROOT}/trim", {"min_available_version": 1}),
    "read metadata": ("get", ROOT, None),
    "export": ("get", "transit/export/encryption-key/shredlake-root", None),
    "back up": ("get", "transit/backup/shredlake-root", None),
    "keyed hash": ("post", "transit/hmac/shredlake-secret/sha2-256", {"input": "Yw=="}),
    "sign": ("post", "transit/sign/shredlake-sign", {"input": "Yw=="}),
    "read public keys": ("get", "transit/keys/shredlake-sign", None),
    "read the engine's settings": ("get", "transit/config/keys", None),
    "see audit devices": ("get", "sys/audit", None),
    "take a snapshot": ("get", "sys/storage/raft/snapshot", None),
    "restore a snapshot": ("post", "sys/storage/raft/snapshot", {}),
    "restore a snapshot by force": ("post", "sys/storage/raft/snapshot-force", {}),
    "make a policy": ("post", "sys/policy/own", {"policy": 'path "*" { capabilities = ["sudo"] }'}),
    "make a token": ("post", "auth/token/create", {"policies": ["root"]}),
}
MAY = {
    "agent": {"wrap", "unwrap", "keyed hash", "read public keys"},
    "purge": {
        "wrap",
        "unwrap",
        "rewrap",
        "rotate",
        "raise a minimum",
        "trim",
        "read metadata",
        "keyed hash",
        "sign",
        "read public keys",
    },
    "auditor": {"read metadata", "read public keys", "read the engine's settings", "see audit devices"},
    "console": set[str](),
}


@pytest.mark.parametrize("role", MAY)
def test_a_role_may_do_what_it_needs_and_the_server_refuses_the_rest(vault: Vault, role: str) -> None:
    """Asked of the server itself; an operation that fails for another reason was allowed."""
    session = role_session(vault, role)
    allowed = set()
    for name, (method, path, body) in OPERATIONS.items():
        try:
            session.call(method, path, body)  # type: ignore[arg-type]
        except CustodianDenied:
            continue
        except Exception:  # noqa: S110 - refused ciphertext, nothing to trim: it got past the policy
            pass
        allowed.add(name)
    assert allowed == MAY[role]


@pytest.fixture
def prefix(vault: Vault, tmp_path: Path) -> str:
    """Keys of this test alone."""
    made = schema_of(tmp_path)
    make_keys(vault.client(), made)
    return made


@pytest.fixture
def custodian(vault: Vault, prefix: str) -> TransitCustodian:
    """With every right, over keys of this test alone."""
    return TransitCustodian(admin_session(vault), prefix=prefix)


@pytest.fixture
def keyring(custodian: TransitCustodian, tmp_path: Path) -> Iterator[Keyring]:
    """A keyring whose root the server holds."""
    opened = open_keyring(custodian, tmp_path)
    yield opened
    opened.close()


def open_keyring(custodian: TransitCustodian, folder: Path) -> Keyring:
    """Another process's view of it."""
    fences = FenceLog(folder / "fences.db", custodian.secret("fence"), now)
    return Keyring(custodian, SqlitePageStore(folder / "pages.db"), fences, LeaseBook(folder / "leases.db"))


# -- outages ----------------------------------------------------------------------------------------


@pytest.fixture
def back_again(vault: Vault) -> Iterator[Vault]:
    """The server, unsealed and running after the test, whatever the test did."""
    yield vault
    if vault.process.pid is None:
        vault.start()
    vault.unseal()
    vault.process.wait_until(lambda: not vault.client().sys.is_sealed())


def seal_it(vault: Vault) -> type[Exception]:
    vault.seal()
    return CustodianSealed


def kill_it(vault: Vault) -> type[Exception]:
    vault.process.stop(signal.SIGKILL)
    return CustodianUnavailable


@pytest.mark.parametrize("strike", [seal_it, kill_it])
def test_an_outage_never_looks_like_an_erasure(
    back_again: Vault,
    custodian: TransitCustodian,
    keyring: Keyring,
    tmp_path: Path,
    strike: Callable[[Vault], type[Exception]],
) -> None:
    """Who has the key reads on, who lacks it gets an error, the erased stay erased; then all is well."""
    ann, bob = provision(keyring, ANN).ref, provision(keyring, BOB).ref
    sealed_ann, sealed_bob = seal(keyring, ann), seal(keyring, bob)
    shred(keyring, BOB, bob)
    fresh = open_keyring(custodian, tmp_path)
    custodian._session._sleep = lambda seconds: None
    fresh.tree.forget_cached()
    expected = strike(back_again)
    with pytest.raises(CustodianUnavailable) as raised:
        unseal(fresh, ann, sealed_ann)
    assert isinstance(raised.value, expected)
    assert raised.value.next_step
    back_again.process.stop()
    back_again.start()
    assert unseal(fresh, ann, sealed_ann) == WORD
    assert isinstance(unseal(fresh, bob, sealed_bob), Shredded)


def _wait_until_stopped(pid: int | None) -> None:
    """A busy machine takes a while to stop every thread, and one alone may still answer."""
    for _ in range(1000):
        states = [
            one.read_text().rpartition(")")[2].split()[0] for one in Path(f"/proc/{pid}/task").glob("*/stat")
        ]
        if set(states) == {"T"}:
            return
        time.sleep(0.01)
    raise AssertionError("the server was not stopped")


def test_a_server_that_hangs_is_out_of_reach_within_the_timeout(
    back_again: Vault, custodian: TransitCustodian
) -> None:
    """A stopped process keeps its port open and says nothing."""
    session = VaultSession(
        VaultServer(server_of(back_again).address, server_of(back_again).ca_file, timeout_seconds=0.3),
        role_login(back_again, "agent"),
        sleep=lambda seconds: None,
    )
    assert session.call("post", *OPERATIONS["keyed hash"][1:])
    back_again.process.kill(signal.SIGSTOP)
    try:
        _wait_until_stopped(back_again.process.pid)
        with pytest.raises(CustodianUnavailable, match="ReadTimeout"):
            session.call("post", *OPERATIONS["keyed hash"][1:])
    finally:
        back_again.process.kill(signal.SIGCONT)
    assert session.call("post", *OPERATIONS["keyed hash"][1:])


def test_a_server_of_another_authority_is_not_trusted(vault: Vault) -> None:
    """The error says which setting names the right one."""
    session = VaultSession(
        VaultServer(server_of(vault).address), role_login(vault, "agent"), sleep=lambda seconds: None
    )
    with pytest.raises(CustodianUnavailable, match="not trusted") as raised:
        session.call("get", ROOT)
    assert "ca_file" in raised.value.next_step


def test_a_rate_limit_is_an_error_of_its_own(vault: Vault, custodian: TransitCustodian) -> None:
    """After the retries were used up."""
    admin = vault.client()
    custodian._session._sleep = lambda seconds: None
    admin.adapter.post(
        "/v1/sys/quotas/rate-limit/test", json={"path": "transit/", "rate": 0.1, "interval": "60s"}
    )
    try:
        with pytest.raises(CustodianBusy):
            _call_often(custodian)
    finally:
        admin.adapter.delete("/v1/sys/quotas/rate-limit/test")
    assert custodian.wrap([(b"c", b"k" * 32)])


def _call_often(custodian: TransitCustodian) -> None:
    for _ in range(10):
        custodian.wrap([(b"c", b"k" * 32)])


def test_one_bad_item_among_many_is_the_error_and_nothing_is_mixed_up(custodian: TransitCustodian) -> None:
    """1,500 items are two calls; the bad one is in the second, and the good ones keep their places."""
    keys = [number.to_bytes(32, "big") for number in range(1500)]
    contexts = [b"c%d" % number for number in range(1500)]
    wrapped = custodian.wrap(list(zip(contexts, keys, strict=True)))
    assert custodian.unwrap(list(zip(contexts, wrapped, strict=True))) == keys
    swapped = [*wrapped[:1200], wrapped[1201], *wrapped[1201:]]
    for act in (custodian.unwrap, custodian.rewrap):
        with pytest.raises(RootMismatch):
            act(list(zip(contexts, swapped, strict=True)))


# -- keys -------------------------------------------------------------------------------------------


def test_a_retired_version_and_a_deleted_key_are_two_things(
    vault: Vault, custodian: TransitCustodian, prefix: str
) -> None:
    """Neither is an erasure."""
    (old,) = custodian.wrap([(b"c", b"k" * 32)])
    custodian.retire(custodian.rotate())
    with pytest.raises(RootKeyRetired):
        custodian.unwrap([(b"c", old)])
    (fresh,) = custodian.wrap([(b"c", b"k" * 32)])
    admin = vault.client()
    admin.adapter.post(f"/v1/transit/keys/{prefix}-root/config", json={"deletion_allowed": True})
    admin.adapter.delete(f"/v1/transit/keys/{prefix}-root")
    for call in (lambda: custodian.unwrap([(b"c", fresh)]), lambda: custodian.wrap([(b"c", b"k" * 32)])):
        with pytest.raises(RootKeyDeleted):
            call()
    with pytest.raises(RootKeyDeleted):
        custodian.status()


def test_an_epoch_close_takes_few_calls_whatever_the_number_of_people(
    custodian: TransitCustodian, keyring: Keyring, tmp_path: Path
) -> None:
    """And a page store from before opens nothing with today's root."""
    provision(keyring)
    keyring.close_epoch()
    calls: list[str] = []
    original = custodian._session.call
    custodian._session.call = lambda method, path, *rest, **more: (  # type: ignore[method-assign]
        calls.append(path),
        original(method, path, *rest, **more),
    )[1]
    closed = keyring.close_epoch()
    assert closed.old_wrap_refused
    assert closed.custodian_calls == len(calls) <= 10


def test_a_server_killed_in_the_middle_of_a_close_loses_nothing(
    back_again: Vault, custodian: TransitCustodian, keyring: Keyring, tmp_path: Path
) -> None:
    """Before every call that a close makes; the next close does all of it."""
    ref = provision(keyring).ref
    sealed = seal(keyring, ref)
    session = custodian._session
    session._sleep = lambda seconds: None
    original = session.call
    for victim in range(12):
        made = 0

        def until_it_dies(method: str, path: str, *rest: object, **more: object) -> object:
            nonlocal made
            if made == victim:  # noqa: B023 - used within the turn
                back_again.process.stop(signal.SIGKILL)
            made += 1
            return original(method, path, *rest, **more)  # type: ignore[arg-type]

        session.call = until_it_dies  # type: ignore[method-assign,assignment]
        try:
            keyring.close_epoch()
            done = True
        except CustodianUnavailable:
            done = False
        session.call = original  # type: ignore[method-assign]
        if back_again.process.pid is None:
            back_again.start()
        assert unseal(open_keyring(custodian, tmp_path), ref, sealed) == WORD
        assert keyring.close_epoch().old_wrap_refused
        if done:
            break
    assert victim >= 6
    assert unseal(open_keyring(custodian, tmp_path), ref, sealed) == WORD


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (503, "Vault is sealed", CustodianSealed),
        (503, "", CustodianSealed),
        (500, "local node not active but active cluster node not found", CustodianStandby),
        (403, "permission denied", CustodianDenied),
        (403, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n", CustodianTokenExpired),
        (400, "invalid role or secret ID", CustodianTokenExpired),
        (429, "request path: rate limit quota exceeded", CustodianBusy),
        (400, "ciphertext or signature version is disallowed by policy (too old)", RootKeyRetired),
        (400, "encryption key not found", RootKeyDeleted),
        (404, "", RootKeyDeleted),
        (400, "cipher: message authentication failed", RootMismatch),
        (502, "bad gateway", CustodianUnavailable),
        (500, "something new", CustodianUnavailable),
    ],
)
def test_each_answer_has_one_meaning(status: int, text: str, kind: type[Exception]) -> None:
    """And everything that passes by itself is something unavailable, never something retired."""
    error = error_of(status, [text])
    assert type(error) is kind
    assert error.next_step
    assert error.whose_move in ("operator", "nobody")


# -- log-ins ----------------------------------------------------------------------------------------


def test_a_revoked_log_in_is_replaced_in_mid_flight(vault: Vault) -> None:
    """With AppRole nobody notices; a token file that is not replaced is an error that says so."""
    session = role_session(vault, "agent")
    hashed = OPERATIONS["keyed hash"][1:]
    assert session.call("post", *hashed)
    first = session._client.token
    vault.client().adapter.post("/v1/auth/token/revoke", json={"token": first})
    assert session.call("post", *hashed)
    assert session._client.token != first


def test_a_log_in_that_failed_once_is_tried_again(back_again: Vault) -> None:
    """Revoked while the server is sealed: the next call after the unseal logs in."""
    session = role_session(back_again, "agent")
    session._sleep = lambda seconds: None
    hashed = OPERATIONS["keyed hash"][1:]
    assert session.call("post", *hashed)
    back_again.client().adapter.post("/v1/auth/token/revoke", json={"token": session._client.token})
    log_in, failing = session._login, [True]

    class Failing:
        def log_in(self, client: object) -> object:
            if failing:
                failing.clear()
                raise CustodianSealed("just now")
            return log_in.log_in(client)  # type: ignore[arg-type]

    session._login = Failing()  # type: ignore[assignment]
    with pytest.raises(CustodianSealed):
        session.call("post", *hashed)
    assert session.call("post", *hashed)


def test_a_close_that_another_overtook_succeeds(custodian: TransitCustodian) -> None:
    """A minimum cannot be lowered again, and need not be."""
    first = custodian.rotate()
    custodian.retire(custodian.rotate())
    custodian.retire(first)
    assert custodian.status().minimum_version == first + 1


def test_a_token_file_that_ran_out_says_what_to_renew(vault: Vault, tmp_path: Path) -> None:
    """And a replaced one is used at once."""

    def fresh() -> str:
        made = vault.client().adapter.post(
            "/v1/auth/token/create", json={"policies": ["shredlake-agent"], "ttl": "1h"}
        )
        return str(made["auth"]["client_token"])

    path = tmp_path / "token"
    path.write_text(fresh())
    session = VaultSession(server_of(vault), TokenFile(path))
    hashed = OPERATIONS["keyed hash"][1:]
    assert session.call("post", *hashed)
    vault.client().adapter.post("/v1/auth/token/revoke", json={"token": path.read_text()})
    with pytest.raises(CustodianTokenExpired) as raised:
        session.call("post", *hashed)
    assert "token file" in raised.value.next_step
    path.write_text(fresh())
    assert session.call("post", *hashed)
    path.unlink()
    with pytest.raises(CustodianTokenExpired, match="cannot be read"):
        VaultSession(server_of(vault), TokenFile(path)).call("post", *hashed)


def test_a_log_in_is_renewed_before_it_runs_out(vault: Vault) -> None:
    """At two thirds of its time, under the same token; past its longest time by logging in."""
    clock = [0.0]
    session = VaultSession(server_of(vault), role_login(vault, "agent"), clock_seconds=lambda: clock[0])
    hashed = OPERATIONS["keyed hash"][1:]
    session.call("post", *hashed)
    first, since = session._client.token, session._logged_in_at
    clock[0] += 3600 * 0.6
    session.call("post", *hashed)
    assert session._logged_in_at == since
    clock[0] += 3600 * 0.1
    session.call("post", *hashed)
    assert (session._client.token, session._logged_in_at) == (first, clock[0])
    vault.client().adapter.post("/v1/auth/token/revoke", json={"token": first})
    clock[0] += 3600
    session.call("post", *hashed)
    assert session._client.token != first


def test_a_log_in_that_ran_out_under_us_is_made_again(vault: Vault, tmp_path: Path) -> None:
    """A token of one second, which our clock does not see age; where it comes from a file, nobody can help."""
    policy = {"policies": ["shredlake-agent"], "ttl": "1s", "no_parent": True}
    brief = vault.client().adapter.post("/v1/auth/token/create", json=policy)["auth"]["client_token"]
    path = tmp_path / "token"
    path.write_text(brief)
    hashed = OPERATIONS["keyed hash"][1:]
    from_file = VaultSession(server_of(vault), TokenFile(path), clock_seconds=lambda: 0.0)
    by_role = VaultSession(server_of(vault), role_login(vault, "agent"), clock_seconds=lambda: 0.0)
    assert from_file.call("post", *hashed)
    assert by_role.call("post", *hashed)
    by_role._keep(Token(brief, 3600.0))
    vault.process.wait_until(lambda: _is_over(vault, brief))
    with pytest.raises(CustodianTokenExpired):
        from_file.call("post", *hashed)
    assert by_role.call("post", *hashed)
    assert by_role._client.token != brief


def _is_over(vault: Vault, token: str) -> bool:
    try:
        vault.client(token).adapter.get("/v1/auth/token/lookup-self")
    except hvac.exceptions.Forbidden:
        return True
    return False


@pytest.mark.parametrize("mount", ["jwt", "kubernetes"])
def test_a_signed_token_logs_in(vault: Vault, tmp_path: Path, mount: str) -> None:
    """As platforms give one to a workload; one of another signer is refused."""
    admin = vault.client()
    ours, theirs = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    pem = ours.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    if f"{mount}/" not in admin.sys.list_auth_methods()["data"]:
        admin.sys.enable_auth_method("jwt", path=mount)
    admin.adapter.post(
        f"/v1/auth/{mount}/config", json={"jwt_validation_pubkeys": [pem], "jwt_supported_algs": ["EdDSA"]}
    )
    role = {
        "role_type": "jwt",
        "user_claim": "sub",
        "bound_audiences": ["shredlake"],
        "token_policies": ["shredlake-agent"],
        "token_ttl": "1h",
    }
    admin.adapter.post(f"/v1/auth/{mount}/role/agent", json=role)
    path = tmp_path / "jwt"
    path.write_text(_signed(ours))
    session = VaultSession(server_of(vault), Jwt("agent", path, mount))
    assert session.call("post", *OPERATIONS["keyed hash"][1:])
    path.write_text(_signed(theirs))
    for refused, what in (
        (Jwt("agent", path, mount), CustodianTokenExpired),  # signed by somebody else
        (Jwt("nobody", path, mount), CustodianTokenExpired),
        (Jwt("agent", path, "no-such-mount"), CustodianDenied),
    ):
        with pytest.raises(CustodianError) as raised:
            VaultSession(server_of(vault), refused).call("post", *OPERATIONS["keyed hash"][1:])
        assert type(raised.value) is what, refused
        assert not raised.value.retry_helps


def _signed(key: Ed25519PrivateKey) -> str:
    def text(part: object) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")

    claims = {"sub": "pod-1", "aud": "shredlake", "exp": int(time.time()) + 600, "iat": int(time.time())}
    body = text({"alg": "EdDSA", "typ": "JWT"}) + b"." + text(claims)
    return (body + b"." + base64.urlsafe_b64encode(key.sign(body)).rstrip(b"=")).decode()


# -- how it is set up -------------------------------------------------------------------------------


def test_the_scripts_own_set_up_has_no_flaw(vault: Vault) -> None:
    """Seen as the auditor."""
    assert inspect_transit(role_session(vault, "auditor")) == []


def test_a_role_that_may_not_look_says_so(vault: Vault) -> None:
    """As a flaw of the inspection, not of the server."""
    flaws = inspect_transit(role_session(vault, "purge"))
    assert not [flaw for flaw in flaws if flaw.fatal]
    denied = {flaw.text.split(",")[0].split()[-1]: flaw.text for flaw in flaws}
    assert list(denied) == ["transit/keys/shredlake-secret", "transit/config/keys", "sys/audit"]
    assert "lacks the capability read there" in denied["transit/config/keys"]
    assert "lacks the capability read and sudo there" in denied["sys/audit"]
    assert len(inspect_transit(role_session(vault, "console"))) == 5


def test_a_root_that_could_leave_the_server_is_refused(vault: Vault, tmp_path: Path) -> None:
    """Each with its reason."""
    admin = vault.client()
    prefix = schema_of(tmp_path)
    admin.adapter.post(
        f"/v1/transit/keys/{prefix}-root",
        json={"type": "aes256-gcm96", "exportable": True, "allow_plaintext_backup": True},
    )
    admin.adapter.post(f"/v1/transit/keys/{prefix}-root/config", json={"deletion_allowed": True})
    flaws = inspect_transit(admin_session(vault), prefix=prefix)
    missing = [flaw for flaw in flaws if "has nothing at" in flaw.text]
    assert [flaw.text.split()[5] for flaw in missing] == [
        f"transit/keys/{prefix}-{name}." for name in ("secret", "sign")
    ]
    flaws = [flaw for flaw in flaws if flaw not in missing]
    texts = " ".join(flaw.text for flaw in flaws)
    assert all(
        word in texts for word in ("exportable", "plaintext_backup", "not derived", "deletion_allowed")
    )
    assert [flaw.fatal for flaw in flaws].count(True) == 3


@pytest.mark.parametrize(
    ("name", "options", "config", "word", "fatal"),
    [
        ("secret", {"type": "hmac", "key_size": 32, "exportable": True}, {}, "exportable", True),
        ("sign", {"type": "ed25519", "allow_plaintext_backup": True}, {}, "allow_plaintext_backup", True),
        ("sign", {"type": "ed25519", "auto_rotate_period": "24h"}, {}, "auto_rotate_period", False),
        (
            "root",
            {"type": "aes256-gcm96", "derived": True, "convergent_encryption": True},
            {},
            "convergent",
            False,
        ),
        (
            "root",
            {"type": "aes256-gcm96", "derived": True, "auto_rotate_period": "24h"},
            {},
            "auto_rotate",
            False,
        ),
        ("secret", {"type": "hmac", "key_size": 32}, {"deletion_allowed": True}, "deletion_allowed", False),
    ],
)
def test_each_of_the_three_keys_is_inspected(
    vault: Vault,
    tmp_path: Path,
    name: str,
    options: dict[str, object],
    config: dict[str, object],
    word: str,
    fatal: bool,
) -> None:
    """One flaw in one of them, and it is the only one that is said."""
    admin, prefix = vault.client(), schema_of(tmp_path)
    admin.adapter.post(f"/v1/transit/keys/{prefix}-{name}", json=options)
    if config:
        admin.adapter.post(f"/v1/transit/keys/{prefix}-{name}/config", json=config)
    make_keys(admin, prefix)
    (flaw,) = inspect_transit(admin_session(vault), prefix=prefix)
    assert word in flaw.text
    assert {"root": "root key", "secret": "secret key", "sign": "signing key"}[name] in flaw.text
    assert flaw.fatal == fatal


def test_upsert_and_a_missing_audit_device_are_seen(vault: Vault) -> None:
    """And set right again afterwards."""
    admin = vault.client()
    admin.adapter.post("/v1/transit/config/keys", json={"disable_upsert": False})
    admin.sys.disable_audit_device("file")
    try:
        texts = [flaw.text for flaw in inspect_transit(role_session(vault, "auditor")) if flaw.fatal]
    finally:
        set_up(admin, vault.folder)
    assert len(texts) == 2
    assert "upsert" in texts[0]
    assert "audit" in texts[1]


@pytest.mark.parametrize(
    ("health", "product", "words"),
    [
        ({"version": "1.21.2", "enterprise": False}, "Vault", None),
        ({"version": "1.21.10+ent", "enterprise": True}, "Vault", None),
        ({"version": "2.0.0", "enterprise": False}, "Vault", None),
        ({"version": "1.21.1", "enterprise": False}, "Vault", "older than 1.21.2"),
        ({"version": "1.9.12"}, "Vault", "older than 1.21.2"),
        ({"version": "0.11.0"}, "Vault", "older than 1.21.2"),
        ({}, "Vault", "cannot be compared"),
        ({"version": "2.4.1"}, "OpenBao", "not tested with OpenBao"),
        ({"version": "1.21.2", "enterprise": False, "sealed": True}, "Vault", None),
    ],
)
def test_a_server_older_than_the_oldest_tested_is_a_flaw(
    health: dict[str, object], product: str, words: str | None
) -> None:
    """OpenBao counts its versions anew, so that none of them says anything of Vault's."""
    found, version = product_of(health)
    flaw = version_flaw(found, version)
    assert found == product
    if words is None:
        assert flaw is None
    else:
        assert flaw is not None
        assert words in flaw.text
        assert not flaw.fatal


def test_the_server_of_the_tests_is_the_oldest_tested(vault: Vault) -> None:
    """What is said of versions is what the tests run on; the console's role may ask, too."""
    oldest = OLDEST_TESTED["Vault"]
    assert oldest is not None
    assert ".".join(map(str, oldest)) == PINNED
    told, flaw = inspect_server(role_session(vault, "console"))
    health = vault.client().adapter.get("/v1/sys/health")
    assert told == " ".join(product_of(health))
    assert (flaw is None) == (told == f"Vault {PINNED}")


def test_a_sound_root_has_no_flaw() -> None:
    """From the description alone."""
    assert list(root_flaws({"derived": True, "exportable": False, "allow_plaintext_backup": False})) == []
