"""Train a pool of networks, or experts, before a run needs them."""

from collections.abc import Mapping
from typing import Any

from ddbench.contract.experts import ExpertRecipe
from ddbench.contract.observer import Reporter, Silent
from ddbench.contract.spec import RunSpec
from ddbench.discovery.catalog import Catalog
from ddbench.engine.fit import Recipe
from ddbench.machine.environment import resolve_device
from ddbench.pipeline.data import Data
from ddbench.pipeline.experts import ExpertSource, StoredTrajectories, expert_source
from ddbench.pipeline.plan import plan_evaluation
from ddbench.pipeline.pool_files import Pool
from ddbench.pipeline.pools import Architecture, Pools


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
    pools, _ = _opened(fields, catalog or Catalog(), reporter or Silent())
    return pools.open(count, held_out, recipe or Recipe())


def pretrain_experts(
    fields: Mapping[str, Any],
    *,
    count: int = 10,
    recipe: ExpertRecipe | None = None,
    catalog: Catalog | None = None,
    reporter: Reporter | None = None,
) -> StoredTrajectories:
    """Train the experts that are missing of the first `count`: what `ddbench pretrain --experts` does.

    `fields` are those of `pretrain`. Raises `DdbenchError` where the data cannot be had or an expert diverges.
    """
    _, experts = _opened(fields, catalog or Catalog(), reporter or Silent())
    return experts.open(recipe or ExpertRecipe.parse(), count)


def _opened(fields: Mapping[str, Any], catalog: Catalog, reporter: Reporter) -> tuple[Pools, ExpertSource]:
    plan = plan_evaluation(RunSpec.parse({"method": "none", **fields}), catalog)
    settings, device = plan.settings, resolve_device(plan.settings.device)
    data = Data.load(
        plan.dataset,
        settings.dataset,
        settings.sample_shape,
        settings,
        download=True,
        catalog=catalog,
        reporter=reporter,
    )
    network = Architecture(plan.network, settings.network)
    pools = Pools(settings, network, data, catalog, device, reporter)
    return pools, expert_source(settings, network, data.to(device), pools, catalog, reporter)
