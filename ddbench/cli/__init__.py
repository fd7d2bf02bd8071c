"""The command line. Nothing heavy is imported before a command needs it.

May import: testing, scaffold, render, pipeline, formats, records, protocols, discovery, engine, contract, machine and
errors.
Imported by: nothing.
"""

from ddbench.cli.app import app, main

__all__ = ["app", "main"]
