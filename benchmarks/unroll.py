"""An outer step of unrolled gradient descent, against the textbook loop.

The textbook loop trains one network at a time with stock modules and `create_graph=True` and lets autograd go back
through all of it. Setting of Wang et al. 2018: 10 steps x 3 epochs of 10 images, real batch 1024.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.stock import as_usual, info_of
from benchmarks.turns import Case, Sides
from ddbench.builtin import networks
from ddbench.unroll import SGD, Adam, InnerOptimiser, Recompute, Reverse, Store, loss_on, meta_gradient

STEPS, EPOCHS, PER_STEP, REAL, NETS = 10, 3, 10, 1024, 4


def textbook(
    module: nn.Module, params: dict[str, Tensor], inputs: Tensor, labels: Tensor, lrs: Tensor, real: Tensor, y: Tensor
) -> Tensor:
    """Return the mean gradient by the images over the networks, by autograd through training written out."""
    inputs = inputs.clone().requires_grad_()
    for net in range(NETS):
        weights = {name: stacked[net].clone().requires_grad_() for name, stacked in params.items()}
        for t, lr in enumerate(lrs.flatten()):
            batch = t % len(inputs)
            loss = F.cross_entropy(functional_call(module, weights, (inputs[batch],)), labels[batch])
            gradient = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {name: w - lr * g for (name, w), g in zip(weights.items(), gradient, strict=True)}
        (F.cross_entropy(functional_call(module, weights, (real,)), y) / NETS).backward()
    assert inputs.grad is not None
    return inputs.grad


def sides(network: str) -> Sides:
    """Return the textbook and the engine on the same random problem."""
    info = info_of(network)
    torch.manual_seed(0)
    modules = [getattr(networks, network)(info) for _ in range(NETS)]
    params = {
        name: torch.stack([m.get_parameter(name).detach() for m in modules])
        for name, _ in modules[0].named_parameters()
    }
    inputs, labels = torch.randn(STEPS, PER_STEP, *info.sample_shape), torch.arange(10).repeat(STEPS, 1)
    lrs, real, y = torch.full((EPOCHS, STEPS), 0.02), torch.randn(REAL, *info.sample_shape), torch.randint(10, (REAL,))
    outer, stock = loss_on(F.cross_entropy, real, y), as_usual(modules[0])
    return {
        "baseline": lambda: textbook(stock, params, inputs, labels, lrs, real, y),
        "ddbench": lambda: meta_gradient(modules[0], params, inputs, labels, SGD(lrs), outer, memory=Store()).inputs,
    }


def inner_sides(optimiser: str) -> Sides:
    """Return plain descent and another inner optimiser on one LeNet, or `Recompute` and `Reverse` with momentum."""
    info = info_of("lenet")
    torch.manual_seed(0)
    module = networks.lenet(info)
    params = {name: p.detach() for name, p in module.named_parameters()}
    inputs, labels = torch.randn(STEPS, PER_STEP, *info.sample_shape), torch.arange(10).repeat(STEPS, 1)
    outer = loss_on(F.cross_entropy, torch.randn(128, *info.sample_shape), torch.randint(10, (128,)))
    lrs = torch.full((EPOCHS * 4, STEPS), 0.005)
    momentum = SGD(lrs, momentum=0.9)
    ways: dict[str, tuple[InnerOptimiser, InnerOptimiser]] = {
        "momentum": (SGD(lrs), momentum), "adam": (SGD(lrs), Adam(lrs / 10)), "reverse": (momentum, momentum),
    }  # fmt: skip
    plain, other = ways[optimiser]
    memory = Reverse() if optimiser == "reverse" else Recompute()

    def gradient(inner: InnerOptimiser, memory: Recompute | Reverse) -> None:
        meta_gradient(module, params, inputs, labels, inner, outer, memory=memory)

    return {"baseline": lambda: gradient(plain, Recompute()), "ddbench": lambda: gradient(other, memory)}


_STEP = f"a meta-gradient of {NETS} networks through {STEPS} x {EPOCHS} steps of {PER_STEP} images, real batch {REAL}"
_LONG = f"a meta-gradient of LeNet through {STEPS * EPOCHS * 4} steps"
CASES = {
    "unroll-lenet": Case(f"{_STEP}, LeNet", "the textbook loop", partial(sides, "lenet"), goal=2.5),
    "unroll-alexcifar": Case(f"{_STEP}, AlexCifarNet", "the textbook loop", partial(sides, "alexcifarnet"), goal=2.3),
    "inner-momentum": Case(f"{_LONG} with momentum", "the same by plain descent", partial(inner_sides, "momentum")),
    "inner-adam": Case(f"{_LONG} by Adam", "the same by plain descent", partial(inner_sides, "adam")),
    "inner-reverse": Case(
        f"{_LONG} with momentum, undone exactly", "the same with every state kept", partial(inner_sides, "reverse")
    ),
}
