"""The task of a method: training data, an objective, networks to distil for, and a budget."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from ddbench.contract.examples import DatasetInfo, ExampleSet
from ddbench.contract.experts import Experts, Teachers, no_experts, no_teachers
from ddbench.contract.inits import InitDistribution, InitRequest, Supplier, checked_state
from ddbench.contract.inits import Side as Side
from ddbench.contract.metric import Metric
from ddbench.contract.state import State
from ddbench.errors import UsageError


@dataclass(frozen=True)
class Budget:
    """The amount of data that a method may return.

    Attributes:
        images_per_class: images per class (IPC), over all steps together.
        steps: gradient steps with a batch of images each.
        epochs: passes over the steps; an evaluation takes at most `epochs * steps` gradient steps.
        bytes: bytes of every tensor that the set stores; None for no limit beside the number of images.
    """

    images_per_class: int
    steps: int
    epochs: int
    bytes: int | None = None

    @property
    def total_steps(self) -> int:
        """Gradient steps in all, T = epochs * steps."""
        return self.epochs * self.steps


Loss = Callable[[Tensor, Tensor], Tensor]
"""`(logits [batch, classes], labels [batch] or soft [batch, classes])` to a scalar, the mean over the batch."""


@dataclass(frozen=True)
class CrossEntropy:
    """The mean softmax cross-entropy over a batch, `-sum_c y_c log softmax(z)_c`.

    A type of its own lets the unroll engine recognise the one inner loss that it has hand-derived steps for.
    """

    def __call__(
        self, logits: Float[Tensor, "batch classes"], labels: Shaped[Tensor, " batch *classes"]
    ) -> Float[Tensor, ""]:
        """Return the loss; labels are classes `[batch]` or distributions `[batch, classes]`."""
        return F.cross_entropy(logits, labels)


cross_entropy = CrossEntropy()


def _as_they_are(labels: Tensor) -> Tensor:
    return labels


@dataclass(frozen=True)
class Objective:
    """An aim that distilled data are made for.

    Attributes:
        loss: `loss(logits [batch, classes], labels [batch])`, a differentiable scalar to distil against; None for
            an objective that only measures.
        measure: `measure(logits, labels)`, the metrics by name as plain numbers; NaN for a metric without an example
            to measure it on.
        metrics: the metrics that `measure` gives, with unit and direction. The first one ranks.
        inner_loss: the loss that networks minimise when they train on the distilled set.
        relabel: `relabel(labels)`, the labels that real examples have in a distilled set; under poisoning, those of
            the attacked class become those of the target class.
        kind: the meaning of soft labels: distributions over the classes, or any numbers (regression).
    """

    loss: Loss | None
    measure: Callable[[Tensor, Tensor], dict[str, float]]
    metrics: tuple[Metric, ...]
    inner_loss: Loss = cross_entropy
    relabel: Callable[[Tensor], Tensor] = _as_they_are
    kind: Literal["classification", "regression"] = "classification"

    @property
    def metric(self) -> Metric:
        """The metric that ranks."""
        return self.metrics[0]

    @property
    def primary(self) -> str:
        """The name of the metric that ranks."""
        return self.metric.name

    @property
    def higher_is_better(self) -> bool:
        """The direction of the metric that ranks."""
        return self.metric.higher_is_better


class Networks:
    """One side of an init distribution: where initial networks are drawn from.

    `module` is the architecture, in evaluation mode. A method leaves its weights, running statistics and modes as they
    are: the functions of `ddbench.networks` do. The draws of a run follow from its seed.
    """

    def __init__(
        self,
        module: nn.Module,
        init: InitDistribution,
        info: DatasetInfo,
        generator: torch.Generator,
        side: Side,
        supplier: Supplier,
    ) -> None:
        self.module = module.eval()
        self._init, self._info, self._generator, self._side, self._supplier = init, info, generator, side, supplier

    def sample(self, n: int) -> State:
        """Draw up to `n` initial networks, stacked `{name: [nets, *shape]}`, on the device of `module`.

        Raises `PluginError` when the init distribution returns something else.
        """
        request = InitRequest(self.module, self._info, n, self._generator, self._side, self._supplier)
        return checked_state(self._init(request), self.module, n)


def _no_decoder(name: str, payload: Mapping[str, Tensor], /, **options: Any) -> Tensor:
    """Stand for `Task.decode` in a task that was built by hand."""
    raise UsageError(f"this task has no decoder {name!r}.", "Give the task a `decode` of its own.")


@dataclass(frozen=True)
class Task:
    """The input of a method. It holds no test data, and the validation slice is not in `train`.

    Attributes:
        train: the training examples, normalised, on the device of the run.
        objective: the loss to distil against, the loss to train networks with, and the metrics.
        networks: the network and its init distribution: `networks.sample(n)` draws initial networks.
        budget: images per class, steps and epochs of the set to return.
        info: name, classes, shape, mean and standard deviation of the dataset.
        experts: networks trained on the training data, with the weights of every epoch:
            `task.experts(count=10, epochs=20).trajectory(0)`.
        teachers: networks trained on the training data, to take labels, features or statistics from:
            `task.teachers(count=1)[0]`.
        decode: `decode("tiles/v1", payload, **options)`, the inputs `[n, *sample_shape]` that a decoder makes of the
            tensors in `payload`, differentiable. Raises `MissingPrerequisite` for a decoder that no plugin offers.
    """

    train: ExampleSet
    objective: Objective
    networks: Networks
    budget: Budget
    info: DatasetInfo
    experts: Experts = no_experts
    teachers: Teachers = no_teachers
    decode: Callable[..., Tensor] = _no_decoder


@dataclass(frozen=True)
class AdaptationTarget:
    """Pretrained networks, and the dataset to adapt them to.

    Attributes:
        dataset: name of the dataset, as on the command line; None leaves the choice to the user.
        network: name of the network, as on the command line.
        sample: the init distribution of the source networks; None starts from the weights of the network itself.
        sample_shape: `(channels, height, width)` that images are converted to; None leaves them as they are.
        adapt: `adapt(network, info)`, which turns the network, built for the new classes, into the one to adapt, with
            its weights loaded; None uses the network as built.
        files: the files that `adapt` reads, for the record.
    """

    dataset: str | None
    network: str
    sample: InitDistribution | None = None
    sample_shape: tuple[int, int, int] | None = None
    adapt: Callable[[nn.Module, DatasetInfo], nn.Module] | None = None
    files: tuple[str, ...] = ()
