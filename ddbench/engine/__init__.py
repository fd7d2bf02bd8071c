"""Differentiable training, ordinary training, and how networks share a machine.

May import: contract, machine and errors.
Imported by: protocols, pipeline and testing; plugins reach it through `ddbench.unroll` and `ddbench.networks`.
"""
