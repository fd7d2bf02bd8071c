"""The cache for authors of methods: results that cost time to compute, kept for the next run."""

from ddbench.machine.files import atomic_write, sha256
from ddbench.machine.folders import cache_dir
from ddbench.machine.seeds import derive_seed

__all__ = ["atomic_write", "cache_dir", "derive_seed", "sha256"]
