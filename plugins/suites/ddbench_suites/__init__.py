"""Suites that come with ddbench: a minute, an hour, and the tables of the literature."""

from pathlib import Path

import ddbench


@ddbench.hookimpl
def ddbench_suites() -> list[Path]:
    """Return the suites in `suites/`."""
    return sorted((Path(__file__).parent / "suites").glob("*.toml"))
