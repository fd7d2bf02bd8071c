"""The contract with plugins: hooks, components, tasks, sets, runs.

May import: `ddbench.machine` and `ddbench.errors`.
Imported by: every other part of ddbench; plugins reach it through `ddbench`.
"""
