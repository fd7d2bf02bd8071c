"""Records beside the leaderboard."""

from pathlib import Path

from ddbench.contract.observer import Reporter
from ddbench.records.result import RunFolder, RunResult


def ensure(leaderboards: Path, folder: RunFolder, result: RunResult, reporter: Reporter) -> None:
    """Add the record of a finished run where it is missing."""
