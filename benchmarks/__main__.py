"""Measure ddbench against named baselines on this machine.

    python -m benchmarks --list
    python -m benchmarks                    every figure that this machine can give
    python -m benchmarks unroll-lenet dm    two of them
    python -m benchmarks --save             and keep them in benchmarks/results, for the page of the documentation

A figure is a ratio: seconds of the baseline by seconds of ddbench. Each case runs for about a minute on two cores.
"""

import argparse
import json
import re
from pathlib import Path

import pydantic

from benchmarks import evaluate, matching, pretrain, stacks, trajectories, unroll
from benchmarks.turns import Case, Figure, measure
from ddbench.machine.environment import describe, resolve_device

CASES: dict[str, Case] = {
    **unroll.CASES, **evaluate.CASES, **pretrain.CASES, **matching.CASES, **trajectories.CASES, **stacks.CASES,
}  # fmt: skip
RESULTS = Path(__file__).parent / "results"


class Results(pydantic.BaseModel):
    """The figures of one machine, as `describe` describes it."""

    machine: dict[str, str]
    figures: dict[str, Figure] = {}


def path_of(machine: dict[str, str]) -> Path:
    """Return the file that keeps the figures of a machine."""
    named = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    slug = re.sub(r"[^a-z0-9]+", "-", named.lower()).strip("-")
    return RESULTS / f"{slug}-{machine['threads']}-threads.json"


def line(name: str, figure: Figure, before: Figure | None) -> str:
    """Return a figure as one line, beside the committed one."""
    goal = f", goal {figure.goal:g}" if figure.goal else ""
    old = f", committed {before.ratio:.2f}" if before else ""
    memory = " against ".join(f"{figure.megabytes[side]:.0f} MB" for side in ("ddbench", "baseline"))
    same = "" if figure.difference is None else f"; results differ by {figure.difference:.0e}"
    spread = f"{figure.low:.2f} to {figure.high:.2f} in {figure.turns} turns"
    return f"{name:<20} {figure.ratio:5.2f}x  ({spread}{goal}{old}); {memory}{same}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="cases; all when left out")
    parser.add_argument("--turns", type=int, default=3, help="turns of each side that count")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end instead of lines")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in CASES]
    if unknown:
        parser.error(f"there is no case {unknown[0]!r}; the cases are {', '.join(CASES)}")
    if arguments.list:
        for name, case in CASES.items():
            print(f"{name:<20} {case.what}\n{'':<18} against {case.baseline}")
        return
    device = resolve_device("auto")
    machine = describe(device)
    path = path_of(machine)
    committed = Results.model_validate_json(path.read_text()) if path.exists() else Results(machine=machine)
    results = Results(machine=machine)
    if not arguments.json:
        print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    for name, case in CASES.items():
        if (arguments.names and name not in arguments.names) or (case.accelerator and device.type == "cpu"):
            continue
        results.figures[name] = measure(case, arguments.turns)
        if not arguments.json:
            print(line(name, results.figures[name], committed.figures.get(name)), flush=True)
    if arguments.json:
        print(json.dumps(results.model_dump(mode="json"), indent=2))
    if arguments.save:
        kept = Results(machine=machine, figures={**committed.figures, **results.figures})
        path.parent.mkdir(exist_ok=True)
        path.write_text(kept.model_dump_json(indent=2) + "\n")


if __name__ == "__main__":
    main()
