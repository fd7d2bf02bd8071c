"""Networks stacked on an accelerator, against the same networks one after the other."""

import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import evaluate
from benchmarks.stock import info_of
from benchmarks.turns import Case, Sides
from ddbench.builtin import networks
from ddbench.engine.stacks import VARIABLE
from ddbench.machine.environment import resolve_device
from ddbench.unroll import SGD, Store, loss_on, meta_gradient


def with_stacks(wanted: bool, work: Callable[[], Tensor | None]) -> Callable[[], Tensor | None]:
    """Return `work` with networks stacked or not."""

    def call() -> Tensor | None:
        os.environ[VARIABLE] = str(int(wanted))
        return work()

    return call


def scoring() -> Sides:
    """Score 20 networks under train/v1."""
    work = evaluate.sides("convnet", 10, nets=20, device=resolve_device("auto"))["ddbench"]
    return {"baseline": with_stacks(False, work), "ddbench": with_stacks(True, work)}


def unrolling(network: str) -> Sides:
    """Take a meta-gradient of 4 networks through 10 x 3 steps."""
    info, device = info_of(network), resolve_device("auto")
    torch.manual_seed(0)
    modules = [getattr(networks, network)(info).to(device) for _ in range(4)]
    params = {n: torch.stack([m.get_parameter(n).detach() for m in modules]) for n, _ in modules[0].named_parameters()}
    inputs, labels = torch.randn(10, 10, *info.sample_shape).to(device), torch.arange(10).repeat(10, 1).to(device)
    real, y = torch.randn(1024, *info.sample_shape).to(device), torch.randint(10, (1024,)).to(device)
    inner, outer = SGD(torch.full((3, 10), 0.02, device=device)), loss_on(F.cross_entropy, real, y)

    def work() -> Tensor:
        return meta_gradient(modules[0], params, inputs, labels, inner, outer, memory=Store()).inputs

    return {"baseline": with_stacks(False, work), "ddbench": with_stacks(True, work)}


CASES = {
    "stack-scoring": Case(
        "20 ConvNet-3 trained under train/v1 for 10 epochs, stacked", "one after the other",
        scoring, 5, accelerator=True,
    ),
    **{
        f"stack-unroll-{short}": Case(
            f"a meta-gradient of 4 {network} through 10 x 3 steps, stacked", "one after the other",
            partial(unrolling, network), 3, accelerator=True,
        )
        for short, network in (("lenet", "lenet"), ("convnet", "convnet"))
    },
}  # fmt: skip
