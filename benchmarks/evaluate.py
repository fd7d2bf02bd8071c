"""Scoring under train/v1, against the research loop.

The research loop trains one network after the other on all threads: stock modules, a shuffling DataLoader over the
distilled images, `loss.backward()`, `torch.optim.SGD`. ddbench runs the protocol itself, with fewer epochs and a
handful of test images.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.stock import as_usual, info_of
from benchmarks.turns import Case, Sides
from ddbench import DistilledSet, ExampleSet
from ddbench.builtin import networks
from ddbench.builtin.inits import random
from ddbench.builtin.objectives import classification
from ddbench.contract.observer import Silent
from ddbench.contract.task import Budget, Networks
from ddbench.discovery.catalog import Catalog
from ddbench.protocols.base import Setting
from ddbench.protocols.train import TRAIN_V1
from ddbench.testing.pools import TinyPools

PER_CLASS, NETS = 10, 4
CPU = torch.device("cpu")


def research_loop(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    """Train one network."""
    network = as_usual(module).train()
    loader = DataLoader(TensorDataset(inputs, labels), TRAIN_V1.batch, shuffle=True)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, TRAIN_V1.momentum, weight_decay=TRAIN_V1.decay)
    for epoch in range(epochs):
        if epoch == epochs // 2:
            optimizer.param_groups[0]["lr"] = 0.001
        for images, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(network(images), targets).backward()
            optimizer.step()


def sides(network: str, epochs: int, nets: int = NETS, device: torch.device = CPU) -> Sides:
    """Return the research loop and the protocol, each training `nets` networks."""
    info = info_of(network)
    torch.manual_seed(0)
    module = getattr(networks, network)(info).to(device)
    inputs, labels = torch.randn(PER_CLASS * 10, *info.sample_shape).to(device), torch.arange(10).repeat(PER_CLASS)
    labels = labels.to(device)
    few = ExampleSet(inputs[:10], labels[:10], info)
    setting = Setting(
        module,
        few,
        few,
        classification(info),
        Budget(PER_CLASS, 1, 1),
        lambda side, generator: Networks(module, random, info, generator, side, TinyPools(Catalog())),
        lambda patience: [],
    )
    protocol, distilled = replace(TRAIN_V1, epochs=epochs), DistilledSet(inputs[None], labels[None])

    def baseline() -> None:
        for _ in range(nets):
            research_loop(module, inputs, labels, epochs)

    def ddbench() -> None:
        protocol.evaluate([distilled], setting, nets, Silent())

    return {"baseline": baseline, "ddbench": ddbench}


_WORK = f"{NETS} networks trained under train/v1 on {PER_CLASS} images per class"
CASES = {
    "score-lenet": Case(f"{_WORK}, LeNet, 50 epochs", "the research loop", partial(sides, "lenet", 50), goal=2.5),
    "score-convnet": Case(f"{_WORK}, ConvNet-3, 4 epochs", "the research loop", partial(sides, "convnet", 4), goal=2.2),
}
