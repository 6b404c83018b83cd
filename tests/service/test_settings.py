"""Settings, the bind rule, and the scheduler."""

from __future__ import annotations

import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadSettings, UnsafeBind
from service.jobs import job_scheduler
from service.runtime import Runtime, initialise, open_runtime
from service.scheduler import MOST_MISSED, Scheduler, missed_before, newest_due
from service.server import is_loopback, make_server
from service.settings import Job, load_settings
from tests.world import Clock, paid, send

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[server]\nprot = 1\n", "server.prot"),
        ("[surprise]\n", "surprise"),
        ("[server]\nport = 99999\n", "server.port"),
        ("[upkeep]\ngrace_minutes = 9.5\n", "upkeep.grace_minutes"),
        ("[server", "not valid TOML"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(tmp_path: Path, text: str, what: str) -> None:
    """Nothing is silently ignored."""
    (tmp_path / "shredlake.toml").write_text(text)
    with pytest.raises(BadSettings, match=what):
        load_settings(tmp_path)


def test_the_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And an unknown variable of ours is refused."""
    (tmp_path / "shredlake.toml").write_text("[server]\nport = 1000\n")
    assert load_settings(tmp_path).server.port == 1000
    monkeypatch.setenv("SHREDLAKE_SERVER__PORT", "2000")
    assert load_settings(tmp_path).server.port == 2000
    monkeypatch.setenv("SHREDLAKE_SURPRISE", "1")
    with pytest.raises(BadSettings, match="SHREDLAKE_SURPRISE"):
        load_settings(tmp_path)


def test_secrets_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    """Token and root key have mode 0600; a second init changes nothing."""
    assert initialise(tmp_path / "l")
    token = (tmp_path / "l" / "token").read_text()
    for name in ("token", "keys/root.key"):
        assert (tmp_path / "l" / name).stat().st_mode & 0o777 == 0o600
    assert not initialise(tmp_path / "l")
    assert (tmp_path / "l" / "token").read_text() == token


def test_beyond_loopback_only_with_tls_or_the_flag(world: Runtime) -> None:
    """The default is safe, and the refusal says how."""
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    with pytest.raises(UnsafeBind) as refused:
        make_server(world, host="0.0.0.0", port=0)
    assert "--allow-insecure-bind" in refused.value.next_step
    _, listener = make_server(world, port=0)
    assert listener.getsockname()[0] == "127.0.0.1"
    assert listener.proto == socket.IPPROTO_TCP, "asyncio sends small answers at once only then"
    listener.close()


@given(st.integers(1, 59), st.integers(0, 3000), st.integers(0, 3_600))
def test_the_newest_due_time_is_the_last_of_all_in_the_interval(
    minutes: int, length: int, seconds: int
) -> None:
    """And those before it are counted as missed."""
    cron, until = f"*/{minutes} * * * *", NOON + timedelta(minutes=length, seconds=seconds)
    every = [NOON + timedelta(minutes=at) for at in range(1, length + 62)]
    due = [moment for moment in every if moment <= until and moment.minute % minutes == 0]
    assert newest_due(cron, NOON, until) == (due[-1] if due else None)
    if due:
        assert missed_before(cron, NOON, due[-1]) == len(due) - 1


@given(cron=st.sampled_from(["* * * * *", "0 * * * *", "15 2 * * *", "0 0 1 1 *"]), days=st.integers(1, 1500))
def test_however_long_nobody_ran_a_job_it_runs_once(cron: str, days: int) -> None:
    """A minutely one after two days as well as a yearly one after four years."""
    now = NOON + timedelta(days=days, seconds=7)
    due = newest_due(cron, NOON, now)
    if due is not None:
        assert newest_due(cron, due, now) is None
        assert missed_before(cron, NOON, due) <= MOST_MISSED


def test_a_minutely_job_after_two_days_runs_once(tmp_path: Path) -> None:
    """One run, which says how many it stands for."""
    clock, ran = Clock([NOON]), list[str]()
    jobs = [Job(name="j", cron="* * * * *")]
    scheduler = Scheduler(tmp_path / "s.db", jobs, lambda job: ran.append(job.name) or "done", clock=clock)
    clock.forward(days=2)
    (run,) = scheduler.tick()
    assert (run.missed, len(ran)) == (2879, 1)
    assert scheduler.tick() == scheduler.tick() == []
    clock.forward(minutes=1)
    assert [one.missed for one in scheduler.tick()] == [0]


@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25"])
def test_where_clocks_are_changed_nothing_is_skipped_and_nothing_runs_twice(tmp_path: Path, day: str) -> None:
    """Cron is meant in UTC, whatever zone the clock of this machine tells."""
    start = datetime.fromisoformat(f"{day}T00:00:00+00:00") - timedelta(hours=1)
    clock = Clock([start.astimezone(ZoneInfo("Europe/Berlin"))])
    jobs = [Job(name="hourly", cron="30 * * * *"), Job(name="nightly", cron="30 1 * * *")]
    scheduler = Scheduler(tmp_path / "s.db", jobs, lambda job: "done", clock=clock)
    for _ in range(26 * 4):
        clock.now[0] = (clock.now[0].astimezone(UTC) + timedelta(minutes=15)).astimezone(clock.now[0].tzinfo)
        scheduler.tick()
    hours = [run.due_at for run in reversed(scheduler.history("hourly"))]
    assert hours == [start + timedelta(hours=at, minutes=30) for at in range(26)]
    assert [run.due_at.isoformat() for run in scheduler.history("nightly")] == [f"{day}T01:30:00+00:00"]


@pytest.mark.parametrize(
    "cron", ["61 * * * *", "* * * * * *", "0 */5 * * * *", "* * * *", "@daily", "", "a b c d e"]
)
def test_what_is_no_cron_expression_of_five_fields_is_refused_at_once(tmp_path: Path, cron: str) -> None:
    """When the settings are read; six fields too, whose seconds stand first here and last there."""
    (tmp_path / "shredlake.toml").write_text(f'[[jobs]]\nname = "j"\ncron = "{cron}"\n')
    with pytest.raises(BadSettings, match=r"jobs\.0\.cron.*is not a cron expression"):
        load_settings(tmp_path)
    with pytest.raises(BadSettings, match="is not a cron expression"):
        Scheduler(tmp_path / "s.db", [Job.model_construct(name="j", cron=cron)], lambda job: "")


def test_missed_runs_are_made_up_for_once(tmp_path: Path) -> None:
    """Four missed hours are one run that says so."""
    clock = Clock([NOON])
    ran: list[str] = []
    scheduler = Scheduler(
        tmp_path / "s.db",
        [Job(name="j", cron="0 * * * *")],
        lambda job: ran.append(job.name) or "done",
        clock=clock,
    )
    assert scheduler.tick() == []
    clock.forward(hours=4, minutes=30)
    (run,) = scheduler.tick()
    assert (run.missed, run.outcome, ran) == (3, "done", ["j"])
    assert scheduler.tick() == []


def test_two_schedulers_do_not_run_the_same_time_twice(tmp_path: Path) -> None:
    """The first to claim it runs it; a run under way keeps the next from starting."""
    clock = Clock([NOON])
    ran: list[str] = []

    def work(job: Job) -> str:
        ran.append("start")
        clock.forward(hours=1)
        assert second.tick() == [], "no overlap"
        return "done"

    jobs = [Job(name="j", cron="0 * * * *")]
    first = Scheduler(tmp_path / "s.db", jobs, work, clock=clock)
    second = Scheduler(tmp_path / "s.db", jobs, work, clock=clock)
    clock.forward(hours=1)
    assert len(first.tick()) == 1
    assert ran == ["start"]


def test_a_scheduler_survives_whatever_a_run_raises(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Other jobs and later times run; history and log name the error's type, not what it quotes."""
    clock = Clock([NOON])
    ran: list[str] = []
    done = threading.Event()

    def work(job: Job) -> str:
        ran.append(job.name)
        if job.name == "broken":
            raise RuntimeError("about secret-person")
        done.set()
        return "done"

    jobs = [Job(name=name, cron="0 * * * *") for name in ("broken", "whole")]
    scheduler = Scheduler(tmp_path / "s.db", jobs, work, clock=clock)
    thread = threading.Thread(target=scheduler.forever)
    thread.start()
    for _ in range(2):
        done.clear()
        clock.forward(hours=1)
        assert done.wait(60)
    scheduler.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert ran == ["broken", "whole"] * 2
    outcomes = [run.outcome or "" for run in scheduler.history("broken")]
    assert all(one.startswith("failed: unexpected RuntimeError at ") for one in outcomes)
    assert "RuntimeError" in caplog.text
    assert "secret-person" not in caplog.text


def test_a_failed_run_is_in_the_history(world: Runtime) -> None:
    """With its error; the next time runs again."""
    clock = Clock([NOON])
    scheduler = Scheduler(
        world.home / "service" / "schedule.db",
        [Job(name="j", cron="0 * * * *", views=["nope"])],
        lambda job: world.views.build(job.views) and "",
        clock=clock,
    )
    clock.forward(hours=1)
    (run,) = scheduler.tick()
    assert run.outcome is not None
    assert run.outcome.startswith("failed: UnknownView")


def test_a_scheduled_job_publishes(tmp_path: Path, clock: Clock) -> None:
    """From settings to a release."""
    from tests.world import PAID, VIEWS

    initialise(tmp_path / "lake", [VIEWS])
    with (tmp_path / "lake" / "shredlake.toml").open("a") as file:
        file.write('[[jobs]]\nname = "hourly"\ncron = "0 * * * *"\nviews = ["cents_per_day"]\n')
    with open_runtime(tmp_path / "lake", clock=clock) as runtime:
        runtime.lake.types.register(PAID)
        send(runtime, [paid("ann", event_id="1")])
        scheduler = job_scheduler(runtime)
        clock.forward(hours=2)
        scheduler.tick()
        assert runtime.views.as_reported("cents_per_day").rows["events"].sum() == 1


def test_a_scheduled_epoch_closes_also_without_an_erasure(tmp_path: Path, clock: Clock) -> None:
    """As cover: whoever watches the root cannot tell when somebody was erased."""
    initialise(tmp_path / "lake")
    with (tmp_path / "lake" / "shredlake.toml").open("a") as file:
        file.write('[[jobs]]\nname = "cover"\ncron = "0 * * * *"\naction = "close_epoch"\n')
    with open_runtime(tmp_path / "lake", clock=clock) as runtime:
        scheduler = job_scheduler(runtime)
        before = runtime.keyring.stats()["root_version"]
        clock.forward(hours=1, minutes=1)
        (run,) = scheduler.tick()
        assert "refused" in str(run.outcome)
        assert runtime.keyring.stats()["oldest_root_version"] == before + 1  # type: ignore[operator]
