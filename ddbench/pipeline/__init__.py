"""From a spec to a record: plan, prepare, distil, score, verify.

May import: formats, records, protocols, discovery, modalities, engine, contract, machine and errors.
Imported by: cli and testing.
"""
