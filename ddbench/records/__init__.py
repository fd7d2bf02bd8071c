"""Records of runs, the leaderboards made from them, and their statistics.

May import: protocols, contract, machine and errors.
Imported by: pipeline, render and cli.
"""
