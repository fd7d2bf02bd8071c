"""Seconds to train a network for a pool, compared with one network after the other and a DataLoader; same steps.

    python benchmarks/pretrain.py            # LeNet on MNIST
    python benchmarks/pretrain.py --steps 300

The textbook: stock modules, `loss.backward()`, `torch.optim.Adam`, a shuffling DataLoader over the same tensors, on all
threads. Ours: data resident, one network on each worker of one thread. The two take turns in one process.
"""

import argparse
import copy
import statistics
import time

import torch
from stock import as_usual
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ddbench.contract.spec import Choice
from ddbench.contract.state import State
from ddbench.discovery.catalog import Catalog
from ddbench.engine.fit import Recipe, train_each
from ddbench.machine.environment import describe, keep_freed_memory
from ddbench.pipeline.data import build, load_examples, split_validation


def textbook(module: nn.Module, examples, recipe: Recipe) -> float:
    network, started = copy.deepcopy(as_usual(module)), time.perf_counter()
    loader = DataLoader(TensorDataset(examples.inputs, examples.labels), recipe.batch, shuffle=True, drop_last=True)
    optimizer = torch.optim.Adam(network.parameters(), recipe.lr, betas=(0.5, 0.999))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    done = 0
    while done < recipe.steps:
        for inputs, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
            schedule.step()
            done += 1
            if done == recipe.steps:
                break
    return time.perf_counter() - started


def pool(module: nn.Module, examples, recipe: Recipe, networks: int) -> float:
    starts = [State({name: p.detach() for name, p in module.named_parameters()})] * networks
    started = time.perf_counter()
    train_each(module, starts, range(networks), examples, recipe, lambda state: None)
    return (time.perf_counter() - started) / networks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--network", default="lenet")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--networks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    keep_freed_memory()
    catalog = Catalog()
    component, choice = catalog.resolve("dataset", Choice(name=options.dataset))
    examples, _ = split_validation(load_examples(component, choice, None, download=True, catalog=catalog)[0], 0.1)
    network, choice = catalog.resolve("network", Choice(name=options.network), examples.info)
    module, recipe = build(network, choice, examples.info), Recipe(options.steps, 0.003)
    print(describe(torch.device("cpu")))
    ratios = []
    for round_ in range(options.rounds):
        slow, fast = textbook(module, examples, recipe), pool(module, examples, recipe, options.networks)
        ratios.append(slow / fast)
        print(f"round {round_ + 1}: DataLoader {slow:.2f} s a network, pool {fast:.2f} s, ratio {ratios[-1]:.2f}")
    print(
        f"{options.network} on {options.dataset}, {options.steps} steps: median ratio {statistics.median(ratios):.2f}"
    )


if __name__ == "__main__":
    main()
