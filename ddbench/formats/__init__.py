"""Files in the layouts of others: sets that they released, one module per family, and `writers` for their code.

No code in released files is run.

May import: modalities, contract, machine and errors.
Imported by: cli and pipeline.
"""
