"""Folders on this machine: datasets, and results kept for later runs."""

import os
from pathlib import Path

import platformdirs


def data_dir() -> Path:
    """Return the folder of datasets: `DDBENCH_DATA`, or a folder in the platform's cache."""
    path = os.environ.get("DDBENCH_DATA")
    return Path(path).expanduser() if path else platformdirs.user_cache_path("ddbench") / "data"


def cache_dir() -> Path:
    """Return the folder of computed results that later runs reuse: `DDBENCH_CACHE`, or one in the platform's cache."""
    path = os.environ.get("DDBENCH_CACHE")
    return Path(path).expanduser() if path else platformdirs.user_cache_path("ddbench") / "computed"
