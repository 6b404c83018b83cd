"""What a scheduled job does: builds and publishes views, or closes an epoch."""

from __future__ import annotations

from service.runtime import Runtime
from service.scheduler import Scheduler
from service.settings import Job


def run_job(runtime: Runtime, job: Job) -> str:
    """Does a job's work; returns a sentence about it."""
    if job.action == "close_epoch":
        closed = runtime.keyring.close_epoch()
        proof = "an old wrap was refused" if closed.old_wrap_refused else "AN OLD WRAP STILL OPENS"
        return f"root version {closed.root_version}, {closed.nodes} node(s) rewrapped; {proof}"
    names = job.views or runtime.views.registry.names()
    why = f"scheduled: {job.name}"
    built = runtime.views.build(names, rebuild=job.rebuild, who="scheduler", why=why)
    release = runtime.views.publish(built, who="scheduler", why=why)
    runtime.purge.log_publications()
    return f"release {release.release_id}: {', '.join(names)}"


def job_scheduler(runtime: Runtime) -> Scheduler:
    """The scheduler over a lake's jobs."""
    return Scheduler(
        runtime.home / "service" / "schedule.db",
        runtime.settings.jobs,
        lambda job: run_job(runtime, job),
        clock=runtime.lake.clock,
    )
