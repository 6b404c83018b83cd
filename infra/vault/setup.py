"""What an administrator does once so that Shredlake can use a Vault or OpenBao server.

Makes the transit keys, one policy and one AppRole per role, an audit device; repeating it changes
nothing. With a server of your own: `python -m infra vault-setup` under an administrator's VAULT_TOKEN.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hvac

POLICIES = Path(__file__).parent / "policies"
ROLES = ("agent", "purge", "auditor", "console")
MOUNT = "transit"
PREFIX = "shredlake"
TOKEN_TTL = "1h"  # noqa: S105 - how long a log-in lasts


def set_up(client: hvac.Client, folder: Path, prefix: str = PREFIX) -> None:
    """Makes what is missing for one lake; log-ins go to `<folder>/roles/<role>/{role_id,secret_id}`.

    Args:
        prefix: what the lake's keys, policies and roles are called by; every lake has its own.
    """
    if f"{MOUNT}/" not in client.sys.list_mounted_secrets_engines()["data"]:
        client.sys.enable_secrets_engine("transit", path=MOUNT)
    if "approle/" not in client.sys.list_auth_methods()["data"]:
        client.sys.enable_auth_method("approle")
    if not client.sys.list_enabled_audit_devices()["data"]:
        audit = {"type": "file", "options": {"file_path": str((folder / "audit.log").resolve())}}
        client.adapter.put("/v1/sys/audit/file", json=audit)
    for one in (prefix, f"{prefix}-drill"):  # a drill closes epochs, so it has a root of its own
        make_keys(client, one)
    client.adapter.post(f"/v1/{MOUNT}/config/keys", json={"disable_upsert": True})
    for role in ROLES:
        policy = (POLICIES / f"{role}.hcl").read_text().replace(f"/{PREFIX}-", f"/{prefix}-")
        client.sys.create_or_update_policy(f"{prefix}-{role}", policy)
        _approle(client, f"{prefix}-{role}", folder / "roles" / role)


def make_keys(client: hvac.Client, prefix: str) -> None:
    """The three keys of one lake: the root (derived: bound to a context), the secret, the signer."""
    kinds: dict[str, dict[str, Any]] = {
        "root": {"type": "aes256-gcm96", "derived": True},
        "secret": {"type": "hmac", "key_size": 32},
        "sign": {"type": "ed25519"},
    }
    for name, body in kinds.items():
        path = f"/v1/{MOUNT}/keys/{prefix}-{name}"
        if name not in _existing(client, prefix):
            client.adapter.post(path, json=body)


def _existing(client: hvac.Client, prefix: str) -> set[str]:
    try:
        keys = client.adapter.list(f"/v1/{MOUNT}/keys")["data"]["keys"]
    except hvac.exceptions.InvalidPath:
        return set()
    return {key.removeprefix(f"{prefix}-") for key in keys if key.startswith(f"{prefix}-")}


def _approle(client: hvac.Client, name: str, folder: Path) -> None:
    path = f"/v1/auth/approle/role/{name}"
    client.adapter.post(
        path,
        json={
            "token_policies": [name],
            "token_no_default_policy": name.endswith("-console"),
            "token_ttl": TOKEN_TTL,
            "token_max_ttl": "24h",
        },
    )
    if (folder / "secret_id").exists():
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    role_id = client.adapter.get(f"{path}/role-id")["data"]["role_id"]
    secret_id = client.adapter.post(f"{path}/secret-id")["data"]["secret_id"]
    (folder / "role_id").write_text(role_id)
    (folder / "secret_id").touch(mode=0o600)
    (folder / "secret_id").write_text(secret_id)
