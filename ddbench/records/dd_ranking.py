"""Scores that compare sets across recipes: gains over random images, and losses to the full data.

All in fractions, as DD-Ranking defines them.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from ddbench.contract.metric import Metric
from ddbench.contract.spec import HARD
from ddbench.records.ranking import but_seed
from ddbench.records.result import BEST_CORESET, FULL_DATA, LABELLER, NO_ADAPTATION, TEACHER, RunResult

AUGMENTED = ("train-dsa/v1", "train/v1")
"""Protocols of one lineage, with augmentation and without."""
WEIGHT = 0.5
"""Weight of the gain over random images against the loss to the full data (w), and of augmentation (g)."""


def improvement_over_random(distilled: float, random: float) -> float:
    """Return IOR: accuracy of the distilled set less that of as many random real images under the same recipe."""
    return distilled - random


def hard_label_recovery(full: float, distilled: float) -> float:
    """Return HLR: accuracy of training on all the data less that on the set, both with hard labels; 0 is best."""
    return full - distilled


def label_robust_score(improvement: float, recovery: float, weight: float = WEIGHT) -> float:
    """Return LRS in [0, 1]: (e^alpha - e^-1) / (e - e^-1) with alpha = w IOR - (1 - w) HLR."""
    return _squashed(weight * improvement - (1 - weight) * recovery)


def augmentation_robust_score(with_augmentation: float, without: float, weight: float = WEIGHT) -> float:
    """Return ARS in [0, 1]: the same with beta = g (gain over random with augmentation) + (1 - g) (gain without)."""
    return _squashed(weight * with_augmentation + (1 - weight) * without)


def _squashed(value: float) -> float:
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))


def fairness(metric: Metric, mean: float, companions: Mapping[str, float], *, hard: bool) -> dict[str, float]:
    """Return IOR, HLR and LRS of a metric that the full data bounds, as far as companions and label regime allow.

    IOR is over the one baseline that records are shown beside, random images; a second baseline would leave it open.
    Beside stored soft labels it is random images with soft labels, where they were scored.
    HLR is of `hard` labels.
    """
    scores: dict[str, float] = {}
    if not metric.bounded_by_full_data:
        return scores
    harness = (FULL_DATA, NO_ADAPTATION, LABELLER)
    names = [name for name in companions if name not in harness and not name.startswith(BEST_CORESET)]
    baselines = [companions[name] for name in names if name + TEACHER not in companions]
    if len(baselines) == 1:
        scores["IOR"] = improvement_over_random(mean, baselines[0])
    if FULL_DATA in companions and hard:
        scores["HLR"] = hard_label_recovery(companions[FULL_DATA], mean)
    if len(scores) == 2:
        scores["LRS"] = label_robust_score(scores["IOR"], scores["HLR"])
    return scores


def fairness_of_line(line: Sequence[RunResult], records: Collection[RunResult]) -> dict[str, float]:
    """Return the mean of each fairness score over records that differ in their seed, as far as all of them have it."""
    each = [fairness_of(record, records) for record in line]
    shared = [name for name in each[0] if all(name in scores for scores in each)]
    return {name: math.fsum(scores[name] for scores in each) / len(each) for name in shared}


def fairness_of(record: RunResult, records: Iterable[RunResult] = ()) -> dict[str, float]:
    """Return the fairness scores of a record; ARS where `records` hold the run under both of `AUGMENTED`."""
    means = {name: score.mean for name, score in record.companions.items()}
    hard = record.artifact is not None and record.artifact.label_regime == HARD
    scores = fairness(record.metric, record.scores[record.primary].mean, means, hard=hard)
    if record.settings.protocol not in AUGMENTED:
        return scores
    # The settings that differ most are compared first: a leaderboard holds hundreds of records.
    alike = [r for r in records if r.settings.protocol in AUGMENTED and r.settings.method == record.settings.method]
    pair = {r.settings.protocol: r for r in alike if _but_protocol(r) == _but_protocol(record)}
    if set(AUGMENTED) <= pair.keys():
        with_augmentation, without = (fairness_of(pair[protocol]).get("IOR") for protocol in AUGMENTED)
        if with_augmentation is not None and without is not None:
            scores["ARS"] = augmentation_robust_score(with_augmentation, without)
    return scores


def _but_protocol(record: RunResult) -> tuple[object, ...]:
    return record.settings.seed, but_seed(record, leave_out=("protocol", "protocol_hash", "n"))
