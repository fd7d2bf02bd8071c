"""Kill a run (SIGKILL) every 8 to 20 seconds and resume it until it ends: the bytes, and what the kills cost in time.

    python benchmarks/killed.py [--steps 4000] [--shortest 8] [--longest 20] [--seed 0]

Prints one JSON line: seconds undisturbed and killed, their ratio, the number of kills, and whether the bytes are equal.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def finish(
    folder: Path, steps: int, chance: random.Random | None, shortest: float, longest: float
) -> tuple[float, int]:
    """Run to the end, killed at random where `chance` is given; return wall-clock seconds and the number of kills."""
    ddbench = Path(sys.executable).with_name("ddbench")
    folder.mkdir(parents=True)
    started, kills = time.monotonic(), 0
    while True:
        begun = [path.parent for path in folder.glob("runs/*/spec.json")]
        new = ["run", "-m", "unrolled_gd", "--set", f"outer_steps={steps}", "--eval-networks", "5"]
        process = subprocess.Popen(
            [ddbench, *(["resume", begun[0]] if begun else new)],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            _, err = process.communicate(timeout=chance.uniform(shortest, longest) if chance else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        if process.returncode:
            raise SystemExit(err)
        return time.monotonic() - started, kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--shortest", type=float, default=8)
    parser.add_argument("--longest", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        limits = arguments.shortest, arguments.longest
        undisturbed, _ = finish(whole, arguments.steps, None, *limits)
        seconds, kills = finish(killed, arguments.steps, random.Random(arguments.seed), *limits)
        sets = [next(place.glob("runs/*/distilled.safetensors")).read_bytes() for place in (whole, killed)]
        results = [json.loads(next(place.glob("runs/*/result.json")).read_text()) for place in (whole, killed)]
    figures = {
        "undisturbed_seconds": round(undisturbed, 1),
        "killed_seconds": round(seconds, 1),
        "ratio": round(seconds / undisturbed, 2),
        "kills": kills,
        "same_bytes": sets[0] == sets[1],
        "same_scores": results[0]["scores"] == results[1]["scores"],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
