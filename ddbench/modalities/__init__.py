"""Kinds of data: how each is checked, converted and normalised.

May import: contract, machine and errors.
Imported by: pipeline, render and testing.
"""
