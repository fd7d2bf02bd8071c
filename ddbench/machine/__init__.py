"""This machine: versions, devices, seeds, folders and files.

May import: errors alone.
Imported by: every other part of ddbench.
"""
