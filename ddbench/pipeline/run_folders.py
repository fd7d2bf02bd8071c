"""The folder of a run: made anew, and shared by the processes of a run that several carry out."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from ddbench.contract.observer import Reporter
from ddbench.contract.spec import Settings
from ddbench.errors import DdbenchError, UsageError
from ddbench.machine import processes
from ddbench.machine.files import explained_os_errors
from ddbench.records.result import RunFolder


def new_folder(runs: Path, settings: Settings, reporter: Reporter) -> RunFolder:
    """Make a fresh folder for the run; earlier runs of the same spec keep theirs."""
    for number in range(1, 10_000):
        path = runs / (settings.run_id if number == 1 else f"{settings.run_id}-{number}")
        with explained_os_errors(path):
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                if not path.is_dir():
                    raise
                earlier = RunFolder(path)
                try:
                    result = earlier.read_result()
                except UsageError as error:
                    reporter.say(f"An earlier run of this spec keeps its folder: {error.message}")
                    continue
                if earlier.checkpoint.exists() and (result is None or result.status == "interrupted"):
                    reporter.say(f"An unfinished run of this spec is in {path}: ddbench resume {path}")
                continue
        folder = RunFolder(path)
        folder.write_spec(settings)
        return folder
    raise DdbenchError(f"{runs} holds 10 000 runs of this spec.", "Name another folder with --runs.")


def check_processes(settings: Settings) -> None:
    """Raise `UsageError` for a run that several processes cannot share."""
    limits = {"a time limit": settings.time_limit, "a pass limit": settings.pass_limit}
    for limit, value in limits.items():
        if value is not None and processes.count() > 1:
            raise UsageError(
                f"{limit} does not go with several processes: their clocks and counts would part them.",
                "Bound the outer steps with --step-limit instead, or start one process.",
            )


def places(make: Callable[[], RunFolder], leaderboards: Path) -> tuple[RunFolder, Path]:
    """Return the folders of the run and of the leaderboards; processes behind the first get copies of their own."""
    if processes.count() == 1:
        return make(), leaderboards
    [folder, *_] = processes.agreed(lambda: make().path.resolve() if processes.rank() == 0 else None)
    assert folder is not None

    def copy() -> Path:
        if processes.rank() == 0:
            return folder
        own = Path(tempfile.mkdtemp(prefix="ddbench-process-"))
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        shutil.copytree(folder, own / folder.name, ignore=shutil.ignore_patterns(".*"))
        return own / folder.name

    # Process 0 goes on when the others have their copies.
    own = processes.agreed(copy)[processes.rank()]
    return RunFolder(own), leaderboards if processes.rank() == 0 else own.parent / "leaderboards"
