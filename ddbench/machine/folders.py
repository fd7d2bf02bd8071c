"""Folders on this machine: datasets, and computed results that the next run can use."""

import os
from pathlib import Path

import platformdirs


def data_dir() -> Path:
    """Where datasets are looked for and downloaded to: `DDBENCH_DATA`, or the platform's cache folder."""
    chosen = os.environ.get("DDBENCH_DATA")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("ddbench") / "data"


def cache_dir() -> Path:
    """Where results that cost time to compute are kept for the next run (`DDBENCH_CACHE` moves it)."""
    chosen = os.environ.get("DDBENCH_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("ddbench") / "computed"
