"""`ddbench` in a process of its own, forked from one that has torch loaded: what takes most of a command's time."""

import math
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "torch",
        "scipy.stats",
        "sklearn.datasets",
        "matplotlib.backends.backend_agg",
        "ddbench.cli",
        "ddbench.pipeline.runner",
        "tests.forked",
    ]
)
TIMEOUT = 120
SMALL = 1000
"""Largest number of weights of a network that tests train on the full data without being asked."""


def forecast(network: Any, start: object, examples: object, recipe: object, networks: int) -> float:
    """Return a training time in seconds that does not depend on the speed of the machine."""
    return 1.0 if sum(weight.numel() for weight in network.parameters()) <= SMALL else math.inf


def forked(
    arguments: list[str], cwd: Path, environment: dict[str, str], out: Path, err: Path, file_limit: int | None = None
) -> int:
    """Carry out a command line, its stdout and stderr in files, and return its exit code.

    `file_limit` is the largest size in bytes that a file may have, as on a full disk.
    """
    process = _SERVER.Process(target=_command, args=(arguments, cwd, environment, out, err, file_limit))
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"ddbench {' '.join(arguments)} took more than {TIMEOUT} s")
    assert process.exitcode is not None
    return process.exitcode


def _command(
    arguments: list[str], cwd: Path, environment: dict[str, str], out: Path, err: Path, file_limit: int | None = None
) -> None:
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["ddbench", *arguments]
    # As in a new process: the folder of the script comes first, and none is there for pytest alone.
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).parent)]
    sys.path[1:1] = [
        path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", *sys.path)
    ]
    if file_limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    from ddbench.cli import main
    from ddbench.pipeline import pools

    pools.forecast = forecast
    main()
