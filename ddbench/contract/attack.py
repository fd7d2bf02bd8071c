"""The attacks on test images that scored networks can be put under: names and budgets."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from ddbench.contract.metric import Metric

AttackName = Literal["fgsm", "pgd"]
"""Names of `ATTACKS`."""


@dataclass(frozen=True)
class Attack:
    """An untargeted attack with a bound on the change of every pixel (L-infinity), from the image itself.

    Attributes:
        name: name of the attack.
        epsilon: largest change of a pixel, in raw pixels in [0, 1].
        step_size: change of a pixel in a step.
        steps: number of steps.
    """

    name: str
    epsilon: float
    step_size: float
    steps: int

    def __str__(self) -> str:
        epsilon, step = (Fraction(value).limit_denominator(255) for value in (self.epsilon, self.step_size))
        return f"{self.name}: {epsilon} a pixel" + (f", {self.steps} steps of {step}" if self.steps > 1 else "")

    def metric(self, primary: Metric) -> Metric:
        """Return the metric that the attack adds: the one that ranks, on attacked images."""
        name = f"{primary.name}_{self.name}"
        return replace(primary, name=name, beside=True, bounded_by_full_data=False, threshold=None)


ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        Attack("fgsm", epsilon=8 / 255, step_size=8 / 255, steps=1),
        Attack("pgd", epsilon=8 / 255, step_size=2 / 255, steps=10),
    )
}
"""The attacks by name: FGSM (Goodfellow et al. 2015, Section 4) and PGD (Madry et al. 2018, Section 2.1).

The budgets are those of BEARD (Zhou et al. 2024; `Code/eva_utils.py` of its repository, whose step reads 2/225), and
the largest of three in DD-RobustBench (Wu et al. 2024; `configs/params.yaml`).
"""


def attacks_named(names: Iterable[str]) -> tuple[Attack, ...]:
    """Return the attacks of these names."""
    return tuple(ATTACKS[name] for name in names)
