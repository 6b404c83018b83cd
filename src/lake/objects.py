"""Where data files lie: a local folder, or a bucket of an S3-compatible store.

pyiceberg writes and reads single files of either. What it has no words for is here: reading many files
at once, listing what lies below the tables, and deleting for good. An S3 DELETE leaves the bytes as an
older version where versioning is on, so every version is listed and deleted by its own id.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import polars as pl
from attrs import frozen

from lake.damage import located, remember
from lake.errors import DataDamaged, StorageFailed, StorageRefused, StorageUnavailable, StorageUnsuitable
from lake.listing import files_below
from lake.storefaults import DISK_ERRORS, read_failed
from lake.storefaults import storage_failed as storage_failed

_T = TypeVar("_T")
_AT_ONCE: Final = 1000  # the most that one DeleteObjects takes
_NOT_FOUND: Final = 404
_UNVERSIONED: Final = "null"
"""The version of what was written while a bucket kept none."""
SETTLED_END: Final = ".sources.jsonl"
_DATA_ENDS: Final = (".parquet", ".avro", SETTLED_END)
_REFUSALS: Final = {"AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_NO_LOCK: Final = {"ObjectLockConfigurationNotFoundError", "NotImplemented", "MethodNotAllowed"}
_QUOTED: Final = re.compile(r"[%?#]")
_METADATA_NAME: Final = re.compile(r"/metadata/(\d+)-[^/]*\.metadata\.json$")


@frozen
class StoredObject:
    """A file below the tables.

    Attributes:
        location: as Iceberg writes it.
        version_id: None where the store keeps no versions.
        is_marker: says that the object was deleted; its older versions are still there.
    """

    location: str
    bytes: int
    modified_at: datetime
    version_id: str | None = None
    is_marker: bool = False

    @property
    def is_data(self) -> bool:
        """Whether it is a data file, a manifest or a list of settled sources."""
        return self.location.endswith(_DATA_ENDS)

    @property
    def has_versions(self) -> bool:
        """Whether the store still has it when somebody deletes it by its name alone."""
        return self.version_id not in (None, _UNVERSIONED)

    @property
    def metadata_number(self) -> int | None:
        """Which commit a metadata file of a table is of, counted by the catalog; None for other files."""
        found = _METADATA_NAME.search(self.location)
        return int(found[1]) if found else None


class ObjectStore(Protocol):
    """The place of a lake's tables."""

    @property
    def root(self) -> str:
        """The location that all tables lie below."""
        ...

    def objects(self, below: str) -> Iterator[StoredObject]:
        """Everything whose location begins so, old versions and delete markers included.

        Raises:
            StorageFailed: the store cannot be reached; as `StorageRefused`, it does not let us.
        """
        ...

    def delete(self, objects: Iterable[StoredObject]) -> None:
        """Deletes these versions for good; what is gone already is no error. Raises `StorageFailed`."""
        ...

    def copy(self, one: StoredObject, to: Path) -> None:
        """Writes its bytes into a file. Raises `StorageFailed`."""
        ...

    def check(self) -> list[str]:
        """What the store lacks, in words for an operator; empty means all is well."""
        ...


class LocalObjects:
    """A folder.

    Args:
        folder: the warehouse.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder.resolve().as_uri()

    def objects(self, below: str) -> Iterator[StoredObject]:
        """See `ObjectStore.objects`."""
        folder = Path(local_path(below))
        for uri, stat in files_below(str(folder), folder.as_uri()):
            yield StoredObject(uri, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))

    def delete(self, objects: Iterable[StoredObject]) -> None:
        """See `ObjectStore.delete`."""
        for one in objects:
            Path(local_path(one.location)).unlink(missing_ok=True)

    def copy(self, one: StoredObject, to: Path) -> None:
        """See `ObjectStore.copy`."""
        to.write_bytes(Path(local_path(one.location)).read_bytes())

    def check(self) -> list[str]:
        """A folder has all that is needed."""
        return []


class S3Objects:
    """A prefix in a bucket.

    Args:
        root: `s3://bucket/prefix`.
        properties: `s3.endpoint`, `s3.access-key-id` … as pyiceberg names them; what is not given comes
            from the environment as with every S3 client.

    Raises:
        StorageUnsuitable: boto3 is not installed.
    """

    def __init__(self, root: str, properties: Mapping[str, str]) -> None:
        self.root = root.rstrip("/")
        self._bucket = urlsplit(root).netloc
        self._client = _client(properties)

    def objects(self, below: str) -> Iterator[StoredObject]:
        """See `ObjectStore.objects`."""
        prefix = urlsplit(below).path.lstrip("/").rstrip("/") + "/"
        pages = self._client.get_paginator("list_object_versions").paginate(
            Bucket=self._bucket, Prefix=prefix
        )
        for page in _each_asked(iter(pages), "s3:ListBucketVersions"):
            for found in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                yield StoredObject(
                    f"s3://{self._bucket}/{found['Key']}",
                    found.get("Size", 0),
                    found["LastModified"],
                    found["VersionId"],
                    "Size" not in found,
                )

    def delete(self, objects: Iterable[StoredObject]) -> None:
        """See `ObjectStore.delete`."""
        left = iter(objects)
        while batch := list(itertools.islice(left, _AT_ONCE)):
            self._delete([{"Key": _key(one), "VersionId": one.version_id or _UNVERSIONED} for one in batch])

    def _delete(self, batch: list[dict[str, str]]) -> None:
        wanted = {"Objects": batch, "Quiet": True}
        answer = _asking(
            lambda: self._client.delete_objects(Bucket=self._bucket, Delete=wanted), "s3:DeleteObjectVersion"
        )
        errors = answer.get("Errors", ())
        if errors:
            code = errors[0].get("Code")
            text = f"the store kept {len(errors)} object(s): {code}"
            raise _refusal(text, "s3:DeleteObjectVersion") if code in _REFUSALS else StorageFailed(text)

    def copy(self, one: StoredObject, to: Path) -> None:
        """See `ObjectStore.copy`."""
        version: dict[str, Any] = {"VersionId": one.version_id} if one.version_id else {}
        body = _asking(lambda: self._client.get_object(Bucket=self._bucket, Key=_key(one), **version))
        with to.open("wb") as file:
            for chunk in body["Body"].iter_chunks(1 << 20):
                file.write(chunk)

    def check(self) -> list[str]:
        """Whether versions can be listed, and whether the store holds objects against deletion."""
        try:
            next(iter(self.objects(self.root)), None)
        except StorageFailed as error:
            return [f"{error.message}: sweeping needs s3:ListBucketVersions and s3:DeleteObjectVersion"]
        try:
            self._client.get_object_lock_configuration(Bucket=self._bucket)
        except Exception as error:  # boto3 makes its classes of errors when it runs
            code = _code(error)
            if code in _NO_LOCK:
                return []
            return [
                f"whether the bucket has an object lock is not known ({code or type(error).__name__}): allow"
                " s3:GetBucketObjectLockConfiguration, or ask whoever runs the store"
            ]
        return ["the bucket has an object lock: dead bytes stay until it ends, unreadable as they are"]


def open_objects(root: str, properties: Mapping[str, str]) -> ObjectStore:
    """The store of a location.

    Raises:
        StorageUnsuitable: a scheme that we do not speak, or boto3 is not installed.
    """
    scheme = urlsplit(root).scheme
    if scheme == "file":
        return LocalObjects(Path(local_path(root)))
    if scheme == "s3":
        return S3Objects(root, properties)
    raise StorageUnsuitable(f"a warehouse lies at file:// or s3://, not at {scheme or 'a bare path'}://")


def put_bytes(location: str, body: bytes, properties: Mapping[str, str]) -> None:
    """Writes one small file, whole or not at all; it is on the disk when this returns.

    Args:
        location: a path, `file://…` or `s3://bucket/key`.

    Raises:
        StorageFailed: the store refuses, or cannot be reached.
    """
    if urlsplit(location).scheme == "s3":
        bucket, key = _bucket_and_key(location)
        _asking(lambda: _client(properties).put_object(Bucket=bucket, Key=key, Body=body))
        return
    path = Path(local_path(location))
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with draft.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise storage_failed(error) from error
    finally:
        draft.unlink(missing_ok=True)


def get_bytes(location: str, properties: Mapping[str, str]) -> bytes | None:
    """What `put_bytes` wrote; None where there is nothing. Raises `StorageFailed`."""
    if urlsplit(location).scheme != "s3":
        try:
            return Path(local_path(location)).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_failed(error) from error
    bucket, key = _bucket_and_key(location)
    client = _client(properties)

    def ask() -> bytes | None:
        try:
            return bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())
        except client.exceptions.NoSuchKey:
            return None

    return _asking(ask)


def stamp_of(location: str, properties: Mapping[str, str]) -> str | None:
    """What changes whenever the file is written; None where there is nothing. Raises `StorageFailed`."""
    if urlsplit(location).scheme != "s3":
        try:
            found = Path(local_path(location)).stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_failed(error) from error
        return f"{found.st_ino} {found.st_mtime_ns} {found.st_size}"
    bucket, key = _bucket_and_key(location)
    client = _client(properties)

    def ask() -> str | None:
        from botocore.exceptions import ClientError

        try:
            return str(client.head_object(Bucket=bucket, Key=key)["ETag"])
        except ClientError as error:  # an answer without a body has no other word for it
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == _NOT_FOUND:
                return None
            raise

    return _asking(ask)


def _bucket_and_key(location: str) -> tuple[str, str]:
    parsed = urlsplit(location)
    return parsed.netloc, parsed.path.lstrip("/")


def scan_parquet(locations: Sequence[str], properties: Mapping[str, str]) -> pl.LazyFrame:
    """Data files as one lazy frame."""
    options = cloud_options(properties) if locations and urlsplit(locations[0]).scheme == "s3" else None
    if options is not None:
        remember(locations[0], options)
    return pl.scan_parquet(
        [local_path(one) for one in locations], hive_partitioning=False, storage_options=options
    )


def collected(frame: pl.LazyFrame, engine: Literal["auto", "streaming"] = "auto") -> pl.DataFrame:
    """The rows. Raises `DataDamaged`, which names a file, else `StorageFailed` where the store fails."""
    try:
        return frame.collect(engine=engine)
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        failure = located(frame, read_failed(error))  # an object store's errors are the engine's
        if isinstance(failure, DataDamaged) or isinstance(error, (OSError, pl.exceptions.ComputeError)):
            raise failure from None
        raise  # a defect of ours


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Turns a full or broken disk, or an object store that refuses, into `StorageFailed`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.errno not in DISK_ERRORS:
            raise
        raise storage_failed(error) from error  # an object store's errors come without a number


def cloud_options(properties: Mapping[str, str]) -> dict[str, str]:
    """Polars' names of pyiceberg's S3 properties."""
    found = {theirs: properties[ours] for ours, theirs in _POLARS_NAMES.items() if properties.get(ours)}
    if found.get("aws_endpoint_url", "").startswith("http://"):
        found["aws_allow_http"] = "true"
    return found


def local_path(uri: str) -> str:
    """The path of a `file:` URI; other URIs as they are."""
    if uri.startswith("file:///") and not _QUOTED.search(uri):
        return uri.removeprefix("file://")
    parsed = urlsplit(uri)
    return unquote(parsed.path) if parsed.scheme == "file" else uri


_POLARS_NAMES: Final = {
    "s3.endpoint": "aws_endpoint_url",
    "s3.access-key-id": "aws_access_key_id",
    "s3.secret-access-key": "aws_secret_access_key",
    "s3.session-token": "aws_session_token",
    "s3.region": "aws_region",
}


def _client(properties: Mapping[str, str]) -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise StorageUnsuitable(
            "a warehouse in S3 needs boto3", next_step="Install `shredlake[s3]`."
        ) from None
    return boto3.client(
        "s3",
        endpoint_url=properties.get("s3.endpoint"),
        aws_access_key_id=properties.get("s3.access-key-id"),
        aws_secret_access_key=properties.get("s3.secret-access-key"),
        aws_session_token=properties.get("s3.session-token"),
        region_name=properties.get("s3.region"),
        config=Config(
            retries={"mode": "standard", "total_max_attempts": 4},
            connect_timeout=10,
            read_timeout=60,
            s3={"addressing_style": "path" if properties.get("s3.endpoint") else "auto"},
        ),
    )


def _key(one: StoredObject) -> str:
    return urlsplit(one.location).path.lstrip("/")


def _asking(ask: Callable[[], _T], right: str = "s3:GetObject, s3:GetObjectVersion") -> _T:
    """What the store answers.

    Args:
        right: what a log-in needs for it.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return ask()
    except ClientError as error:
        code = _code(error)
        text = f"the store answers {code or 'an error'}"
        raise (_refusal(text, right) if code in _REFUSALS else StorageFailed(text)) from None
    except BotoCoreError as error:
        raise StorageUnavailable(f"the object store does not answer: {type(error).__name__}") from None


def _refusal(text: str, right: str) -> StorageRefused:
    return StorageRefused(text, next_step=f"Check the store's log-in, and that it may {right}.")


def _code(error: Exception) -> str:
    """What S3 calls the error; empty where the store did not answer."""
    response: Mapping[str, Any] = getattr(error, "response", {})
    return str(response.get("Error", {}).get("Code", ""))


def _each_asked(pages: Iterator[Any], right: str) -> Iterator[Any]:
    """An iterator whose every step asks the store."""
    while (page := _asking(lambda: next(pages, None), right)) is not None:
        yield page
