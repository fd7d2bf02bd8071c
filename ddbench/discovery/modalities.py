"""Modalities: the kind of data of a dataset, and what people perceive of a distilled set."""

from ddbench.contract.component import Component, did_you_mean
from ddbench.contract.presentation import Presentation
from ddbench.contract.sets import DistilledSet
from ddbench.discovery.catalog import Catalog
from ddbench.errors import MissingPrerequisite, PluginError, blamed_on

IMAGE = "image"
"""The modality of datasets and of sets that name none."""


def modality_of(dataset: Component, catalog: Catalog) -> Component:
    """Return the modality that a dataset declares. Raises `PluginError` where no plugin offers it."""
    name = dataset.facts.get("modality", IMAGE)
    known = [component.name for component in catalog.components("modality")]
    if name not in known:
        raise PluginError(
            f"{dataset.who} is of the unknown modality {name!r}.{did_you_mean(name, known)}",
            f"Name one of {', '.join(known) or 'none'}, or load the plugin that offers it: --plugin PATH.",
        )
    return catalog.get("modality", name)


def present(distilled: DistilledSet, catalog: Catalog) -> Presentation:
    """Return what people perceive of a set with inputs; see `Presentation`.

    Raises `MissingPrerequisite` for a modality that no plugin offers, `PluginError` where it fails.
    """
    name = distilled.metadata.get("modality", IMAGE)
    if name not in [component.name for component in catalog.components("modality")]:
        raise MissingPrerequisite(
            f"the set is of the modality {name!r}, which no plugin here offers.",
            "Install its plugin, or load it with --plugin PATH.",
        )
    component = catalog.get("modality", name)
    with blamed_on(component.who):
        shown = component.facts["present"](distilled)
    if not isinstance(shown, Presentation):
        raise PluginError(f"{component.who} presents {type(shown).__name__}.", "Return a ddbench.Presentation.")
    return shown
