"""Training a pool, against one network after the other with a DataLoader.

The textbook: stock modules, `loss.backward()`, `torch.optim.Adam`, a shuffling DataLoader over the same tensors, on all
threads. ddbench: data resident, one network on each worker of one thread.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.stock import as_usual, info_of
from benchmarks.turns import Case, Sides
from ddbench import ExampleSet
from ddbench.builtin import networks
from ddbench.contract.state import State
from ddbench.engine.fit import Recipe, train_each

NETS, STEPS = 4, 100


def textbook(module: nn.Module, examples: ExampleSet, recipe: Recipe) -> None:
    """Train one network."""
    network = copy.deepcopy(as_usual(module))
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
                return


def sides() -> Sides:
    """Return both ways on random images of MNIST's shape."""
    info = info_of("lenet")
    torch.manual_seed(0)
    module, recipe = networks.lenet(info), Recipe(STEPS, 0.003)
    examples = ExampleSet(torch.randn(20_000, *info.sample_shape), torch.randint(10, (20_000,)), info)
    starts = [State({name: p.detach() for name, p in module.named_parameters()})] * NETS

    def baseline() -> None:
        for _ in range(NETS):
            textbook(module, examples, recipe)

    def ddbench() -> None:
        train_each(module, starts, range(NETS), examples, recipe, lambda state: None)

    return {"baseline": baseline, "ddbench": ddbench}


CASES = {"pretrain-lenet": Case(f"{NETS} LeNets trained for {STEPS} steps of Adam", "a DataLoader, one by one", sides)}
