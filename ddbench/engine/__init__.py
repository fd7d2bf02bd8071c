"""Differentiable training, ordinary training, and how networks share a machine.

May import: contract, machine and errors.
Imported by: cli, testing, pipeline, protocols, unroll and networks; plugins reach it through the last two.
"""
