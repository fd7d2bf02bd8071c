"""Refusals of datasets as a person reads them, without a process for each."""

from pathlib import Path

from typer.testing import CliRunner

from ddbench.cli.app import app


def refusal(dataset: str, *more: str, where: Path) -> tuple[int, str]:
    """Try to run on a dataset, and return the exit code and the message on one line; fail where anything was run."""
    runs, boards = where / "runs", where / "leaderboards"
    words = ["run", "-m", "random_subset", "--ipc", "1", "--network", "linear", "--protocol", "knn/v1", "-d", dataset]
    done = CliRunner().invoke(app, [*words, *more, "--runs", str(runs), "--leaderboards", str(boards)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert not runs.exists() and not boards.exists()
    # A busy machine loads plugins slowly, which is said too.
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Warning: plugin")]
    assert len(lines) == 2, f"not one sentence and one hint: {lines}"
    return done.exit_code, " ".join(" ".join(lines).split())
