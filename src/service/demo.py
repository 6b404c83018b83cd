"""`shredlake demo`: the whole path on real purchases, told on the terminal."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import purge.verifier
from keys import SubjectId
from lake import EventRead, MappedFile, load_mapping
from purge import scan
from service.errors import BadInput
from service.plot import plot_monthly
from service.runtime import Runtime, initialise, open_runtime

BATCH_EVENTS: Final = 25_000
_READ: Final = EventRead("Purchased", ("amount_cents", "customer"))
_WAIT_SECONDS: Final = 60.0
_console = Console(highlight=False)


def run_demo(example: Path, home: Path) -> None:
    """Runs every step; each prints what it did with the measured figures.

    Raises:
        BadInput: `home` exists and is not a demo's lake.
    """
    start = time.perf_counter()
    if home.exists():
        if any(home.iterdir()) and not (home / "token").exists():
            raise BadInput(f"{home} is not empty and no lake", next_step="Name another folder with --into.")
        shutil.rmtree(home)
    with tempfile.TemporaryDirectory(prefix="shredlake-demo-") as scratch:
        story = _Story(example, home, Path(scratch))
        story.events_in()
        story.views_out()
        story.erase()
        story.travel()
        story.verify()
        story.scan()
    _say(f"\n[bold]Done in {time.perf_counter() - start:.1f} s.[/] The lake is in {home}; look around with")
    _say(f"  shredlake --home {home} views show spend_bands")


class _Story:
    def __init__(self, example: Path, home: Path, scratch: Path) -> None:
        self._example = example
        self._home = home
        self._scratch = scratch
        self._before = scratch / "before"
        self._reported_at = datetime.now(UTC)
        self._subject = SubjectId("nobody yet")
        self._receipt_id = ""
        self._salt = ""

    def events_in(self) -> None:
        _title("1. Events in", "sealed per person, appended exactly once to an Iceberg table")
        raw = self._scratch / "CDNOW_master.txt"
        raw.write_bytes(gzip.decompress((self._example / "CDNOW_master.txt.gz").read_bytes()))
        initialise(self._home, [self._example / "views.py"])
        with open_runtime(self._home) as runtime:
            schema = json.loads((self._example / "purchased.json").read_text())
            runtime.lake.types.register(schema)
            for attempt in ("first", "again"):
                mapping = load_mapping(self._example / "mapping.toml", runtime.lake.types)
                source = MappedFile(raw, mapping)
                start = time.perf_counter()
                with _bar("sealing", 69_659) as update:
                    done = runtime.lake.ingestor().run(
                        source, batch_events=BATCH_EVENTS, progress=lambda lines, _: update(lines)
                    )
                seconds = time.perf_counter() - start
                if attempt == "first":
                    people = runtime.keyring.stats()["records"]
                    _say(
                        f"  {done.events:,} purchases of {people:,} people in {seconds:.2f} s "
                        f"({done.events / seconds:,.0f} events/s)"
                    )
                    _say(
                        f"  {done.blocks:,} sealed blocks, {done.stored_bytes:,} bytes, "
                        f"{len(done.snapshots)} snapshots, newest {done.snapshots[-1]}"
                    )
                else:
                    _say(
                        f"  the same command again: {done.events} new events, "
                        f"{done.already:,} lines already ingested: nothing changed"
                    )

    def views_out(self) -> None:
        _title("2. Views out", "three projections of one pinned snapshot, published in one commit")
        with open_runtime(self._home) as runtime:
            start = time.perf_counter()
            with _bar("deriving", None) as update:
                built = runtime.views.build(
                    runtime.views.registry.names(),
                    who="demo",
                    why="first build",
                    progress=lambda what, done, total: update(done, total),
                )
            built_seconds = time.perf_counter() - start
            start = time.perf_counter()
            release = runtime.views.publish(built, who="demo", why="first build")
            published_seconds = time.perf_counter() - start
            runtime.purge.log_publications()
            _say(
                f"  built in {built_seconds:.2f} s, "
                f"published as release {release.release_id} in {published_seconds * 1000:.0f} ms"
            )
            for one in built:
                p = one.publication
                events = "" if p.events_counted is None else f"from {p.events_counted:,} events "
                kind = "personal" if p.personal else "anonymous fields only"
                _say(f"  {p.view:<17} {p.rows:>7,} rows {events}({p.grain} grain, {kind}, code {p.version})")
            self._reported_at = datetime.now(UTC)
            days = runtime.views.as_reported("revenue_per_day").rows
            picture = self._home / "plots" / "revenue_per_month.png"
            if plot_monthly(days, "revenue", "Revenue per month", picture):
                _say(f"  plot of revenue per month: {picture}")
            profiles = runtime.views.as_reported("customer_profile").rows
            busiest = profiles.sort("orders", "cents", descending=True).row(0, named=True)
            self._subject = SubjectId(f"customer-{busiest['customer']}")
            _say(
                f"  busiest customer: {busiest['orders']} purchases, {busiest['cents'] / 100:,.2f} in all; "
                "this person asks to be forgotten"
            )
        shutil.copytree(self._home, self._before)

    def erase(self) -> None:
        _title("3. A deletion request", "over HTTP to the real server on loopback")
        with _server(self._home) as (client, address):
            _say(f"  server on {address}")
            wanted = {"subject": self._subject.reveal(), "dry_run": True}
            plan = client.post("/v1/erasure-requests", json=wanted).raise_for_status().json()
            _say(
                f"  plan: {plan['events']} events in {plan['blocks']} block(s); "
                f"views {', '.join(plan['views'])} ({plan['partitions']} partitions);"
            )
            _say(
                f"        {len(plan['days'])} day(s) of {plan['rewrite_bytes']:,} bytes to rewrite; "
                f"estimated {plan['estimated_seconds']} s"
            )
            start = time.perf_counter()
            asked = client.post("/v1/erasure-requests", json=wanted | {"dry_run": False}).raise_for_status()
            request = asked.json()
            self._receipt_id, self._salt = request["request_id"], request["salt"]
            _say(
                f"  accepted: {asked.status_code}, {asked.headers['location']}, due {request['due_at'][:10]}"
            )
            request = _follow(client, asked.headers["location"])
            seconds = time.perf_counter() - start
            for stage in request["stages"][1:]:
                _say(f"    {stage['stage']:<17} {stage['seconds'] * 1000:8.1f} ms")
            _say(f"  [bold]{request['status']}[/] after {seconds:.2f} s, receipt {self._receipt_id}")
            receipt = client.get(request["receipt_url"]).raise_for_status().content
            folder = self._home / "receipts"
            folder.mkdir(exist_ok=True)
            (folder / f"{self._receipt_id}.json").write_bytes(receipt)
            (folder / "operator.vkey").write_text(client.get("/v1/log/key").text)
            gone = client.post("/v1/views/customer_profile/row", json={"subject": self._subject.reveal()})
            _say(f"  their profile row: {gone.status_code} “{gone.json()['detail']}”")

    def travel(self) -> None:
        _title("4. Time travel", "what was reported stays answerable; the person does not")
        with open_runtime(self._home) as runtime:
            views = runtime.views
            cents = views.as_reported("revenue_per_day", self._reported_at).rows["cents"].sum()
            _say(f"  revenue as reported before the erasure: [bold]{cents / 100:,.2f}[/]")
            then = views.as_reported("spend_bands", self._reported_at).rows["customers"].sum()
            found = views.reconcile("spend_bands", self._reported_at)
            now = views.as_recomputed("spend_bands", self._reported_at).rows["customers"].sum()
            _say(f"  spend_bands, people × months: {then:,} as reported, {now:,} as recomputed today")
            _say(
                f"    {found.differences.height} rows differ, by {found.erased_events} events of erased "
                f"people; unexplained: {found.residual}"
            )
            self._oldest_snapshots(runtime)

    def _oldest_snapshots(self, runtime: Runtime) -> None:
        replay = runtime.lake.replay()
        theirs = others = 0
        for snapshot in runtime.lake.events.history():
            frame = replay.events(replay.files(snapshot.snapshot_id), _READ).frame
            theirs += int(frame["shredded"].sum())
            others += frame.height - int(frame["shredded"].sum())
        for snapshot in reversed(runtime.lake.events.history()):
            rows = replay.events(replay.files(snapshot.snapshot_id), _READ)
            if rows.shredded:
                break
        _say(
            f"  all {len(runtime.lake.events.history())} kept snapshots read again: their events open as "
            f"Shredded ({theirs:,} times), everyone else's open ({others:,} times)"
        )
        _say(
            f"  the oldest snapshot that holds them, {snapshot.snapshot_id}: {rows.frame.height:,} events, "
            f"{rows.shredded:,} of them Shredded"
        )

    def verify(self) -> None:
        _title("5. The receipt", "checked offline by one file that needs only `cryptography`")
        folder = self._home / "receipts"
        receipt, key = folder / f"{self._receipt_id}.json", folder / "operator.vkey"
        person = ["--subject", self._subject.reveal(), "--salt", self._salt]
        _say(f"  {_verifier(receipt, key, *person)}")
        body = bytearray(receipt.read_bytes())
        body[len(body) // 2] ^= 1
        flipped = self._scratch / "flipped.json"
        flipped.write_bytes(body)
        _say(f"  one bit of it flipped: {_verifier(flipped, key)}")

    def scan(self) -> None:
        _title("6. A byte scan", "every file, raw, decompressed, and behind every key that lies there")
        for label, folder in (("after the erasure", self._home), ("a copy from before", self._before)):
            with _bar("scanning", None) as update:
                found = scan(folder, self._subject, update)
            where = (
                f"[bold]found in {len({f.path for f in found.findings})} file(s)[/], so the scan can find"
                if found.findings
                else "[bold]found nowhere[/]"
            )
            _say(
                f"  {label}: {where} ({found.files} files, {found.bytes:,} bytes, "
                f"{found.opened_values:,} sealed values opened)"
            )


@contextlib.contextmanager
def _server(home: Path) -> Iterator[tuple[httpx.Client, str]]:
    """The real server in a process of its own, on a free loopback port."""
    command = [sys.executable, "-c", "from service.cli import main; main()"]
    process = subprocess.Popen(
        [*command, "--home", str(home), "--output", "json", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        told = ""
        for line in process.stdout:
            told += line
            if line.startswith("}"):
                break
        port = json.loads(told)["port"]
        token = (home / "token").read_text().strip()
        address = f"http://127.0.0.1:{port}"
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=address, headers=headers, timeout=60, trust_env=False) as client:
            _until_ready(client)
            yield client, address
    finally:
        process.terminate()
        process.wait(timeout=30)


def _until_ready(client: httpx.Client) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        with contextlib.suppress(httpx.TransportError):
            if client.get("/v1/health/ready").status_code == 200:
                return
        if time.monotonic() > deadline:
            raise BadInput("the server did not become ready", next_step="Look into logs/shredlake.log.")
        time.sleep(0.05)


def _follow(client: httpx.Client, location: str) -> dict[str, Any]:
    deadline = time.monotonic() + _WAIT_SECONDS
    with _bar("erasing", 11) as update:
        while True:
            request: dict[str, Any] = client.get(location).raise_for_status().json()
            update(sum(1 for stage in request["stages"][1:] if stage["finished_at"]))
            if request["status"] in ("completed", "incomplete", "held") or time.monotonic() > deadline:
                return request
            time.sleep(0.02)


def _verifier(receipt: Path, key: Path, *more: str) -> str:
    script = Path(purge.verifier.__file__)
    done = subprocess.run(
        [sys.executable, str(script), str(receipt), str(key), *more],
        capture_output=True,
        text=True,
        check=False,
    )
    return (done.stdout or done.stderr).strip()


@contextlib.contextmanager
def _bar(text: str, total: int | None) -> Iterator[Any]:
    columns = (TextColumn("  {task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console, transient=True, disable=not _console.is_terminal) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done, of=None: bar.update(task, completed=done, total=of or total)


def _title(text: str, more: str) -> None:
    _say(f"\n[bold cyan]{text}[/] [dim]{more}[/]")


def _say(text: str) -> None:
    _console.print(text, soft_wrap=True)
