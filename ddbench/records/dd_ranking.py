"""Scores that compare sets across recipes: what distillation gains over random images and loses to the full data.

All in fractions, as DD-Ranking defines them.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from ddbench.records.leaderboard import Row
from ddbench.records.ranking import but_seed
from ddbench.records.result import BEST_CORESET, FULL_DATA, NO_ADAPTATION

AUGMENTED = ("train-dsa/v1", "train/v1")
"""The protocols with augmentation and without, otherwise of one lineage."""
WEIGHT = 0.5
"""Of the gain over random images against the loss to the full data (w), and of training with augmentation (g)."""


def improvement_over_random(distilled: float, random: float) -> float:
    """IOR: accuracy of the distilled set less that of as many random real images under the same recipe."""
    return distilled - random


def hard_label_recovery(full: float, distilled: float) -> float:
    """HLR: accuracy of training on all the data less that on the distilled set, both with hard labels; 0 is best."""
    return full - distilled


def label_robust_score(improvement: float, recovery: float, weight: float = WEIGHT) -> float:
    """LRS in [0, 1]: alpha = w IOR - (1 - w) HLR, of which (e^alpha - e^-1) / (e - e^-1)."""
    return _squashed(weight * improvement - (1 - weight) * recovery)


def augmentation_robust_score(with_augmentation: float, without: float, weight: float = WEIGHT) -> float:
    """ARS in [0, 1]: the same of beta = g (gain over random with augmentation) + (1 - g) (gain without)."""
    return _squashed(weight * with_augmentation + (1 - weight) * without)


def _squashed(value: float) -> float:
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))


def fairness(metric: str, mean: float, companions: Mapping[str, float], *, hard: bool) -> dict[str, float]:
    """IOR, HLR and LRS of an accuracy, as far as the companions and its label regime (HLR is of hard labels) allow.

    IOR is over the one baseline that rows are shown beside, random images; a second baseline would leave it open.
    """
    found: dict[str, float] = {}
    if metric != "accuracy":
        return found
    own = (FULL_DATA, NO_ADAPTATION)
    baselines = [v for name, v in companions.items() if name not in own and not name.startswith(BEST_CORESET)]
    if len(baselines) == 1:
        found["IOR"] = improvement_over_random(mean, baselines[0])
    if FULL_DATA in companions and hard:
        found["HLR"] = hard_label_recovery(companions[FULL_DATA], mean)
    if len(found) == 2:
        found["LRS"] = label_robust_score(found["IOR"], found["HLR"])
    return found


def of_line(line: Sequence[Row], rows: Collection[Row]) -> dict[str, float]:
    """The mean of each fairness score over rows that differ in their seed, as far as all of them have it."""
    each = [of_row(row, rows) for row in line]
    shared = [name for name in each[0] if all(name in found for found in each)]
    return {name: math.fsum(found[name] for found in each) / len(each) for name in shared}


def of_row(row: Row, rows: Iterable[Row]) -> dict[str, float]:
    """The fairness scores of a row; ARS where `rows` hold the same run under train/v1 and under train-dsa/v1."""
    means = {name: figures["mean"] for name, figures in row.companion_scores().items()}
    found = fairness(row.metric, row.mean, means, hard=row.label_regime == "hard")
    own = (row.seed, but_seed(row, "protocol", "n"))
    pair = {r.protocol: r for r in rows if (r.seed, but_seed(r, "protocol", "n")) == own}
    if row.protocol in AUGMENTED and set(AUGMENTED) <= pair.keys():
        with_augmentation, without = (of_row(pair[protocol], ()).get("IOR") for protocol in AUGMENTED)
        if with_augmentation is not None and without is not None:
            found["ARS"] = augmentation_robust_score(with_augmentation, without)
    return found
