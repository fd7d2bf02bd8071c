"""Seconds per network and outer step: the engine against the textbook loop, the two by turns in one process.

The textbook loop trains one network at a time with stock modules and `create_graph=True` and lets autograd go back
through all of it. Setting of Wang et al. 2018: 10 steps x 3 epochs of 10 images, real batch 1024.

    python benchmarks/unroll.py lenet
    python benchmarks/unroll.py alexcifarnet --rounds 3
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from stock import as_usual
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ddbench import DatasetInfo
from ddbench.builtin import networks
from ddbench.machine.environment import keep_freed_memory
from ddbench.unroll import MEMORIES, SGD, choose_engine, loss_on, meta_gradient

STEPS, EPOCHS, PER_STEP, REAL = 10, 3, 10, 1024


def textbook(
    module: nn.Module, params: dict[str, Tensor], inputs: Tensor, labels: Tensor, lrs: Tensor, real: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the mean gradients over the networks, by autograd through training written out."""
    inputs, lrs = inputs.clone().requires_grad_(), lrs.clone().requires_grad_()
    count = len(next(iter(params.values())))
    for net in range(count):
        weights = {name: stacked[net].clone().requires_grad_() for name, stacked in params.items()}
        for t, lr in enumerate(lrs.flatten()):
            batch = t % len(inputs)
            loss = F.cross_entropy(functional_call(module, weights, (inputs[batch],)), labels[batch])
            gradient = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {name: w - lr * g for (name, w), g in zip(weights.items(), gradient, strict=True)}
        (F.cross_entropy(functional_call(module, weights, (real,)), y) / count).backward()
    return inputs.grad, lrs.grad


def compiled(module: nn.Module, params: dict[str, Tensor], real: Tensor, y: Tensor) -> str:
    """Return the gain from compiling the outer batch: seconds to compile, seconds of a gradient with and without."""
    weights = {name: stacked[0].clone().requires_grad_() for name, stacked in params.items()}

    def loss(weights: dict[str, Tensor], real: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(module, weights, (real,)), y)

    def gradient(function: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(weights, real, y), list(weights.values()))

    eager, fast = gradient(loss), gradient(torch.compile(loss))
    compiling = timed(fast)
    eager()
    plain, quick = (statistics.median(timed(f) for _ in range(5)) for f in (eager, fast))
    gain = f"pays off after {compiling / (plain - quick):.0f} outer steps" if quick < plain else "never pays off"
    return (
        f"{compiling:.0f} s to compile the outer batch, then {quick:.3f} s where stock modules take {plain:.3f}: {gain}"
    )


def flops(module: nn.Module, shape: tuple[int, ...]) -> float:
    """Return the number of multiplications and additions that one outer step of one network needs in any engine.

    In units of one example forward: 3 for each real example (forward, both gradients); 9 for each distilled example
    and step (forward, both gradients, and each of the three products' two derivatives).
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, *shape))
    return counter.get_total_flops() * (3 * REAL + 9 * STEPS * EPOCHS * PER_STEP)


def peak() -> float:
    """Return the floating-point operations a second of a large float32 matrix product."""
    a = torch.randn(2048, 2048)
    a @ a
    return 2 * 2048**3 / min(timed(lambda: a @ a) for _ in range(5))


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=["lenet", "alexcifarnet"])
    parser.add_argument("--networks", type=int, default=4, help="networks an outer step averages over")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", choices=[memory.name for memory in MEMORIES], default="store")
    parser.add_argument("--compile", action="store_true", help="measure the gain from compiling the outer batch")
    args = parser.parse_args()

    shape = (1, 28, 28) if args.network == "lenet" else (3, 32, 32)
    info = DatasetInfo(
        "benchmark", tuple("0123456789"), shape, (0.0,) * shape[0], (1.0,) * shape[0], "image", "", False
    )
    torch.manual_seed(0)
    modules = [getattr(networks, args.network)(info) for _ in range(args.networks)]
    stock = as_usual(modules[0])
    params = {
        name: torch.stack([module.get_parameter(name).detach() for module in modules])
        for name, _ in modules[0].named_parameters()
    }
    inputs, labels = torch.randn(STEPS, PER_STEP, *shape), torch.arange(10).repeat(STEPS, 1)
    lrs, real, y = torch.full((EPOCHS, STEPS), 0.02), torch.randn(REAL, *shape), torch.randint(10, (REAL,))

    [memory] = [memory for memory in MEMORIES if memory.name == args.memory]

    def engine() -> object:
        return meta_gradient(
            modules[0], params, inputs, labels, SGD(lrs), loss_on(F.cross_entropy, real, y), memory=memory
        )

    def reference() -> object:
        return textbook(stock, params, inputs, labels, lrs, real, y)

    keep_freed_memory()
    engine(), reference()
    rounds = [(timed(reference), timed(engine)) for _ in range(args.rounds)]
    slow, fast = (statistics.median(column) / args.networks for column in zip(*rounds, strict=True))
    ratios = sorted(textbook / engine for textbook, engine in rounds)
    rate, best = flops(modules[0], shape) / fast, peak()
    print(f"{args.network}, {args.networks} networks, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"engine    {choose_engine(modules[0], inputs, args.networks)}")
    print(f"textbook  {slow:.3f} s per network")
    print(f"ddbench   {fast:.3f} s per network")
    print(
        f"ratio     {statistics.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} rounds)"
    )
    if args.compile:
        print(f"compiled  {compiled(stock, params, real, y)}")
    print(f"reached   {rate / 1e9:.0f} of {best / 1e9:.0f} GFLOP/s of a matrix product ({rate / best:.0%})")


if __name__ == "__main__":
    main()
