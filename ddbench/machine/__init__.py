"""Facts about this machine and work with it: versions, devices, memory, seeds, folders and files.

May import: errors only.
Imported by: every other sub-package.
"""
