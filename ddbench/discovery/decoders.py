"""Decode the payloads of parametrised sets by the decoders of the plugins."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddbench.contract.component import did_you_mean
from ddbench.contract.examples import DatasetInfo
from ddbench.contract.sets import DistilledSet
from ddbench.discovery.catalog import Catalog
from ddbench.errors import MissingPrerequisite, PluginError, UsageError


@dataclass(frozen=True)
class Decoders:
    """The decoders of the plugins, for examples of one dataset."""

    catalog: Catalog
    info: DatasetInfo

    def __call__(self, name: str, payload: Mapping[str, Tensor], /, **options: Any) -> Tensor:
        """Return the inputs `[n, *sample_shape]` that the decoder `name` makes of `payload`; see `Task.decode`.

        Raises `MissingPrerequisite` for a decoder that no plugin offers, `UsageError` for options and payloads that it
        does not accept, and `PluginError` where it fails or returns something else.
        """
        known = [component.name for component in self.catalog.components("decoder")]
        if name not in known:
            raise MissingPrerequisite(
                f"the decoder {name!r} is unknown: no plugin here offers it.{did_you_mean(name, known)}",
                "Install its plugin, or load it with --plugin PATH.",
            )
        component = self.catalog.get("decoder", name)
        inputs = component.call(component.validated(options), payload, self.info)
        shape = tuple(self.info.sample_shape)
        if not isinstance(inputs, Tensor) or tuple(inputs.shape[1:]) != shape or inputs.dim() != len(shape) + 1:
            what = f"a tensor of shape {list(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
            raise PluginError(
                f"{component.who} returned {what} where [n, {', '.join(map(str, shape))}] is expected.",
                "It returns one input for each label of the set.",
            )
        return inputs


def decode(distilled: DistilledSet, catalog: Catalog | None = None) -> DistilledSet:
    """Return a set with the inputs that its payload decodes to; the set itself where it has no payload.

    The metadata of a set that ddbench wrote say what its decoder needs. Raises `MissingPrerequisite` for a decoder that
    no plugin offers, and `UsageError` where the set does not say its dataset's shape and classes, or cannot be decoded.
    """
    if not distilled.decoder:
        return distilled
    facts = distilled.metadata
    try:
        info = DatasetInfo(
            name=facts.get("dataset", ""),
            classes=tuple(map(str, json.loads(facts["classes"]))),
            sample_shape=tuple(map(int, json.loads(facts["sample_shape"]))),
            mean=tuple(map(float, json.loads(facts["mean"]))),
            std=tuple(map(float, json.loads(facts["std"]))),
            modality=facts.get("modality", "image"),
            content_hash=facts.get("dataset_hash", ""),
            partial=False,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(
            "the set does not say the shape, the classes, the mean and the deviation of its dataset.",
            "Take a file as ddbench wrote it.",
        ) from error
    with torch.no_grad():
        return distilled.decoded(Decoders(catalog or Catalog(), info))
