"""Plugins that ship with ddbench besides methods, declared as entry points like those of others.

May import: networks, decoders, modalities, and `ddbench` itself as every plugin does.
Imported by: nothing; plugins are loaded through entry points.
"""
