"""krr/v1: kernel ridge regression on the distilled set (Nguyen et al. 2021, arXiv 2011.00050; FRePo, 2206.00719)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddbench.contract.observer import Pace, Reporter
from ddbench.contract.sets import DistilledSet
from ddbench.contract.task import Side
from ddbench.engine.example_weights import one_hot
from ddbench.engine.kernels import BIAS_STD, WEIGHT_STD, predictions, relu_ntk, ridge_coefficients
from ddbench.protocols.base import Evaluation, Setting, collect, finite

DEPTH, RIDGE = 1, 1e-6


@dataclass(frozen=True)
class Krr:
    """Kernel ridge regression with the tangent kernel of a ReLU network of one hidden layer and infinite width.

    Inputs are normalised; the ridge is 1e-6 of the kernel's mean diagonal. Targets are the labels, minus 1 / classes
    where they are classes or distributions. The predictions are measured as logits are. In float64, without a choice.
    No network takes part, so one set has one value; "before" is the prediction 0.
    """

    name: str = "krr/v1"
    summary: str = "kernel ridge regression with the tangent kernel of an infinitely wide network"
    teacher: bool = False
    operations: tuple[str, ...] = ()
    stored: bool = False
    rate_of_set: bool = False
    ignores: frozenset[str] = frozenset({"steps", "epochs", "eval_network", "eval_init"})

    @property
    def definition(self) -> dict[str, Any]:
        """See `Protocol.definition`."""
        kernel = {"kernel": "NTK, fully connected ReLU", "depth": DEPTH, "weight_std": WEIGHT_STD, "bias_std": BIAS_STD}
        return {**kernel, "ridge": RIDGE, "targets": "minus 1 / classes"}

    def networks_needed(self, networks: int) -> dict[Side, int]:
        """See `Protocol.networks_needed`."""
        return {}

    def evaluate(self, sets: Sequence[DistilledSet], setting: Setting, networks: int, reporter: Reporter) -> Evaluation:
        """See `Protocol.evaluate`. Raises `DdbenchError` where the kernel cannot be inverted."""
        objective, test = setting.objective, setting.test
        classes, pace = len(test.info.classes), Pace()
        scores: dict[str, list[float]] = {}
        before: dict[str, list[float]] = {}
        constant = objective.measure(torch.zeros(len(test), classes, device=test.labels.device), test.labels)
        for count, distilled in enumerate(sets, 1):
            values = objective.measure(predict(distilled, test.inputs, classes).float(), test.labels)
            collect(scores, values)
            collect(before, constant)
            pace.tick()
            primary = objective.primary
            reporter.progress(count, len(sets), {primary: values[primary]}, pace.left(len(sets) - count))
        return Evaluation(finite(scores, setting), finite(before, setting), "nothing")


def predict(distilled: DistilledSet, inputs: Float[Tensor, " n *sample"], classes: int) -> Float[Tensor, "n classes"]:
    """Return the predictions of the regression on a set, in float64.

    Raises `DdbenchError` where the kernel cannot be inverted.
    """
    images = distilled.inputs.flatten(0, 1).flatten(1).double()
    targets = one_hot(distilled.targets().flatten(0, 1), classes).double()
    if distilled.kind != "regression":
        targets = targets - 1 / classes
    weights = distilled.relative_weights()
    if weights is not None:
        weights = weights.flatten().double()
        images, targets, weights = (part[weights > 0] for part in (images, targets, weights))
    coefficients = ridge_coefficients(relu_ntk(images, depth=DEPTH), targets, RIDGE, weights)
    return predictions(inputs.flatten(1), images, coefficients, DEPTH)


KRR_V1 = Krr()
