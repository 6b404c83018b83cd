"""What `infra/` describes for people who have an engine or a cluster."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from infra import catalog, kafka, registry, s3, vault
from infra.servers import SERVERS

INFRA = Path(__file__).parents[2] / "infra"


def images(path: Path) -> set[str]:
    """Every image that a file names."""
    return set(re.findall(r"^\s*image: (\S+)$", path.read_text(), re.MULTILINE))


def test_compose_and_helm_describe_the_same_images_as_the_scripts() -> None:
    """One version of each server everywhere."""
    described = images(INFRA / "compose.yaml")
    assert described == images(INFRA / "helm" / "values.yaml")
    assert {
        f"hashicorp/vault:{vault.VERSION}",
        f"apache/kafka:{kafka.VERSION}",
        f"versity/versitygw:v{s3.VERSION}",
        f"apicurio/apicurio-registry-mem:{registry.VERSION}",
        f"apache/iceberg-rest-fixture:{catalog.VERSION}",
    } <= described
    assert len(described) == len(SERVERS)
    assert not any(image.endswith(":latest") or ":" not in image for image in described)


def test_the_chart_renders_one_service_and_one_set_per_server() -> None:
    """By helm itself."""
    helm = shutil.which("helm")
    if helm is None:
        pytest.skip("helm is not on the PATH")
    lint = subprocess.run([helm, "lint", INFRA / "helm"], capture_output=True, text=True, check=False)
    assert lint.returncode == 0, lint.stdout
    done = subprocess.run(
        [helm, "template", "try", INFRA / "helm"], capture_output=True, text=True, check=True
    )
    servers = len(images(INFRA / "helm" / "values.yaml"))
    assert done.stdout.count("kind: Service\n") == done.stdout.count("kind: StatefulSet\n") == servers
