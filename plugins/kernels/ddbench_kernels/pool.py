"""A pool of networks that train on the distilled set while it is learned."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddbench import State
from ddbench.networks import Networks, Params, fit

BATCH = 1000
"""Synthetic images in a step of a network."""


def half_squared_error(outputs: Float[Tensor, "n classes"], labels: Float[Tensor, "n classes"]) -> Float[Tensor, ""]:
    """Return the mean over examples of |f(x) - y|^2 / 2."""
    return 0.5 * (outputs - labels).square().sum(1).mean()


@dataclass
class Member:
    """A network of the pool.

    Attributes:
        network: weights and running statistics.
        adam: state of its optimiser; empty for a network that has not trained yet.
        age: steps since it was drawn; at first, an offset that spreads the ages of the pool.
    """

    network: State
    adam: dict[str, Any]
    age: int


class Pool:
    """Networks of ages from 0 to `longest`; an older one is replaced by a random network (Zhou et al. 2022, Alg. 1)."""

    def __init__(self, networks: Networks, size: int, longest: int, rate: float, generator: torch.Generator) -> None:
        self._networks, self._longest, self._rate, self._generator = networks, longest, rate, generator
        ages = [longest // size * index for index in range(size)]
        self.members = [Member(networks.sample(1).network(0), {}, age) for age in ages]

    def draw(self) -> Member:
        """Return a random member."""
        return self.members[int(torch.randint(len(self.members), (), generator=self._generator))]

    def train(self, member: Member, images: Float[Tensor, " n *sample"], labels: Float[Tensor, "n classes"]) -> None:
        """Train a member for a step of Adam on at most `BATCH` of the images, or replace it if it is too old.

        Running statistics move on in a step, as in any training.
        """
        if member.age > self._longest:
            member.network, member.adam, member.age = self._networks.sample(1).network(0), {}, 0
            return
        if len(images) > BATCH:
            chosen = torch.randperm(len(images), generator=self._generator)[:BATCH].to(images.device)
            images, labels = images[chosen], labels[chosen]
        optimizers: list[torch.optim.Adam] = []

        def resumed(parameters: list[Tensor]) -> torch.optim.Adam:
            optimizers.append(torch.optim.Adam(parameters, lr=self._rate))
            if member.adam:
                optimizers[0].load_state_dict(member.adam)
            return optimizers[0]

        batches = [(images.detach(), labels.detach().to(images))]
        member.network = fit(self._networks.module, member.network, batches, resumed, loss=half_squared_error)
        member.adam, member.age = optimizers[0].state_dict(), member.age + 1

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes, for checkpoints."""
        return {
            "members": [
                {"params": m.network.params, "buffers": m.network.buffers, "adam": m.adam, "age": m.age}
                for m in self.members
            ]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a state of `state_dict`."""
        device = next(self._networks.module.parameters()).device
        self.members = [
            Member(State(_on(m["params"], device), _on(m["buffers"], device)), m["adam"], m["age"])
            for m in state["members"]
        ]


def _on(tensors: Params, device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
