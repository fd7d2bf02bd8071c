"""Coresets: subsets of the real training images, chosen by a stated rule."""

import ddbench
from ddbench_coreset.dynamics import aum, ccs, el2n, forgetting, grand, uncertainty
from ddbench_coreset.geometry import facility_location, graph_cut, herding, k_center, k_medoids
from ddbench_coreset.gradients import craig, example_value, grad_match


@ddbench.hookimpl
def ddbench_methods() -> list[object]:
    return [
        herding, k_center, k_medoids, facility_location, graph_cut,
        forgetting, el2n, grand, aum, uncertainty, ccs,
        craig, grad_match, example_value,
    ]  # fmt: skip
