"""Find plugins, load each in isolation, and look names up.

May import: contract, machine and errors.
Imported by: cli, render, testing, scaffold and pipeline.
"""
