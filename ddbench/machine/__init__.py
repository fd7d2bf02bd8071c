"""Facts about this machine and work with it: versions, devices, memory, seeds, folders and files.

May import: errors.
Imported by: cli, testing, scaffold, render, pipeline, formats, records, protocols, discovery, modalities, networks,
cache, engine and contract.
"""
