"""What a scheduled job does: builds and publishes views, closes an epoch, copies fences, runs upkeep."""

from __future__ import annotations

from lake import Maintenance, UpkeepPolicy
from service.errors import BadSettings, FenceCopyNotWritten
from service.fencecopies import not_written
from service.runtime import Runtime
from service.scheduler import Scheduler
from service.settings import Job, Upkeep


def run_job(runtime: Runtime, job: Job) -> str:
    """Does a job's work; returns a sentence about it."""
    if job.action == "close_epoch":
        closed = runtime.keyring.close_epoch()
        proof = "an old wrap was refused" if closed.old_wrap_refused else "AN OLD WRAP STILL OPENS"
        return f"root version {closed.root_version}, {closed.nodes} node(s) rewrapped; {proof}"
    if job.action == "export_fences":
        return "; ".join(f"{place}: {what}" for place, what in export_fence_copies(runtime).items())
    if job.action == "upkeep":
        done = maintenance(runtime).run(runtime.lake.clock())
        return ", ".join(f"{step.what} {step.day or ''}".strip() for step in done) or "nothing to do"
    names = job.views or runtime.views.registry.names()
    why = f"scheduled: {job.name}"
    _, release = runtime.views.bring_up_to_date(names, rebuild=job.rebuild, who="scheduler", why=why)
    runtime.purge.log_publications()
    return f"release {release.release_id}: {', '.join(names)}"


def export_fence_copies(runtime: Runtime, to: str | None = None) -> dict[str, str]:
    """Writes the signed copies of the fence log; place → `written`.

    Args:
        to: this place instead of those of the settings.

    Raises:
        BadSettings: neither the caller nor the settings say where.
        RestoreGateClosed: a witness, the copies themselves among them, knows more than the log.
        FenceCopyInvalid: a copy was cut or edited, or none can be read.
        FenceCopyNotWritten: a place cannot be written, or its copy holds what the log lacks.
    """
    copies = runtime.fence_copies
    if to is None and not copies.places:
        raise BadSettings(
            "nothing says where the copy of the fence log goes",
            next_step="Set keys.fence_copies, or name a place.",
        )
    runtime.keyring.gate([] if to is None else [copies.witness(to)]).trusted()
    told = copies.write(to)
    if failed := not_written(told):
        raise FenceCopyNotWritten(f"{len(failed)} of {len(told)} fence copies: {'; '.join(failed)}")
    return told


def maintenance(runtime: Runtime) -> Maintenance:
    """Upkeep by the settings.

    Raises:
        RestoreGateClosed: the fence log cannot be relied on; compaction opens and seals.
    """
    runtime.keyring.gate().trusted()
    return Maintenance(runtime.lake, upkeep_policy(runtime.settings.upkeep))


def upkeep_policy(settings: Upkeep) -> UpkeepPolicy:
    """The policy that the settings say."""
    return UpkeepPolicy(
        settings.merge_files,
        settings.file_mb * 1024 * 1024,
        settings.keep_snapshots,
        settings.keep_minutes * 60,
        settings.grace_minutes * 60,
        settings.rest_ratio,
        settings.letter_days,
    )


def job_scheduler(runtime: Runtime) -> Scheduler:
    """The scheduler over a lake's jobs."""
    return Scheduler(
        runtime.home / "service" / "schedule.db",
        runtime.settings.jobs,
        lambda job: run_job(runtime, job),
        clock=runtime.lake.clock,
    )
