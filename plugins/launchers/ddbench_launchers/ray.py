"""Ray: one task for each run; a task whose node is lost is retried, and its run goes on from the checkpoint."""

import subprocess
from typing import Annotated

from pydantic import Field

import ddbench
from ddbench import MissingPrerequisite, Work

RETRIES = 5
"""Times that a task is started anew after its node was lost."""


@ddbench.launcher
def ray(
    work: Work,
    *,
    address: Annotated[str, Field(description="address of the cluster, or auto; empty: one on this machine")] = "",
    cpus: Annotated[float, Field(gt=0, description="processors of each run")] = 1,
    gpus: Annotated[float, Field(ge=0, description="accelerators of each run")] = 0,
) -> None:
    """Carry out runs as tasks of a Ray cluster whose nodes share the folder of the runs."""
    try:
        import ray as engine
    except ImportError as error:
        raise MissingPrerequisite("this launcher needs the package ray.", "pip install 'ddbench[ray]'") from error
    try:
        engine.init(address=address or None, log_to_driver=False, configure_logging=False)
    except ConnectionError as error:
        raise MissingPrerequisite(f"there is no Ray cluster at {address}.", "Start one: ray start --head") from error
    try:
        carry_out = engine.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_carry_out)
        waiting = [carry_out.remote(work.command([job])) for job in work.jobs]
        while waiting:
            _, waiting = engine.wait(waiting, num_returns=len(waiting), timeout=1)
    finally:
        engine.shutdown()


def _carry_out(words: list[str]) -> int:
    return subprocess.run(words, check=False).returncode
