"""Settings: shredlake.toml in the lake's folder, overridden by SHREDLAKE_… in the environment."""

from __future__ import annotations

import os
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from lake.sources import DEFAULT_BATCH_EVENTS
from lake.tomlplace import toml_place
from lake.upkeeprules import LEAST_GRACE_SECONDS, LETTER_DAYS
from projections import DEFAULT_CODE_SECONDS
from service.errors import BadSettings

CONFIG_NAME: Final = "shredlake.toml"
HOME_VARIABLE: Final = "SHREDLAKE_HOME"
DEFAULT_HOME: Final = Path(".shredlake")


class Section(BaseModel):
    """A table of the settings file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(Section):
    """The HTTP server."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8370, description="port; 0 takes a free one")
    tls_cert: Path | None = Field(None, description="certificate chain (PEM)")
    tls_key: Path | None = Field(None, description="private key of the certificate (PEM)")


class Ingest(Section):
    """Reading files and batches."""

    batch_events: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        DEFAULT_BATCH_EVENTS, description="events per commit of a file at the most"
    )
    commit_seconds: Annotated[float, Field(gt=0, le=300)] = Field(
        1.0, description="commit what came over HTTP after so long"
    )
    commit_events: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        200_000, description="commit after so many"
    )
    commit_bytes: Annotated[int, Field(ge=1024)] = Field(
        128 * 1024 * 1024, description="commit after so much"
    )
    queue_events: Annotated[int, Field(ge=1)] = Field(
        1_000_000, description="answer 429 while so many events wait to be committed"
    )
    queue_bytes: Annotated[int, Field(ge=1024)] = Field(
        512 * 1024 * 1024, description="answer 429 while so much waits to be committed"
    )
    idempotency_hours: Annotated[float, Field(gt=0, le=24 * 366)] = Field(
        24.0, description="a committed batch and its idempotency key are remembered for so long"
    )
    key_seconds: Annotated[float, Field(gt=0, le=86_400)] = Field(
        300.0, description="what waits is sealed under one key for so long at the most"
    )


class Registry(Section):
    """A schema registry."""

    url: str = Field(description="its address, with the path of its interface")
    client: dict[str, SecretStr] = Field(
        default_factory=dict,
        description="further settings of the registry client: basic.auth.user.info, ssl.ca.location …",
    )


class Kafka(Section):
    """Topics that the lake follows."""

    bootstrap: str = Field(description="host:port of some brokers, separated by commas")
    topics: Annotated[list[str], Field(min_length=1)] = Field(description="topics to follow")
    group: str = Field("shredlake", description="consumer group")
    format: Literal["cloudevents", "mapping", "sealed"] = Field(
        "cloudevents", description="CloudEvents in either mode, JSON by a mapping, or sealed by a producer"
    )
    mapping: Path | None = Field(None, description="mapping of kind `json`, for format = mapping")
    registry: Registry | None = Field(
        None, description="set where values are in Confluent's wire format: the registry of their schemas"
    )
    workers: Annotated[int, Field(ge=1, le=64)] = Field(1, description="consumer processes")
    member: str | None = Field(
        None, description="name of this host in the group: a restart then moves no partition"
    )
    commit_seconds: Annotated[float, Field(gt=0, le=300)] = Field(0.5, description="commit after so long")
    commit_events: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        400_000, description="commit after so many"
    )
    commit_bytes: Annotated[int, Field(ge=1024)] = Field(
        256 * 1024 * 1024, description="commit after so much in memory"
    )
    behind_events: Annotated[int, Field(ge=0)] = Field(
        100_000,
        description="while the brokers have more than so many for us, commit_seconds is behind_seconds",
    )
    behind_seconds: Annotated[float, Field(gt=0, le=300)] = Field(
        10.0, description="commit after so long while far behind: large commits are cheaper"
    )
    delete_committed: bool = Field(
        False, description="let the brokers delete messages that are in the table (DeleteRecords)"
    )
    client: dict[str, SecretStr] = Field(
        default_factory=dict,
        description="further settings of librdkafka: security.protocol, sasl.mechanism, ssl.ca.location …",
    )


class Lake(Section):
    """Where the tables are; what is not named is in the lake's folder."""

    catalog: Literal["sql", "rest"] = Field("sql", description="kind of the Iceberg catalog")
    uri: SecretStr | None = Field(
        None, description="postgresql://… or http(s)://… of the catalog; default: SQLite in the lake's folder"
    )
    catalog_name: str = Field("shredlake", description="what a shared SQL catalog knows this lake by")
    warehouse: str | None = Field(
        None, description="file:///folder or s3://bucket/prefix; default: the lake's folder"
    )
    properties: dict[str, SecretStr] = Field(
        default_factory=dict,
        description="of pyiceberg: s3.endpoint, s3.access-key-id, s3.secret-access-key, s3.region, token …",
    )


class Upkeep(Section):
    """Keeping the events table fast."""

    merge_files: Annotated[int, Field(ge=2)] = Field(
        32, description="so many small files of a day become one"
    )
    file_mb: Annotated[int, Field(ge=1, le=2048)] = Field(
        256,
        description="about how large a file of a closed day becomes; about so much is in memory at a time",
    )
    keep_snapshots: Annotated[int, Field(ge=1)] = Field(100, description="newest snapshots that stay")
    keep_minutes: Annotated[float, Field(ge=0)] = Field(10, description="younger snapshots stay as well")
    grace_minutes: Annotated[float, Field(ge=LEAST_GRACE_SECONDS / 60)] = Field(
        60, description="files that nothing refers to stay for so long: a writer may be about to commit them"
    )
    rest_ratio: Annotated[float, Field(ge=0, le=100)] = Field(
        0, description="seconds of rest per second of work"
    )
    letter_days: Annotated[int, Field(ge=1)] = Field(
        LETTER_DAYS, description="dead letters that name nobody are kept for so many days"
    )


class Replay(Section):
    """Reading events back."""

    memory_mb: Annotated[int, Field(ge=16)] = Field(
        512, description="that a piece of a read or of a build may take, per process"
    )

    @property
    def memory_bytes(self) -> int:
        """The same in bytes."""
        return self.memory_mb * 1024 * 1024


class Projections(Section):
    """Building views."""

    files: list[Path] = Field(default_factory=list, description="Python files that define views")
    bucket_bits: Annotated[int, Field(ge=0, le=10)] = Field(8, description="2^n buckets of subjects")
    workers: Annotated[int, Field(ge=1, le=64)] = Field(1, description="processes that derive buckets")
    code_seconds: Annotated[float, Field(gt=0, le=86400)] = Field(
        DEFAULT_CODE_SECONDS, description="end a call of a view's code that takes longer"
    )


class Erasure(Section):
    """How erasures treat what does not go along."""

    serve_stale: list[str] = Field(
        default_factory=list,
        description="views that are served on, marked stale, where an erasure cannot derive them anew;"
        ' ["*"] for all; default: they are withdrawn until they build again',
    )
    drop_affected: list[str] = Field(
        default_factory=list,
        description="views whose earlier publications are dropped by an erasure where they count the person;"
        ' ["*"] for all; default: they are kept as reported then',
    )
    scan: bool = Field(
        False,
        description="scan the whole lake once for each batch of erasures, when their keys are destroyed, and"
        " say in receipts by store what is still found; the epoch is closed only after it",
    )


def five_fields(cron: str) -> str:
    """A cron expression: minute, hour, day of the month, month, day of the week.

    Raises:
        ValueError: it is none. Six fields are refused: where the seconds stand differs between libraries.
    """
    count = len(cron.split())
    if count != 5:
        raise ValueError(
            f"`{cron}` is not a cron expression: it has {count} field(s), and five are taken: minute, hour,"
            " day of the month, month, day of the week"
        )
    try:
        CronSim(cron, datetime.now(UTC))
    except CronSimError as error:
        raise ValueError(f"`{cron}` is not a cron expression: {error}") from None
    return cron


class Job(Section):
    """Scheduled work."""

    name: str = Field(description="name of the job")
    cron: Annotated[str, AfterValidator(five_fields)] = Field(
        description="cron expression of five fields, in UTC"
    )
    action: Literal["build", "close_epoch", "upkeep", "export_fences"] = Field(
        "build",
        description="build and publish views; close an epoch, also without an erasure, as cover; upkeep; "
        "write keys.fence_copies",
    )
    views: list[str] = Field(default_factory=list, description="views to build and publish; empty: all")
    rebuild: bool = Field(False, description="derive every bucket anew instead of catching up")


class VaultLogin(Section):
    """How a role logs in to Vault or OpenBao."""

    auth: Literal["approle", "jwt", "kubernetes", "token_file"] = Field("approle", description="log-in")
    auth_mount: str | None = Field(None, description="where the log-in is mounted; default: its own name")
    role: str | None = Field(None, description="role of a jwt or kubernetes log-in")
    role_id_file: Path | None = Field(None, description="AppRole's role id")
    secret_id_file: Path | None = Field(None, description="AppRole's secret id")
    jwt_file: Path | None = Field(None, description="signed token of a jwt or kubernetes log-in")
    token_file: Path | None = Field(None, description="token that somebody else keeps fresh")


class Vault(VaultLogin):
    """HashiCorp Vault or OpenBao as the custodian of the root."""

    address: str = Field(description="https://host:port")
    ca_file: Path | None = Field(None, description="certificate authority of a private network (PEM)")
    namespace: str | None = Field(None, description="namespace, where the server has them")
    mount: str = Field("transit", description="where the transit engine is mounted")
    prefix: str = Field("shredlake", description="the keys are <prefix>-root, -secret and -sign")
    timeout_seconds: Annotated[float, Field(gt=0, le=300)] = Field(10.0, description="of one call")
    snapshot_horizon_days: Annotated[int, Field(ge=0)] | None = Field(
        None, description="the server's snapshots are destroyed after so many days; receipts name it"
    )
    agent: VaultLogin | None = Field(
        None, description="log-in of `keys agent` and of ingest; default: the one above"
    )
    auditor: VaultLogin | None = Field(
        None, description="log-in that `doctor` inspects the keys with; default: the one above"
    )


class AgentUsers(Section):
    """Whose processes take a role of the key agent: `user` or `user:group`, names or ids."""

    ingest: str | None = Field(None, description="seals; default: the agent's own user")
    build: str | None = Field(None, description="opens for views; default: the agent's own user")
    purge: str | None = Field(None, description="destroys; default: the agent's own user")


class Keys(Section):
    """Keys and fences."""

    fence_log: Path | None = Field(None, description="fence log; put it on another disk than the keys")
    fence_copies: list[str] = Field(
        default_factory=list,
        description="paths or s3://bucket/key of signed copies of it: every erasure writes them, and the"
        " restore gate compares with them",
    )
    page_store: SecretStr | None = Field(
        None, description="postgresql://… of the key pages; default: SQLite in the lake's folder"
    )
    page_schema: str = Field("shredlake", description="PostgreSQL schema of the key pages")
    vault: Vault | None = Field(None, description="default: a root key file in the lake's folder")
    cipher: Literal["aes-256-gcm", "aes-256-gcm-siv", "chacha20-poly1305"] = Field(
        "aes-256-gcm", description="what values are sealed with from now on; the others are read as well"
    )
    padding: bool = Field(
        False,
        description="hide the length of what is sealed (Padmé), at the cost of at most an eighth of its size",
    )
    agent: bool = Field(
        False,
        description="ingest and workers of a build leave the keys with the host's `shredlake keys agent`",
    )
    agent_folder: Path | None = Field(
        None, description="sockets and tokens of the agent; default: `agent` in the lake's folder"
    )
    agent_users: AgentUsers = Field(
        default_factory=AgentUsers, description="a user for each role, held by the system's word for it"
    )


class Settings(BaseSettings):
    """All settings."""

    model_config = SettingsConfigDict(
        env_prefix="SHREDLAKE_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    server: Server = Field(default_factory=Server)
    ingest: Ingest = Field(default_factory=Ingest)
    lake: Lake = Field(default_factory=Lake)
    upkeep: Upkeep = Field(default_factory=Upkeep)
    replay: Replay = Field(default_factory=Replay)
    projections: Projections = Field(default_factory=Projections)
    erasure: Erasure = Field(default_factory=Erasure)
    keys: Keys = Field(default_factory=Keys)
    kafka: Kafka | None = Field(None, description="default: no topic is followed")
    jobs: list[Job] = Field(default_factory=list, description="scheduled work")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment goes before the file."""
        return env_settings, init_settings


def find_home(given: Path | None) -> Path:
    """The lake's folder: the option, else SHREDLAKE_HOME, else ./.shredlake."""
    return (given or Path(os.environ.get(HOME_VARIABLE, DEFAULT_HOME))).absolute()


def load_settings(home: Path) -> Settings:
    """Reads the settings of a lake.

    Raises:
        BadSettings: not TOML, an unknown key, or a value that does not fit; names the key.
    """
    path = home / CONFIG_NAME
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text()) if path.exists() else {}
    except PermissionError:
        raise BadSettings(
            f"this user may not read {CONFIG_NAME}", next_step="Let it in, as docs/servers.md shows."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSettings(f"{CONFIG_NAME} is not valid TOML{toml_place(error)}") from None
    _refuse_unknown_environment()
    try:
        return Settings(**document)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)
        )
        raise BadSettings(f"settings do not fit: {problems}") from None


def describe(settings: Settings) -> dict[str, Any]:
    """Every setting with its value, for `config show`."""
    return settings.model_dump(mode="json")


def _refuse_unknown_environment() -> None:
    known = {f"SHREDLAKE_{name.upper()}" for name in Settings.model_fields} | {HOME_VARIABLE}
    for name in os.environ:
        if name.startswith("SHREDLAKE_") and name.partition("__")[0] not in known:
            raise BadSettings(f"the environment sets {name}, which is no setting")
