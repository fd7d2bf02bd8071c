"""Attacks in records: budgets, and the metrics that a later score of the same set adds to its record."""

from typing import TYPE_CHECKING

import pydantic

from ddbench.contract.attack import Attack

if TYPE_CHECKING:
    from ddbench.records.result import RunResult


class AttackRecord(pydantic.BaseModel):
    """An attack that the networks were scored under.

    Attributes:
        name: name of the attack; the metric that ranks has it at the end of its name.
        epsilon: largest change of a pixel (L-infinity), in raw pixels in [0, 1].
        step_size: change of a pixel in a step.
        steps: number of steps.
        images: test images that were attacked, as many of each class.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    name: str
    epsilon: float
    step_size: float
    steps: int
    images: int

    @classmethod
    def of(cls, attack: Attack, images: int) -> "AttackRecord":
        """Return the record of an attack on so many images."""
        return cls(**vars(attack), images=images)

    def __str__(self) -> str:
        budget = Attack(self.name, self.epsilon, self.step_size, self.steps)
        return f"{budget}, on {self.images} images"


def with_attacks_of(record: "RunResult", other: "RunResult") -> "RunResult":
    """Return `record` with the attacks of `other` that it lacks, and with their metrics, those of companions too.

    It is returned as it is where `other` has none to add, or where the two differ in a value of a network in the
    metric that ranks: the attacked networks are then not those of the record.
    """
    names = {attack.name for attack in record.attacks}
    new = [attack for attack in other.attacks if attack.name not in names]
    if not new or record.scores[record.primary].values != other.scores[record.primary].values:
        return record
    metrics = [other.metric_of(f"{record.primary}_{attack.name}") for attack in new]
    added = [metric.name for metric in metrics]
    companions = {
        name: companion.model_copy(update={"metrics": {**companion.metrics, **_chosen(other, name, added)}})
        for name, companion in record.companions.items()
    }
    attacks = (*record.attacks, *new)
    return record.model_copy(
        update={
            "settings": record.settings.model_copy(update={"attack": tuple(attack.name for attack in attacks)}),
            "metrics": (*record.metrics, *metrics),
            "scores": {**record.scores, **{name: other.scores[name] for name in added}},
            "companions": companions,
            "attacks": attacks,
        }
    )


def _chosen(other: "RunResult", companion: str, metrics: list[str]) -> dict[str, float]:
    if companion not in other.companions:
        return {}
    means = other.companions[companion].metrics
    return {name: means[name] for name in metrics if name in means}
