"""Train a pool of networks before a run needs it."""

from collections.abc import Mapping
from typing import Any

from ddbench.contract.observer import Reporter, Silent
from ddbench.contract.spec import RunSpec
from ddbench.discovery.catalog import Catalog
from ddbench.engine.fit import Recipe
from ddbench.machine.environment import resolve_device
from ddbench.pipeline.data import Data
from ddbench.pipeline.plan import plan_evaluation
from ddbench.pipeline.pools import Architecture, Pool, Pools


def pretrain(
    fields: Mapping[str, Any],
    *,
    count: int = 200,
    held_out: int = 20,
    recipe: Recipe | None = None,
    catalog: Catalog | None = None,
    reporter: Reporter | None = None,
) -> Pool:
    """Train what a pool lacks of `count` networks to train on and `held_out` others: what `ddbench pretrain` does.

    `fields` are those of a spec that decide about data and network: dataset, network, sample_shape, validation, device.
    Raises `DdbenchError` where the data cannot be had or a network diverges.
    """
    catalog, reporter = catalog or Catalog(), reporter or Silent()
    plan = plan_evaluation(RunSpec.parse({"method": "none", **fields}), catalog)
    settings = plan.settings
    data = Data.load(plan.dataset, settings.dataset, settings.sample_shape, settings.validation, download=True)
    network = Architecture(plan.network, settings.network)
    pools = Pools(settings, network, data, catalog, resolve_device(settings.device), reporter)
    return pools.open(count, held_out, recipe or Recipe())
