"""The shape of the project: wheel, names, file lengths, words that do not belong here."""

from __future__ import annotations

import ast
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from service.doctor import OUR_PACKAGES, shadowing_distributions

ROOT = Path(__file__).parent.parent
PURE = (
    "keys/envelope.py",
    "keys/lifecycle.py",
    "keys/restoregate.py",
    "keys/tree.py",
    "lake/bodies.py",
    "lake/bodyreader.py",
    "lake/clearfields.py",
    "lake/clearforms.py",
    "lake/cloudevents.py",
    "lake/compatibility.py",
    "lake/dedup.py",
    "lake/eventtypes.py",
    "lake/offsets.py",
    "lake/upcast.py",
    "lake/upcastrules.py",
    "lake/validate.py",
    "projections/aggregates.py",
    "projections/compute.py",
    "projections/differencing.py",
    "projections/gates.py",
    "projections/switching.py",
    "purge/attestation.py",
    "purge/clocks.py",
    "purge/merkle.py",
    "purge/stages.py",
)
IMPURE_MODULES = {
    "os",
    "random",
    "secrets",
    "sqlite3",
    "socket",
    "subprocess",
    "time",
    "requests",
    "httpx",
    "pathlib",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as `make wheel` builds it."""
    to = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(to), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (found,) = to.glob("*.whl")
    return found


def test_the_wheel_holds_the_five_packages_and_nothing_else(wheel: Path) -> None:
    """No tests, no examples, no benchmarks."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(OUR_PACKAGES)
    assert all(f"{package}/py.typed" in names for package in OUR_PACKAGES)


def test_doctor_runs_from_the_wheel_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """Ours comes from the wheel; what we depend on is lent by path, so that the test needs no network."""
    environment = tmp_path / "env"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True, capture_output=True
    )
    site = next((environment / "lib").glob("python*/site-packages"))
    lent = [path for path in sys.path if path.endswith("site-packages")]  # one environment may lend another's
    (site / "lent.pth").write_text("\n".join(lent) + "\n")
    done = subprocess.run(
        [environment / "bin" / "shredlake", "--home", tmp_path / "none", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "no other distribution uses our package names" in done.stdout
    where = subprocess.run(
        [python, "-c", "import keys, service; print(keys.__file__, service.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert str(site) in where.stdout


def test_a_foreign_distribution_of_our_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something that installs a package called `lake` would shadow ours."""
    assert shadowing_distributions() == []
    info = tmp_path / "squatter-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: squatter\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("lake\n")
    (info / "RECORD").write_text("lake/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert shadowing_distributions() == ["squatter"]


@pytest.mark.parametrize("module", PURE)
def test_decision_modules_import_no_io_no_clock_and_no_randomness(module: str) -> None:
    """What they need is passed in."""
    tree = ast.parse((ROOT / "src" / module).read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not imported & IMPURE_MODULES


def test_every_public_name_has_a_docstring() -> None:
    """Modules, classes, and functions without a leading underscore."""
    bare = []
    for path in (ROOT / "src").rglob("*.py"):
        tree = ast.parse(path.read_text())
        if ast.get_docstring(tree) is None:
            bare.append(path.name)
        for node in tree.body:
            public = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
            if public and ast.get_docstring(node) is None:
                bare.append(f"{path.name}:{node.name}")
    assert bare == []


def test_modules_stay_readable() -> None:
    """About 400 lines at the most."""
    long = {
        str(path.relative_to(ROOT / "src")): len(path.read_text().splitlines())
        for path in (ROOT / "src").rglob("*.py")
    }
    assert {name: n for name, n in long.items() if n > 430} == {}


def test_no_registry_address_and_no_machine_path_is_in_the_repository() -> None:
    """Lock files name hashes; nobody's home folder is written down."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = (
        "files.python" + "hosted",
        "pypi" + ".org",
        "registry." + "npmjs",
        "repo1." + "maven",
        "/ro" + "ot/",
    )
    for name in tracked.split("\n"):
        path = ROOT / name
        if path.is_file() and path.suffix not in (".gz", ".png"):
            text = path.read_text(errors="ignore")
            assert not [word for word in words if word in text], name
