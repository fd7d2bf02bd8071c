"""The plan of a run: complete settings, with the components and the protocol that they name, resolved once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ddbench.contract.component import Component
from ddbench.contract.spec import Settings
from ddbench.contract.task import AdaptationTarget, Budget

if TYPE_CHECKING:
    from ddbench.protocols.base import Protocol


@dataclass(frozen=True)
class RecipeRequest:
    """The circumstances that published settings of a method depend on; they are known before data are loaded.

    Attributes:
        dataset: name of the dataset, as on the command line.
        classes: names of the classes.
        sample_shape: shape of an example, `(channels, height, width)` for images.
        budget: images per class, steps and epochs.
        network: name of the network to distil for, as on the command line.
        modality: kind of data; augmentations of images are published for "image" only.
    """

    dataset: str
    classes: tuple[str, ...]
    sample_shape: tuple[int, ...]
    budget: Budget
    network: str
    modality: str = "image"


@dataclass(frozen=True)
class EvaluationPlan:
    """Everything that scoring a set needs, decided; nothing is loaded yet.

    Attributes:
        settings: every choice and option spelt out.
        protocol: the protocol that `settings` names.
        dataset: the dataset that `settings` names.
        network: the network that `settings` names.
        eval_network: the network that `settings` names for scoring.
        objective: the objective that `settings` names.
        init: the component that networks to distil for are drawn from: the adaptation target if there is one.
        eval_init: the component that networks to score on are drawn from.
        adaptation: the answer of the adaptation target; None if there is no target.
        eval_dataset: the dataset whose test split scores; None where it is `dataset`.
    """

    settings: Settings
    protocol: "Protocol"
    dataset: Component
    network: Component
    eval_network: Component
    objective: Component
    init: Component
    eval_init: Component
    adaptation: AdaptationTarget | None
    eval_dataset: Component | None

    @property
    def components(self) -> tuple[Component, ...]:
        """The components of the plan."""
        datasets = (self.dataset,) if self.eval_dataset is None else (self.dataset, self.eval_dataset)
        return *datasets, self.network, self.eval_network, self.objective, self.init, self.eval_init

    @property
    def distributions(self) -> dict[str, str]:
        """The package and version of each component, or its file with a digest of the code."""
        return {f"{component.kind} {component.name!r}": component.distribution for component in self.components}


@dataclass(frozen=True)
class Plan(EvaluationPlan):
    """Everything that a run needs, decided; nothing is loaded yet.

    Attributes:
        settings: every choice and option spelt out.
        protocol: the protocol that `settings` names.
        dataset: the dataset that `settings` names.
        network: the network that `settings` names.
        eval_network: the network that `settings` names for scoring.
        objective: the objective that `settings` names.
        init: the component that networks to distil for are drawn from: the adaptation target if there is one.
        eval_init: the component that networks to score on are drawn from.
        adaptation: the answer of the adaptation target; None if there is no target.
        eval_dataset: the dataset whose test split scores; None where it is `dataset`.
        method: the method that `settings` names.
        recipe: the options that the method's recipe has set; `settings` holds them too.
    """

    method: Component
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recipe_text(self) -> str:
        """The options that the recipe has set, with their source: `T=10, inner=50 (Zhao et al. 2021, README)`."""
        options = ", ".join(f"{name}={value}" for name, value in self.recipe.items())
        return f"{options} ({self.method.recipe_source})" if options else ""

    @property
    def components(self) -> tuple[Component, ...]:
        """The components of the plan, the method first."""
        return (self.method, *super().components)
