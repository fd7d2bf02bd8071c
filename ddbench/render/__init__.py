"""Progress, tables, pictures and pages for people.

May import: records, discovery, contract, machine and errors.
Imported by: cli.
"""
