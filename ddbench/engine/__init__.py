"""Differentiable training, ordinary training, and how networks share a machine.

May import: contract, machine and errors.
Imported by: cli, testing, pipeline, protocols, unroll, networks, augment and kernels; plugins reach it through the last
four.
"""
