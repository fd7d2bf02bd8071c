"""Launchers for clusters: Slurm by submitit, and Ray."""

import ddbench
from ddbench_launchers.ray import ray
from ddbench_launchers.slurm import slurm


@ddbench.hookimpl
def ddbench_launchers() -> list[object]:
    """Return the launchers."""
    return [ray, slurm]
