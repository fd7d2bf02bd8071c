"""Peak memory of a meta-gradient, predicted and measured, each in a process of its own.

python benchmarks/memory.py
"""

import json
import subprocess
import sys

CASES = [
    *(("lenet", 10, steps, memory) for memory in ("store", "recompute", "checkpoint") for steps in (3, 30, 300)),
    *(("alexcifarnet", classes, 30, "recompute") for classes in (10, 100, 200)),
    *(("convnet", classes, 30, "recompute") for classes in (10, 100, 200)),
]
"""Network, classes, inner steps, way of going back; two networks, real batch 512, one image per class and step."""


def measure(network: str, classes: int, total: int, memory: str) -> dict[str, float]:
    """Return the bytes beyond those held before, predicted and measured, and the seconds."""
    import time

    import torch
    from torch.nn import functional as F

    from ddbench import DatasetInfo
    from ddbench.builtin import networks
    from ddbench.machine.environment import keep_freed_memory
    from ddbench.unroll import MEMORIES, SGD, fastest_fitting, loss_on, meta_gradient

    keep_freed_memory()
    shape = (1, 28, 28) if network == "lenet" else (3, 32, 32)
    names = tuple(map(str, range(classes)))
    info = DatasetInfo("benchmark", names, shape, (0.0,) * shape[0], (1.0,) * shape[0], "image", "", False)
    module = getattr(networks, network)(info)
    params = {name: torch.stack([p.detach(), p.detach()]) for name, p in module.named_parameters()}
    steps = min(10, total)
    inputs, labels = torch.randn(steps, classes, *shape), torch.arange(classes).repeat(steps, 1)
    lrs = torch.full((total // steps, steps), 0.01)
    real, y = torch.randn(512, *shape), torch.randint(classes, (512,))
    [way] = [way for way in MEMORIES if way.name == memory]
    device = torch.device("cpu")
    _, predicted = fastest_fitting(module, 2, tuple(inputs.shape), total, 512, device, among=[way])
    before, start = peak_bytes(), time.perf_counter()
    meta_gradient(module, params, inputs, labels, SGD(lrs), loss_on(F.cross_entropy, real, y), memory=way)
    return {"predicted": predicted, "measured": peak_bytes() - before, "seconds": time.perf_counter() - start}


def peak_bytes() -> int:
    """Return the peak bytes of this process so far."""
    from ddbench.machine.environment import peak_memory_mb

    return round(peak_memory_mb() * 1e6)


def main() -> None:
    if len(sys.argv) > 1:
        network, classes, total, memory = sys.argv[1:]
        print(json.dumps(measure(network, int(classes), int(total), memory)))
        return
    print("network       classes  steps  memory      predicted MB  measured MB  seconds")
    for case in CASES:
        command = [sys.executable, __file__, *map(str, case)]
        figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        network, classes, total, memory = case
        print(
            f"{network:<13} {classes:>7} {total:>6}  {memory:<11} {figures['predicted'] / 1e6:>12.0f} "
            f"{figures['measured'] / 1e6:>12.0f} {figures['seconds']:>8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
