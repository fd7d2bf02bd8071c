"""Attacks on test images: changes within a budget that make a network err, and its metric on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ddbench.contract.attack import Attack
from ddbench.contract.examples import DatasetInfo, ExampleSet
from ddbench.contract.state import State
from ddbench.contract.task import Objective
from ddbench.engine.networks import buffers_of, cut, evaluation_mode, forward
from ddbench.machine.seeds import derive_seed

ATTACKED = 1000
"""Test images that are attacked, at most: ten steps of all 10 000 take minutes for each network on a CPU."""
BATCH = 100
"""Images per pass, at most: a backward pass keeps every activation. The CPU takes fewer, see `cut`."""


def attacked(
    network: nn.Module,
    state: State,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    attack: Attack,
    info: DatasetInfo,
) -> Float[Tensor, "n c h w"]:
    """Return normalised images changed against one network, in evaluation mode, within the budget of `attack`.

    Each step adds `step_size * sign(d loss / d pixel)` of the cross-entropy. Then pixels are brought back to within
    `epsilon` of the image, and to [0, 1]. With one step of size epsilon this is FGSM, with several it is PGD.
    """
    parts = cut(network, images)
    if len(parts) > 1:
        pairs = zip(parts, torch.split(labels, len(parts[0])), strict=True)
        return torch.cat([attacked(network, state, part, own, attack, info) for part, own in pairs])
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (info.mean, info.std))
    lowest = torch.maximum(images - attack.epsilon / std, (0 - mean) / std)
    highest = torch.minimum(images + attack.epsilon / std, (1 - mean) / std)
    tensors, changed = (state.params, buffers_of(network, state)), images
    with torch.enable_grad(), evaluation_mode(network):
        for _ in range(attack.steps):
            changed = changed.detach().requires_grad_()
            # The sum, so that the gradient of an image does not depend on how many share the pass.
            loss = F.cross_entropy(functional_call(network, tensors, (changed,)), labels, reduction="sum")
            [gradient] = torch.autograd.grad(loss, changed)
            step = attack.step_size / std * gradient.sign()
            changed = torch.minimum(torch.maximum(changed.detach() + step, lowest), highest)
    return changed


@dataclass(frozen=True)
class UnderAttack:
    """The attacks that networks are scored under, and the images that are attacked."""

    attacks: tuple[Attack, ...]
    examples: ExampleSet

    @classmethod
    def choose(cls, attacks: Sequence[Attack], test: ExampleSet) -> Self:
        """Choose `ATTACKED` examples, as many of each class, or all where there are fewer; the same for every run."""
        generator = torch.Generator().manual_seed(derive_seed("attacked images"))
        each, chosen = max(1, ATTACKED // len(test.info.classes)), []
        for label in range(len(test.info.classes)):
            members = test.of_class(label)
            chosen.append(members[torch.randperm(len(members), generator=generator)[:each].to(members.device)])
        return cls(tuple(attacks), test[torch.cat(chosen)])

    def measure(self, network: nn.Module, state: State, objective: Objective) -> dict[str, float]:
        """Return the metric that ranks of one network on the images under each attack, by the name of its metric."""
        info, values = self.examples.info, {}
        for attack in self.attacks:
            logits = []
            for indices in torch.split(torch.arange(len(self.examples)), BATCH):
                # By index: images that stay in their files are read here.
                part = self.examples[indices]
                changed = attacked(network, state, part.inputs, part.labels, attack, info)
                logits.append(forward(network, state, changed))
            metrics = objective.measure(torch.cat(logits), self.examples.labels)
            values[attack.metric(objective.metric).name] = float(metrics[objective.primary])
        return values
