"""Seconds and memory of the coreset rules, compared with plain numpy and other packages; same choices.

    python benchmarks/coresets.py
    python benchmarks/coresets.py --images-per-class 10

Each case runs in a process of its own; memory is the peak of the process beyond the data. Ten classes of
60 000 x 784 and 50 000 x 512 random features, the same number of each.
"""

import argparse
import json
import subprocess
import sys
import time

SIZES = {"60000x784": (60_000, 784), "50000x512": (50_000, 512)}
RULES = {
    "herding": ("ddbench", "numpy"),
    "k_center": ("ddbench", "numpy"),
    "facility_location": ("ddbench", "numpy", "apricot"),
    "k_medoids": ("ddbench", "sklearn_extra"),
}


def choose(rule: str, by: str, features, count: int) -> list[int]:
    """Return the indices chosen within one class by one implementation."""
    import numpy as np
    import torch
    from ddbench_coreset import selection
    from ddbench_coreset.geometry import pairwise_distances

    if by == "ddbench":
        if rule == "herding":
            return selection.herd(features, count).tolist()
        if rule == "k_center":
            first = int(torch.linalg.vector_norm(features - features.mean(0), dim=1).argmin())
            return selection.greedy_k_center(features, count, first).tolist()
        distances = pairwise_distances(features)
        if rule == "k_medoids":
            return selection.k_medoids(distances, count, 100).tolist()
        return selection.facility_location(distances.max() - distances, count).tolist()

    x = features.double().numpy()
    if by == "numpy" and rule == "herding":
        mean, total, indices = x.mean(0), np.zeros(x.shape[1]), []
        for t in range(1, count + 1):
            gaps = np.linalg.norm(mean - (total + x) / t, axis=1)
            gaps[indices] = np.inf
            indices.append(int(gaps.argmin()))
            total = total + x[indices[-1]]
        return indices
    if by == "numpy" and rule == "k_center":
        indices = [int(np.linalg.norm(x - x.mean(0), axis=1).argmin())]
        while len(indices) < count:
            distances = np.stack([np.linalg.norm(x - x[i], axis=1) for i in indices], 1)
            nearest = distances.min(1)
            nearest[indices] = -1
            indices.append(int(nearest.argmax()))
        return indices
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
    covered, indices = np.zeros(len(x)), []
    for _ in range(count):
        gains = np.maximum(similarity, covered).sum(1)
        gains[indices] = -np.inf
        indices.append(int(gains.argmax()))
        covered = np.maximum(covered, similarity[indices[-1]])
    return indices


def measure(rule: str, by: str, size: str, per_class: int) -> dict[str, float]:
    """Return the seconds for all ten classes, the bytes beyond the data and the choices."""
    import resource

    import torch

    n, d = SIZES[size]
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    choose(rule, by, features[:100], 2)  # loads libraries and starts threads before the clock runs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, choices = time.perf_counter(), []
    for label in range(10):
        choices.append(choose(rule, by, features[label * n // 10 : (label + 1) * n // 10], per_class))
    seconds = time.perf_counter() - started
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {"seconds": seconds, "bytes": peak, "chosen": [sorted(choice) for choice in choices]}


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
    print(f"{'rule':<18} {'features':<10} {'IPC':>3}  {'ddbench':>8} {'beyond data':>11}  others")
    for size in options.sizes:
        for rule, implementations in RULES.items():
            for per_class in options.images_per_class:
                results = {}
                for by in implementations:
                    command = [sys.executable, __file__, "--case", rule, by, size, str(per_class)]
                    done = subprocess.run(command, capture_output=True, text=True)
                    results[by] = json.loads(done.stdout) if done.returncode == 0 else None
                reference = results.pop("ddbench")
                assert reference is not None, "ddbench failed"
                others = []
                for by, result in results.items():
                    if result is None:
                        others.append(f"{by} is not installed")
                        continue
                    same = "the same choice" if result["chosen"] == reference["chosen"] else "another choice"
                    others.append(f"{by} {result['seconds'] / reference['seconds']:.1f} times as long, {same}")
                cost = f"{reference['seconds']:>6.2f} s {reference['bytes'] / 1e6:>8.0f} MB"
                print(f"{rule:<18} {size:<10} {per_class:>3}  {cost}  {'; '.join(others)}", flush=True)


if __name__ == "__main__":
    main()
