"""Progress, tables, pictures and pages for people.

May import: records, contract and machine.
Imported by: cli.
"""
