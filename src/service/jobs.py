"""What a scheduled job does: builds and publishes views."""

from __future__ import annotations

from service.runtime import Runtime
from service.scheduler import Scheduler
from service.settings import Job


def run_job(runtime: Runtime, job: Job) -> str:
    """Builds and publishes a job's views; returns a sentence about it."""
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
