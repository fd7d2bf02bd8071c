"""Seconds and memory of the coreset rules, against the obvious numpy and what other packages offer; same choices.

    python benchmarks/coresets.py
    python benchmarks/coresets.py --images-per-class 10

Each case runs in a process of its own; memory is what the process grew by at its peak beyond the data. Ten classes of
60 000 x 784 and 50 000 x 512 random features, the same number of each.
"""

import argparse
import json
import subprocess
import sys
import time

SIZES = {"60000x784": (60_000, 784), "50000x512": (50_000, 512)}
RULES = {
    "herding": ("ours", "numpy"),
    "k_center": ("ours", "numpy"),
    "facility_location": ("ours", "numpy", "apricot"),
    "k_medoids": ("ours", "sklearn_extra"),
}


def chosen(rule: str, by: str, features, count: int) -> list[int]:
    """The indices of one class, by one implementation."""
    import numpy as np
    import torch
    from ddbench_coreset import selection
    from ddbench_coreset.geometry import _distances

    if by == "ours":
        if rule == "herding":
            return selection.herd(features, count).tolist()
        if rule == "k_center":
            first = int(torch.linalg.vector_norm(features - features.mean(0), dim=1).argmin())
            return selection.greedy_k_center(features, count, first).tolist()
        distances = _distances(features)
        if rule == "k_medoids":
            return selection.k_medoids(distances, count, 100).tolist()
        return selection.facility_location(distances.max() - distances, count).tolist()

    x = features.double().numpy()
    if by == "numpy" and rule == "herding":
        mean, total, found = x.mean(0), np.zeros(x.shape[1]), []
        for t in range(1, count + 1):
            gaps = np.linalg.norm(mean - (total + x) / t, axis=1)
            gaps[found] = np.inf
            found.append(int(gaps.argmin()))
            total = total + x[found[-1]]
        return found
    if by == "numpy" and rule == "k_center":
        found = [int(np.linalg.norm(x - x.mean(0), axis=1).argmin())]
        while len(found) < count:
            distances = np.stack([np.linalg.norm(x - x[i], axis=1) for i in found], 1)
            nearest = distances.min(1)
            nearest[found] = -1
            found.append(int(nearest.argmax()))
        return found
    squares = (x * x).sum(1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * x @ x.T, 0))
    if by == "sklearn_extra":
        from sklearn_extra.cluster import KMedoids

        return (
            KMedoids(count, metric="precomputed", method="alternate", init="build")
            .fit(distances)
            .medoid_indices_.tolist()
        )
    similarity = distances.max() - distances
    if by == "apricot":
        from apricot import FacilityLocationSelection

        return FacilityLocationSelection(count, metric="precomputed", optimizer="lazy").fit(similarity).ranking.tolist()
    covered, found = np.zeros(len(x)), []
    for _ in range(count):
        gains = np.maximum(similarity, covered).sum(1)
        gains[found] = -np.inf
        found.append(int(gains.argmax()))
        covered = np.maximum(covered, similarity[found[-1]])
    return found


def measure(rule: str, by: str, size: str, per_class: int) -> dict[str, float]:
    """Seconds for all ten classes and bytes beyond the data."""
    import resource

    import torch

    n, d = SIZES[size]
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    chosen(rule, by, features[:100], 2)  # imports and threads are there before the clock runs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, firsts = time.perf_counter(), []
    for label in range(10):
        firsts.append(chosen(rule, by, features[label * n // 10 : (label + 1) * n // 10], per_class))
    seconds = time.perf_counter() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {"seconds": seconds, "bytes": grown, "chosen": [sorted(one) for one in firsts]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images-per-class", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        rule, by, size, per_class = options.case
        print(json.dumps(measure(rule, by, size, int(per_class))))
        return
    print(f"{'rule':<18} {'features':<10} {'IPC':>3}  {'ours':>8} {'beyond data':>11}  against")
    for size in options.sizes:
        for rule, implementations in RULES.items():
            for per_class in options.images_per_class:
                found = {}
                for by in implementations:
                    command = [sys.executable, __file__, "--case", rule, by, size, str(per_class)]
                    done = subprocess.run(command, capture_output=True, text=True)
                    found[by] = json.loads(done.stdout) if done.returncode == 0 else None
                ours = found.pop("ours")
                assert ours is not None, "ours failed"
                beside = []
                for by, its in found.items():
                    if its is None:
                        beside.append(f"{by} is not installed")
                        continue
                    same = "the same choice" if its["chosen"] == ours["chosen"] else "another choice"
                    beside.append(f"{by} {its['seconds'] / ours['seconds']:.1f} times as long, {same}")
                cost = f"{ours['seconds']:>6.2f} s {ours['bytes'] / 1e6:>8.0f} MB"
                print(f"{rule:<18} {size:<10} {per_class:>3}  {cost}  {'; '.join(beside)}", flush=True)


if __name__ == "__main__":
    main()
