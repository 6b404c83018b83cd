"""Lakes whose catalog and warehouse are servers: how they are made, for tests of any behaviour."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import tomli_w

from infra.s3 import BUCKET, find_program
from service.runtime import Runtime, initialise, open_runtime
from tests.servers import Stores
from tests.world import PAID, VIEWS, make_world

CATALOGS = ("sqlite", "postgres", "rest")
PLACES = ("folder", "bucket")


@pytest.fixture(scope="session")
def versions(stores: Stores) -> Any:
    """A client of the store, whose bucket keeps versions from now on: the harder case for a sweep."""
    client = client_of(stores)
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    return client


def client_of(stores: Stores) -> Any:
    """Who may do everything in the store."""
    where = stores.s3.address()
    return boto3.client(
        "s3",
        endpoint_url=where["S3_ENDPOINT"],
        aws_access_key_id=where["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=where["AWS_SECRET_ACCESS_KEY"],
        region_name=where["AWS_REGION"],
    )


def settings(stores: Stores, catalog: str, place: str, tmp_path: Path) -> dict[str, Any]:
    """What an operator writes under [lake]."""
    name = f"lake-{uuid.uuid4().hex[:8]}"
    found: dict[str, Any] = {"catalog_name": name, "properties": s3_properties(stores)}
    if catalog == "postgres":
        found["uri"] = stores.postgres.address()["POSTGRES_DSN"]
    if catalog == "rest":
        found |= {"catalog": "rest", "uri": stores.catalog.address()["CATALOG_URI"]}
    folder = tmp_path / "elsewhere" / "warehouse"
    folder.mkdir(parents=True)
    found["warehouse"] = f"s3://{BUCKET}/{name}" if place == "bucket" else folder.as_uri()
    return found


def s3_properties(stores: Stores) -> dict[str, str]:
    """How the store is reached."""
    where = stores.s3.address()
    return {
        "s3.endpoint": where["S3_ENDPOINT"],
        "s3.access-key-id": where["AWS_ACCESS_KEY_ID"],
        "s3.secret-access-key": where["AWS_SECRET_ACCESS_KEY"],
        "s3.region": where["AWS_REGION"],
    }


def guest(stores: Stores, *actions: str) -> tuple[str, dict[str, str]]:
    """A bucket of its own and the log-in of a user who may do so much there, as (name, properties)."""
    where = s3_properties(stores)
    name = f"b-{uuid.uuid4().hex[:10]}"
    asked = ("--access", where["s3.access-key-id"], "--secret", where["s3.secret-access-key"])
    known = {"s3.access-key-id": name, "s3.secret-access-key": uuid.uuid4().hex}
    command = [find_program(), "admin", *asked, "--endpoint-url", where["s3.endpoint"], "create-user"]
    user = ("--access", name, "--secret", known["s3.secret-access-key"], "--role", "user")
    subprocess.run([*command, *user], check=True, capture_output=True)
    client = client_of(stores)
    client.create_bucket(Bucket=name)
    statement = {
        "Effect": "Allow",
        "Principal": name,
        "Action": actions,
        "Resource": [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"],
    }
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    client.put_bucket_policy(Bucket=name, Policy=json.dumps(policy))
    return name, where | known


def make(home: Path, lake: dict[str, Any]) -> Runtime:
    """An open lake with such settings."""
    home.mkdir()
    document = {"projections": {"files": [str(VIEWS)]}, "lake": lake}
    (home / "shredlake.toml").write_text(tomli_w.dumps(document))
    initialise(home)
    runtime = open_runtime(home)
    runtime.lake.types.register(PAID)
    return runtime


def forget_tables(stores: Stores) -> None:
    """The REST catalog has one namespace for everybody: emptied between tests."""
    base = f"{stores.catalog.address()['CATALOG_URI']}/v1/namespaces"
    for space in ("lake", "views"):
        for one in httpx.get(f"{base}/{space}/tables").json().get("identifiers", ()):
            httpx.delete(f"{base}/{space}/tables/{one['name']}")


@contextmanager
def lake_at(stores: Stores, catalog: str, place: str, folder: Path) -> Iterator[Runtime]:
    """A lake on a catalog (`sqlite`, `postgres`, `rest`) and in a place (`folder`, `bucket`)."""
    runtime = make(folder / "lake", settings(stores, catalog, place, folder))
    yield runtime
    runtime.close()
    forget_tables(stores)


@pytest.fixture(params=[(c, p) for c in CATALOGS for p in PLACES], ids="-".join)
def far(request: pytest.FixtureRequest, stores: Stores, versions: Any, tmp_path: Path) -> Iterator[Runtime]:
    """A lake on one of the combinations."""
    with lake_at(stores, *request.param, tmp_path) as runtime:
        yield runtime


@pytest.fixture(params=["sqlite-folder", "rest-bucket"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runtime]:
    """A lake in a folder, and one behind servers: the nearest and the farthest."""
    if request.param == "sqlite-folder":
        runtime = make_world(tmp_path / "lake")
        yield runtime
        runtime.close()
    else:
        request.getfixturevalue("versions")
        with lake_at(request.getfixturevalue("stores"), "rest", "bucket", tmp_path) as runtime:
            yield runtime


@pytest.fixture
def farthest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runtime]:
    """A lake behind servers where they can be had, else in a folder; for what takes long."""
    try:
        request.getfixturevalue("versions")
    except pytest.skip.Exception:
        yield request.getfixturevalue("world")
        return
    with lake_at(request.getfixturevalue("stores"), "rest", "bucket", tmp_path / "far") as runtime:
        yield runtime
