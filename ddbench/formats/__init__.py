"""Distilled sets that others released, a module for each family of files.

May import: contract, machine and errors.
Imported by: pipeline and cli.
"""
