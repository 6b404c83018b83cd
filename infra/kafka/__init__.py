"""Apache Kafka on KRaft, loopback only: one broker, or three that survive the loss of one."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from infra.errors import InfraError, NotAvailable
from infra.jars import jars, java_command
from infra.process import ServerProcess, free_ports
from infra.tls import make_certificates

NAME: Final = "kafka"
VERSION: Final = "4.3.1"
_POM = Path(__file__).parent / "pom.xml"
_READY_TOPIC: Final = "shredlake-ready"
_READY_SECONDS: Final = 120.0
USER: Final = "shredlake"
_SCRAM: Final = "SCRAM-SHA-256"


class Broker:
    """One node, broker and controller in one, in a folder of its own.

    Args:
        folder: data, log and pid.
        facts: `number`, the `ports` and `controllers` of every node, `cluster_id`, `heap_mb`.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder = folder
        self._facts = facts
        self.process = ServerProcess(folder, f"Kafka broker {facts['number']}")

    @property
    def address(self) -> str:
        """host:port for clients."""
        return f"127.0.0.1:{self._facts['ports'][self._facts['number'] - 1]}"

    def launch(self) -> None:
        """Starts the JVM, on a formatted folder; does not wait.

        Raises:
            NotAvailable: no Java, or no jars.
            InfraError: one runs on this folder, or it cannot be formatted.
        """
        libraries = find_jars()
        if self.process.pid is not None:
            raise InfraError(f"{self.process.name} is running on {self.folder} already")
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        properties = self.folder / "server.properties"
        if not (self.folder / "data" / "meta.properties").exists():
            properties.write_text(self._properties())
            self._format(libraries, properties)
        heap = int(self._facts["heap_mb"])
        self.process.start(java_command([libraries], heap, "kafka.Kafka", properties))

    def _format(self, libraries: Path, properties: Path) -> None:
        tool = ["kafka.tools.StorageTool", "format", "-t", self._facts["cluster_id"], "-c", str(properties)]
        if self._facts["password"]:
            tool += ["--add-scram", f"{_SCRAM}=[name={USER},password={self._facts['password']}]"]
        # What it prints may hold credentials: shown nowhere.
        done = subprocess.run(
            [str(part) for part in java_command([libraries], 128, *tool)], capture_output=True, check=False
        )
        if done.returncode:
            raise InfraError(f"the storage of {self.process.name} in {self.folder} cannot be formatted")

    def _properties(self) -> str:
        number, ports, controllers = (self._facts[one] for one in ("number", "ports", "controllers"))
        copies = len(ports)
        outside = {} if not self._facts["password"] else self._secured()
        voters = ",".join(f"{at}@127.0.0.1:{port}" for at, port in enumerate(controllers, start=1))
        settings = {
            "process.roles": "broker,controller",
            "node.id": number,
            "controller.quorum.voters": voters,
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{controllers[number - 1]}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL",
            "log.dirs": (self.folder / "data").resolve(),
            "auto.create.topics.enable": "false",
            "default.replication.factor": copies,
            "min.insync.replicas": max(1, copies - 1),
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": 8,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": max(1, copies - 1),
            "transaction.state.log.num.partitions": 8,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": self._facts.get("rebalance_delay_ms", 0),
            "log.cleaner.dedupe.buffer.size": 4 * 1024 * 1024,  # its default is half of a small heap
            "log.cleaner.backoff.ms": 1000,  # a test of a compacted topic need not wait a quarter of a minute
            "broker.session.timeout.ms": 3000,  # a killed broker's return is noticed sooner
            "broker.heartbeat.interval.ms": 500,
        }
        for name, value in outside.items():
            settings[name] = f"{settings[name]},{value}" if name in settings else value
        return "".join(f"{name}={value}\n" for name, value in settings.items())

    def _secured(self) -> dict[str, str]:
        """A further listener with TLS, where clients log in."""
        make_certificates(self.folder)
        key, chain = (self.folder / name for name in ("server.key", "server.pem"))
        (self.folder / "listener.pem").touch(mode=0o600)
        (self.folder / "listener.pem").write_text(key.read_text() + chain.read_text())
        here = f"SASL_SSL://127.0.0.1:{self._facts['outside'][self._facts['number'] - 1]}"
        return {
            "listeners": here,
            "advertised.listeners": here,
            "sasl.enabled.mechanisms": _SCRAM,
            "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str((self.folder / "listener.pem").resolve()),
        }


class Kafka:
    """A cluster under `<data>/kafka`.

    Args:
        data: the folder of all servers.
        brokers: how many a new folder is made with.
        secure: whether a new folder also gets a listener with TLS and a log-in.
        rebalance_delay_ms: how long a new group waits for further members; Kafka's own default is 3000.
    """

    def __init__(
        self, data: Path, brokers: int = 1, secure: bool = False, rebalance_delay_ms: int = 0
    ) -> None:
        self._secure = secure
        self._rebalance_delay_ms = rebalance_delay_ms
        self.folder = data / NAME
        self._facts = self.folder / "facts.json"
        self._count = brokers
        self.process = ServerProcess(self.folder / "broker-1", "Kafka broker 1")

    @property
    def brokers(self) -> list[Broker]:
        """Every node; none before the first start."""
        if not self._facts.exists():
            return []
        facts = json.loads(self._facts.read_text())
        numbers = range(1, len(facts["ports"]) + 1)
        return [Broker(self.folder / f"broker-{number}", {**facts, "number": number}) for number in numbers]

    def start(self) -> dict[str, str]:
        """Starts what does not run; returns when all brokers are there and take an idempotent write.

        Raises:
            NotAvailable: no Java, no jars, or no client library.
            InfraError: it does not come up.
        """
        find_jars()
        self._make()
        for broker in self.brokers:
            if broker.process.pid is None:
                broker.launch()
        self.wait_until_ready()
        return self.address()

    def wait_until_ready(self) -> None:
        """Waits for every broker. Raises `InfraError` when one does not come."""
        self.brokers[0].process.wait_until(self._takes_writes, _READY_SECONDS)

    def stop(self) -> None:
        """Stops every broker; the last controller of several would wait for the others, so it is killed."""
        brokers = self.brokers
        for broker in brokers[:-1]:
            broker.process.stop()
        for broker in brokers[-1:]:
            broker.process.stop(signal.SIGKILL if len(brokers) > 1 else signal.SIGTERM)

    def address(self) -> dict[str, str]:
        """`KAFKA_BOOTSTRAP`."""
        return {"KAFKA_BOOTSTRAP": ",".join(broker.address for broker in self.brokers)}

    def secured_client(self) -> dict[str, str]:
        """What librdkafka needs to reach the listener with TLS, the password among it."""
        facts = json.loads(self._facts.read_text())
        return {
            "bootstrap.servers": ",".join(f"127.0.0.1:{port}" for port in facts["outside"]),
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": _SCRAM,
            "sasl.username": USER,
            "sasl.password": facts["password"],
            "ssl.ca.location": str(self.brokers[0].folder / "ca.pem"),
        }

    def _make(self) -> None:
        if self._facts.exists():
            return
        count = self._count
        ports = free_ports(3 * count)
        facts = {
            "cluster_id": "k" + secrets.token_urlsafe(16)[1:],  # 16 bytes; a leading dash would be an option
            "ports": ports[:count],
            "controllers": ports[count : 2 * count],
            "outside": ports[2 * count :],
            "password": secrets.token_hex(16) if self._secure else "",
            "heap_mb": 512 if count == 1 else 256,
            "rebalance_delay_ms": self._rebalance_delay_ms,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        self._facts.touch(mode=0o600)
        self._facts.write_text(json.dumps(facts))

    def _takes_writes(self) -> bool:
        """The port opens before the coordinators are ready, so something is written."""
        try:
            from confluent_kafka import KafkaException, Producer
            from confluent_kafka.admin import AdminClient, NewTopic
        except ImportError:
            raise NotAvailable("Kafka: install `confluent-kafka`, the client that asks it") from None
        settings = {"bootstrap.servers": self.address()["KAFKA_BOOTSTRAP"], "log_level": 0}
        try:
            admin = AdminClient(settings)
            found = admin.list_topics(timeout=1)
            if len(found.brokers) < len(self.brokers):
                return False
            if _READY_TOPIC not in found.topics:
                admin.create_topics([NewTopic(_READY_TOPIC, 1)])[_READY_TOPIC].result(timeout=5)
        except KafkaException:
            return False
        said: list[object] = []
        producer = Producer(
            settings | {"enable.idempotence": True, "delivery.timeout.ms": 5000, "socket.timeout.ms": 2000}
        )
        producer.produce(_READY_TOPIC, b"", on_delivery=lambda error, _: said.append(error))
        producer.flush(6)
        return said == [None]


def find_jars() -> Path:
    """The folder of Kafka's jars; fetched where they are not there.

    Raises:
        NotAvailable: says what to install.
    """
    return jars(NAME, VERSION, _POM)
