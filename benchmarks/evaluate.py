"""Speed of train/v1, compared with the research loop; same steps, same examples.

    python benchmarks/evaluate.py lenet
    python benchmarks/evaluate.py convnet --epochs 5

The research loop trains one network after the other on all threads: stock modules, a shuffling DataLoader over the
distilled images, `loss.backward()`, `torch.optim.SGD`. The harness runs the protocol itself, with fewer epochs and a
handful of test images. The two take turns, each in a process of its own: how one keeps freed memory must not help the
other.
"""

import argparse
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from stock import as_usual
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ddbench import DatasetInfo, DistilledSet, ExampleSet
from ddbench.builtin import networks
from ddbench.builtin.inits import random
from ddbench.builtin.objectives import classification
from ddbench.contract.observer import Silent
from ddbench.contract.task import Budget, Networks
from ddbench.discovery.catalog import Catalog
from ddbench.machine.environment import describe, keep_freed_memory
from ddbench.protocols.base import Setting
from ddbench.protocols.train import BATCH, DECAY, MOMENTUM, RATE, Train
from ddbench.testing.pools import TinyPools

PER_CLASS = 10


def task(name: str) -> tuple[DatasetInfo, nn.Module, torch.Tensor, torch.Tensor]:
    shape = (1, 28, 28) if name == "lenet" else (3, 32, 32)
    classes = tuple("0123456789")
    info = DatasetInfo("benchmark", classes, shape, (0.0,) * shape[0], (1.0,) * shape[0], "image", "", False)
    torch.manual_seed(0)
    module = getattr(networks, name)(info)
    return info, module, torch.randn(PER_CLASS * 10, *shape), torch.arange(10).repeat(PER_CLASS)


def research_loop(name: str, epochs: int) -> float:
    """Return the seconds of training one network."""
    _, module, inputs, labels = task(name)
    started = time.perf_counter()
    network = as_usual(module)
    loader = DataLoader(TensorDataset(inputs, labels), BATCH, shuffle=True)
    optimizer = torch.optim.SGD(network.parameters(), RATE, MOMENTUM, weight_decay=DECAY)
    network.train()
    for epoch in range(epochs):
        if epoch == epochs // 2:
            optimizer.param_groups[0]["lr"] = RATE / 10
        for images, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(network(images), targets).backward()
            optimizer.step()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=["lenet", "convnet"])
    parser.add_argument("--networks", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    info, module, inputs, labels = task(args.network)
    few = ExampleSet(inputs[:10], labels[:10], info)
    protocol = Train("benchmark", "", args.epochs)
    setting = Setting(
        module,
        few,
        few,
        classification(info),
        Budget(PER_CLASS, 1, 1),
        lambda side, generator: Networks(module, random, info, generator, side, TinyPools(Catalog())),
        lambda patience: [],
    )
    distilled = DistilledSet(inputs[None], labels[None])

    def protocol_seconds() -> float:
        started = time.perf_counter()
        protocol.evaluate([distilled], setting, args.networks, Silent())
        return (time.perf_counter() - started) / args.networks

    keep_freed_memory()
    print(describe(torch.device("cpu")))
    with ProcessPoolExecutor(1, get_context("spawn")) as other:

        def loop_seconds() -> float:
            return other.submit(research_loop, args.network, args.epochs).result()

        protocol_seconds(), loop_seconds()
        rounds = [(loop_seconds(), protocol_seconds()) for _ in range(args.rounds)]
    slow, fast = (1000 * statistics.median(column) / args.epochs for column in zip(*rounds, strict=True))
    ratios = sorted(a / b for a, b in rounds)
    print(f"research loop  {slow:.2f} ms a step and network")
    print(f"ddbench        {fast:.2f} ms a step and network, {args.networks} networks")
    print(f"ratio          {statistics.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
