"""The contract with plugins: hooks, components, tasks, sets, runs.

May import: machine and errors.
Imported by: cli, testing, scaffold, render, pipeline, formats, records, protocols, discovery, modalities, networks
and engine; plugins reach it through `ddbench`.
"""
