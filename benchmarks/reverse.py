"""Exactly reversed training: its memory beside that of the other ways of going back, and what can be learned by it.

python benchmarks/reverse.py memory     peak memory of a meta-gradient through up to 1000 steps, each in its own process
python benchmarks/reverse.py learn      ten digits, the rates and the momentum of 100 steps, learned through the steps
"""

import json
import subprocess
import sys

import torch
from torch import nn
from torch.nn import functional as F

from ddbench.unroll import SGD, Checkpoint, Recompute, Reverse, loss_on, meta_gradient

STEPS = (100, 300, 1000)
WAYS = {"recompute": Recompute(), "checkpoint": Checkpoint(), "reverse": Reverse()}


def measure(way: str, steps: int) -> dict[str, float]:
    """Return the bytes beyond those held before, the seconds, and the gradient's norm; LeNet, ten images a step."""
    import time

    from ddbench import DatasetInfo
    from ddbench.builtin import networks
    from ddbench.machine.environment import keep_freed_memory, peak_memory_mb

    keep_freed_memory()
    torch.manual_seed(0)
    info = DatasetInfo("benchmark", tuple("0123456789"), (1, 28, 28), (0.0,), (1.0,), "image", "", False)
    module = networks.lenet(info)
    inputs, labels = torch.randn(10, 10, 1, 28, 28), torch.arange(10).repeat(10, 1)
    inner = SGD(torch.full((steps // 10, 10), 0.005), momentum=0.9)
    outer = loss_on(F.cross_entropy, torch.randn(100, 1, 28, 28), torch.randint(10, (100,)))
    start = {name: parameter.detach() for name, parameter in module.named_parameters()}
    # The first call of a process loads the library's kernels.
    meta_gradient(module, start, inputs, labels, inner, outer, memory=WAYS[way], window=2)
    before, began = peak_memory_mb(), time.perf_counter()
    result = meta_gradient(module, start, inputs, labels, inner, outer, memory=WAYS[way])
    seconds = time.perf_counter() - began
    weights = sum(parameter.numel() for parameter in module.parameters())
    used = (peak_memory_mb() - before) * 1e6
    return {"MB": used / 1e6, "bytes": used / weights, "seconds": seconds, "norm": float(result.inputs.norm())}


def memory() -> None:
    """Print a line for each way and number of steps."""
    print("way          steps  peak MB  bytes per weight  seconds  norm of the gradient")
    for steps in STEPS:
        for way in WAYS:
            command = [sys.executable, __file__, way, str(steps)]
            figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"{way:<11} {steps:>6} {figures['MB']:>8.1f} {figures['bytes']:>17.0f} {figures['seconds']:>8.1f}  "
                f"{figures['norm']:.6g}",
                flush=True,
            )


def learn(rounds: int = 40) -> list[float]:
    """Learn one image of each digit, and a rate and a momentum for each of 100 steps; return the outer losses."""
    from sklearn.datasets import load_digits

    generator = torch.Generator().manual_seed(0)
    digits = load_digits()
    real = torch.tensor(digits.data[:1000], dtype=torch.float32) / 16
    outer = loss_on(F.cross_entropy, real, torch.tensor(digits.target[:1000]))
    network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    start = {name: torch.randn(p.shape, generator=generator) * 0.1 for name, p in network.named_parameters()}
    images = torch.randn((1, 10, 64), generator=generator).mul_(0.1).requires_grad_()
    labels = torch.arange(10)[None]
    raw_lrs = torch.full((100,), -3.0, requires_grad=True)
    raw_momentum = torch.full((100,), 0.0, requires_grad=True)
    optimiser = torch.optim.Adam([images, raw_lrs, raw_momentum], lr=0.05)
    losses = []
    for _ in range(rounds):
        lrs, momentum = raw_lrs.exp(), raw_momentum.sigmoid()
        inner = SGD(lrs.detach(), momentum=momentum.detach())
        result = meta_gradient(network, start, images.detach(), labels, inner, outer, memory=Reverse())
        images.grad = result.inputs
        raw_lrs.grad, raw_momentum.grad = torch.autograd.grad(
            [lrs, momentum], [raw_lrs, raw_momentum], [result.lrs, result.momentum]
        )
        optimiser.step()
        losses.append(float(result.loss))
    return losses


def main() -> None:
    match sys.argv[1:]:
        case ["memory"]:
            memory()
        case ["learn"]:
            for step, loss in enumerate(learn()):
                print(f"{step:>4} {loss:.4f}", flush=True)
        case [way, steps]:
            print(json.dumps(measure(way, int(steps))))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
