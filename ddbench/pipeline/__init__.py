"""From a spec to a record: plan, prepare, distil, score, verify.

May import: formats, records, protocols, discovery, engine, contract and machine.
Imported by: cli, render, testing and scaffold.
"""
