"""Slurm: one array of jobs, each of which carries out one run and is requeued where it was preempted."""

import shutil
import subprocess
import time
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

import ddbench
from ddbench import MissingPrerequisite, Work

POLL = 2.0
"""Seconds between two looks at the queue."""


class Command:
    """A command line that submitit carries out on a node; where the job is preempted, it is requeued."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)

    def __call__(self) -> int:
        """Carry out the command, and return its exit code."""
        self._process = subprocess.Popen(self.words)
        return self._process.wait()

    def checkpoint(self) -> Any:
        """Stop the command, which keeps a checkpoint, and return what is submitted anew."""
        import submitit

        self._process.terminate()
        self._process.wait()
        return submitit.helpers.DelayedSubmission(Command(self.words))


@ddbench.launcher
def slurm(
    work: Work,
    *,
    workers: Annotated[int, Field(ge=1, description="runs of the array at work at the same time")] = 8,
    cpus: Annotated[int, Field(ge=1, description="processors of each run")] = 1,
    gpus: Annotated[int, Field(ge=0, description="accelerators of each run")] = 0,
    minutes: Annotated[int, Field(ge=1, description="time limit of each job; a run that needs more is requeued")] = 240,
    memory_gb: Annotated[float | None, Field(gt=0, description="memory of each run; none: the partition's")] = None,
    partition: Annotated[str, Field(description="partition; empty for the cluster's usual one")] = "",
) -> None:
    """Carry out runs as one Slurm job array, in a folder that all nodes share."""
    if shutil.which("sbatch") is None:
        raise MissingPrerequisite("Slurm is not on this machine: there is no sbatch.", "Start it on a login node.")
    try:
        import submitit
    except ImportError as error:
        raise MissingPrerequisite("Slurm needs the package submitit.", "pip install 'ddbench[slurm]'") from error
    executor = submitit.SlurmExecutor(folder=work.folder / "slurm", max_num_timeout=100)
    more = {"gres": f"gpu:{gpus}"} if gpus else {}
    more |= {"mem": f"{int(1024 * memory_gb)}M"} if memory_gb else {}
    more |= {"partition": partition} if partition else {}
    executor.update_parameters(
        job_name="ddbench", array_parallelism=workers, cpus_per_task=cpus, time=minutes, ntasks_per_node=1, **more
    )
    with executor.batch():
        jobs = [executor.submit(Command(work.command([job]))) for job in work.jobs]
    array = str(jobs[0].job_id).split("_")[0]
    work.reporter.say(
        f"Slurm job {array}: {len(jobs)} runs, {workers} at the same time; its files are in {work.folder}"
    )
    try:
        while set(work.jobs) - work.ended() and _queued(array):
            time.sleep(POLL)
    except BaseException:
        # Ctrl-C ends the runs too: each keeps a checkpoint.
        subprocess.run(["scancel", "--signal=TERM", "--full", array], check=False)
        time.sleep(POLL)
        subprocess.run(["scancel", array], check=False)
        raise


def _queued(array: str) -> bool:
    """Return True while a job of the array waits or runs; accounting, which not every cluster has, is not asked."""
    answer = subprocess.run(["squeue", "-h", "-j", array], capture_output=True, text=True, check=False)
    return answer.returncode == 0 and bool(answer.stdout.strip())
