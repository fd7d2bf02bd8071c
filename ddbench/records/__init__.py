"""Records of runs, the leaderboards made from them, and their statistics.

May import: protocols, contract, machine and errors.
Imported by: cli, testing, render and pipeline.
"""
