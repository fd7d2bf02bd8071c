"""Networks that the harness trains for methods: expert trajectories, and teachers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload, runtime_checkable

import pydantic
from jaxtyping import Float
from torch import Tensor, nn

from ddbench.contract.state import State
from ddbench.errors import UsageError


class ExpertRecipe(pydantic.BaseModel):
    """A training of experts by SGD: constant rate, shuffled passes, cross-entropy on the real labels.

    The defaults are those of MTT (Cazenavette et al. 2022, section 4 and the released `buffer.py`).

    Attributes:
        epochs: passes over the training data; the weights after each are kept.
        lr: rate of SGD.
        momentum: momentum of SGD.
        decay: weight decay.
        batch: examples of a step; the last batch of a pass may be smaller.
        augment: strategy of the differentiable augmentation, such as `color_crop_cutout_flip_scale_rotate`; empty for
            none.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = pydantic.Field(50, ge=1)
    lr: float = pydantic.Field(0.01, gt=0)
    momentum: float = pydantic.Field(0.0, ge=0, lt=1)
    decay: float = pydantic.Field(0.0, ge=0)
    batch: int = pydantic.Field(256, ge=1)
    augment: str = ""

    @classmethod
    def parse(cls, **fields: Any) -> "ExpertRecipe":
        """Return the recipe of these fields. Raises `UsageError` for one that is invalid."""
        try:
            return cls(**fields)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            message = first["msg"][:1].lower() + first["msg"][1:]
            raise UsageError(
                f"experts cannot be trained with {first['loc'][0]}={first['input']!r}: {message}.",
                "Change that option; the usual values are 50 epochs at rate 0.01 in batches of 256.",
            ) from error

    def __str__(self) -> str:
        extras = {"momentum": self.momentum, "decay": self.decay, "augment": self.augment}
        parts = [f"{self.epochs} epochs of SGD at rate {self.lr:g}, batches of {self.batch}"]
        parts += [f"{name} {value}" for name, value in extras.items() if value]
        return ", ".join(parts)


@runtime_checkable
class Trajectories(Protocol):
    """Trained experts, read from disk as they are asked for; `len(trajectories)` is their number.

    Attributes:
        epochs: the last epoch; epoch 0 is the untrained network.
    """

    @property
    def epochs(self) -> int:
        """The last epoch; epoch 0 is the untrained network."""
        ...

    def __len__(self) -> int: ...

    def trajectory(self, expert: int) -> dict[str, Float[Tensor, " states *shape"]]:
        """Return the weights of one expert after each epoch, `{name: [epochs + 1, *shape]}`, on the device of the run.

        Raises `UsageError` where there are fewer experts, `DdbenchError` for a file that is damaged.
        """
        ...

    def start(self, expert: int, epoch: int) -> State:
        """Return weights and running statistics of one expert after one epoch; only these are read from disk.

        Raises `UsageError` where there are fewer experts or epochs, `DdbenchError` for a file that is damaged.
        """
        ...


@runtime_checkable
class Experts(Protocol):
    """The source of expert trajectories: `task.experts(count=10, epochs=20)` trains what is not on disk yet."""

    def __call__(
        self,
        count: int = 10,
        *,
        epochs: int = 50,
        lr: float = 0.01,
        momentum: float = 0.0,
        decay: float = 0.0,
        batch: int = 256,
        augment: str = "",
    ) -> Trajectories:
        """Return experts of the run's network on the run's training data, from random weights; see `ExpertRecipe`.

        They do not depend on the seed of the run: runs and methods with the same recipe share them. A smoke run has
        few of them, of few epochs, so ask the result for its `len` and `epochs`. Raises `UsageError` for an invalid
        recipe, `DdbenchError` where an expert diverges, `MissingPrerequisite` where the time limit of the run ends
        before they are trained.
        """
        ...


@dataclass(frozen=True)
class TrainedNetworks(Sequence[State]):
    """Trained networks of one architecture: a sequence of their states.

    Attributes:
        module: the architecture, on the device of the run, in evaluation mode.
        states: weights and running statistics of each network.
    """

    module: nn.Module
    states: tuple[State, ...]

    def __len__(self) -> int:
        return len(self.states)

    @overload
    def __getitem__(self, index: int) -> State: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[State]: ...
    def __getitem__(self, index: int | slice) -> State | Sequence[State]:
        return self.states[index]


@runtime_checkable
class Teachers(Protocol):
    """The source of teachers: `task.teachers(count=1)` trains what is not on disk yet."""

    def __call__(
        self,
        count: int = 1,
        *,
        network: str | Mapping[str, Any] | None = None,
        steps: int | None = None,
        lr: float | None = None,
        weights: str | None = None,
    ) -> TrainedNetworks:
        """Return networks trained on all examples of the run's training data, by the recipe of pools (Adam).

        `network` is a name, or `{"name": ..., "options": {...}}`, of another architecture than the run's. None for
        `steps` and `lr` takes the pool's usual values. Raises `UsageError` for a count below one or an unknown
        network, and as `Experts` where the training cannot end.

        `weights` names a file with the weights of one network that was trained elsewhere; nothing is trained then.
        Images reach it normalised as those of ImageNet are. It has the classes of the run in their order, or the 1000
        classes of ImageNet, of which those of the run are taken by name or by number (`n01440764`). Raises
        `UsageError` for a file that is no such network, or that knows other classes.
        """
        ...


def no_experts(count: int = 10, **recipe: Any) -> Trajectories:
    """Raise `UsageError`: the experts of a task that was made without any."""
    raise UsageError("this task has no experts.", "Let the harness make the task, or pass Task(..., experts=...).")


def no_teachers(count: int = 1, **recipe: Any) -> TrainedNetworks:
    """Raise `UsageError`: the teachers of a task that was made without any."""
    raise UsageError("this task has no teachers.", "Let the harness make the task, or pass Task(..., teachers=...).")
