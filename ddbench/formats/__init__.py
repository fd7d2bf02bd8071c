"""Distilled sets that others released, one module per family of files. No code in these files is run.

May import: contract, machine and errors.
Imported by: pipeline.
"""
