"""A logged-in connection to Vault or OpenBao: logs in, renews in time, repeats what is safe to repeat."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import hvac
import requests
from attrs import field, frozen

from keys.errors import (
    CustodianBusy,
    CustodianDenied,
    CustodianError,
    CustodianStandby,
    CustodianTokenExpired,
    CustodianUnavailable,
    RootKeyDeleted,
)
from keys.vaulterrors import error_of

ATTEMPTS: Final = 4
_FIRST_PAUSE_SECONDS: Final = 0.1
_RENEW_AT_SHARE: Final = 2 / 3
_PASSING: Final = (CustodianBusy, CustodianStandby)
Method = Literal["get", "post"]


@frozen
class VaultServer:
    """Where the server is.

    Attributes:
        address: `https://host:port`.
        ca_file: the certificate authority of a private network; None trusts the system's.
        namespace: of Vault Enterprise and OpenBao.
        timeout_seconds: of one call.
    """

    address: str
    ca_file: Path | None = None
    namespace: str | None = None
    timeout_seconds: float = 10.0


@frozen
class Token:
    """A log-in: how long it lasts (0: until revoked) and whether it can be renewed."""

    value: str = field(repr=False)
    ttl_seconds: float = 0.0
    renewable: bool = False


class Login(Protocol):
    """A way to log in."""

    def log_in(self, client: hvac.Client) -> Token: ...


@frozen
class TokenFile:
    """A token that somebody else (an agent, an operator) keeps in a file."""

    path: Path

    def log_in(self, client: hvac.Client) -> Token:
        """Reads the file and asks how long the token lasts."""
        value = _read(self.path)
        client.token = value
        data = client.adapter.get("/v1/auth/token/lookup-self")["data"]
        return Token(value, float(data["ttl"]), bool(data.get("renewable")))


@frozen
class AppRole:
    """A role id and a secret id, each in a file."""

    role_id_file: Path
    secret_id_file: Path
    mount: str = "approle"

    def log_in(self, client: hvac.Client) -> Token:
        """Reads both files anew, so that a rotated secret id is used at once."""
        body = {"role_id": _read(self.role_id_file), "secret_id": _read(self.secret_id_file)}
        return _logged_in(client, f"/v1/auth/{self.mount}/login", body)


@frozen
class Jwt:
    """A signed token in a file: `jwt` and OIDC mounts, and `kubernetes` with a service account's."""

    role: str
    jwt_file: Path
    mount: str = "jwt"

    def log_in(self, client: hvac.Client) -> Token:
        """Reads the file anew: platforms replace it."""
        body = {"role": self.role, "jwt": _read(self.jwt_file)}
        return _logged_in(client, f"/v1/auth/{self.mount}/login", body)


class VaultSession:
    """Calls under one log-in. Safe for threads.

    Args:
        server, login: where and as whom.
        clock_seconds, sleep, jitter: replaceable for tests.
    """

    def __init__(
        self,
        server: VaultServer,
        login: Login,
        *,
        clock_seconds: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._server = server
        self._client = self._new_client()
        self._login = login
        self._clock_seconds = clock_seconds
        self._sleep = sleep
        self._jitter = jitter
        self._mutex = threading.Lock()
        self._token: Token | None = None
        self._logged_in_at = 0.0
        self.calls = 0
        """Requests sent so far, repeated ones included, log-ins left out."""

    def call(
        self, method: Method, path: str, body: dict[str, Any] | None = None, *, repeatable: bool = True
    ) -> dict[str, Any]:
        """One call under `/v1/`; the answer's `data`, or the answer where it has no such part.

        Args:
            repeatable: whether doing it twice does no harm; then failures that pass are tried again.

        Raises:
            CustodianError: see `keys.vaulterrors`.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._call_once(method, path, body)
            except CustodianError as error:
                passing = isinstance(error, _PASSING) or type(error) is CustodianUnavailable
                if not (passing and repeatable) or attempt == ATTEMPTS:
                    raise
            # Full jitter: clients that failed together do not come back together.
            self._sleep(_FIRST_PAUSE_SECONDS * 2**attempt * self._jitter())
        raise AssertionError("unreachable")

    def _call_once(self, method: Method, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        used = self._ensure_logged_in()
        try:
            return self._send(method, path, body)
        except CustodianTokenExpired:
            # Revoked or expired under us: what was refused was not done, so it may be sent again.
            self._log_in_again(used)
            return self._send(method, path, body)

    def _send(self, method: Method, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        arguments = {} if body is None else {"json": body}
        self.calls += 1
        answer = asked(
            lambda: getattr(self._client.adapter, method)(f"/v1/{path}", **arguments), self._client.url
        )
        data = answer.get("data", answer) if isinstance(answer, dict) else None
        return data if isinstance(data, dict) else {}

    def _ensure_logged_in(self) -> str:
        with self._mutex:
            token = self._token
            age_seconds = self._clock_seconds() - self._logged_in_at
            if token is None or (token.ttl_seconds and age_seconds > token.ttl_seconds * _RENEW_AT_SHARE):
                token = self._renewed(token, age_seconds)
            return token.value

    def _renewed(self, token: Token | None, age_seconds: float) -> Token:
        """Renews, else logs in anew; an old log-in that still lasts is used where neither works."""
        try:
            if token is not None and token.renewable:
                return self._keep(asked(lambda: _renewed(self._client)))
        except CustodianError:
            pass  # its longest time is over, or it was revoked: log in
        try:
            return self._logged_in_anew()
        except CustodianError:
            if token is not None and age_seconds < token.ttl_seconds:
                self._client.token = token.value
                return token
            raise

    def _log_in_again(self, used: str) -> None:
        with self._mutex:
            if self._token is not None and self._token.value == used:
                self._token = None  # the next call logs in, also where this one fails to
                self._logged_in_anew()

    def _logged_in_anew(self) -> Token:
        """On a client of its own, so that calls under way keep their token."""
        return self._keep(_admitted(lambda: self._login.log_in(self._new_client())))

    def _new_client(self) -> hvac.Client:
        server = self._server
        verify = str(server.ca_file) if server.ca_file is not None else True
        return hvac.Client(
            server.address, verify=verify, namespace=server.namespace, timeout=server.timeout_seconds
        )

    def _keep(self, token: Token) -> Token:
        self._token = token
        self._client.token = token.value
        self._logged_in_at = self._clock_seconds()
        return token


def asked(ask: Callable[[], Any], address: str = "") -> Any:
    """The answer of hvac, with its and the network's errors as ours; see `keys.vaulterrors`.

    Args:
        address: of the node that is asked. One that stands by sends us to whom it knows as the leader.
    """
    try:
        return ask()
    except hvac.exceptions.VaultError as error:
        status = _STATUS.get(type(error), 500)
        raise error_of(status, [str(text) for text in error.errors or [error.text or ""]]) from None
    except requests.exceptions.SSLError:
        raise CustodianUnavailable(
            "the custodian's certificate is not trusted",
            next_step="Name the certificate authority of your network in keys.vault.ca_file.",
        ) from None
    except requests.exceptions.RequestException as error:
        if address and error.request is not None and not str(error.request.url).startswith(address):
            raise CustodianStandby("a standby answered, and the leader that it names does not") from None
        raise CustodianUnavailable(f"the custodian cannot be reached: {type(error).__name__}") from None


def _admitted(log_in: Callable[[], Token]) -> Token:
    """The log-in; an answer that refuses it is no outage, whatever its words.

    Raises:
        CustodianTokenExpired: what we showed is not accepted (any more).
        CustodianDenied: there is no such way to log in, or it is closed to us.
    """
    try:
        token: Token = asked(log_in)
    except RootKeyDeleted:  # what 404 means of a key's path
        raise CustodianDenied(
            "the custodian has no such log-in",
            next_step="Check keys.vault.auth, keys.vault.auth_mount and keys.vault.namespace.",
        ) from None
    except CustodianUnavailable as error:
        if type(error) is CustodianUnavailable and error.status is not None and 400 <= error.status < 500:
            raise CustodianTokenExpired(f"the custodian refuses this log-in ({error.status})") from None
        raise
    return token


def _logged_in(client: hvac.Client, path: str, body: dict[str, str]) -> Token:
    client.token = None
    auth = client.adapter.post(path, json=body)["auth"]
    return Token(auth["client_token"], float(auth["lease_duration"]), bool(auth["renewable"]))


def _renewed(client: hvac.Client) -> Token:
    auth = client.adapter.post("/v1/auth/token/renew-self", json={})["auth"]
    return Token(auth["client_token"], float(auth["lease_duration"]), bool(auth["renewable"]))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise CustodianTokenExpired(f"a log-in file cannot be read: {error.strerror}") from None


_STATUS: Final = {
    hvac.exceptions.InvalidRequest: 400,
    hvac.exceptions.Unauthorized: 401,
    hvac.exceptions.Forbidden: 403,
    hvac.exceptions.InvalidPath: 404,
    hvac.exceptions.RateLimitExceeded: 429,
    hvac.exceptions.BadGateway: 502,
    hvac.exceptions.VaultDown: 503,
}
