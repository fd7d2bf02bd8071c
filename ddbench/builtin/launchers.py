"""The launcher that comes with ddbench: worker processes on this machine."""

import os
import subprocess
from typing import Annotated

from pydantic import Field

import ddbench
from ddbench import Work


@ddbench.launcher
def local(
    work: Work,
    *,
    workers: Annotated[int, Field(ge=1, description="processes at work at the same time")] = 2,
) -> None:
    """Carry out runs in several processes on this machine, which share out its threads."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = int(os.environ.get("OMP_NUM_THREADS") or processors)
    count = min(workers, len(work.jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, max(threads, processors) // count))}
    processes = []
    try:
        with open(work.folder / "workers.log", "ab") as log:
            for first in range(count):
                # Each begins at another job; a job that another process has claimed is left to it.
                jobs = [*work.jobs[first::count], *(job for i, job in enumerate(work.jobs) if i % count != first)]
                processes.append(subprocess.Popen(work.command(jobs), env=environment, stdout=log, stderr=log))
            for process in processes:
                process.wait()
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


@ddbench.hookimpl
def ddbench_launchers() -> list[object]:
    """Return the launcher."""
    return [local]
