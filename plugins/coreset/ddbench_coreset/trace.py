"""What a short training saw of each example: one training, cached, from which all scores of difficulty come."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from ddbench import DdbenchError, ExampleSet, Run, Task, Unsupported, UsageError
from ddbench.contract.snapshots import finite
from ddbench.engine.cpu.operators import FastOperators
from ddbench.engine.inner_steps import inner_mode
from ddbench.engine.meta_gradient import evaluation_mode, unstack
from ddbench.engine.workers import for_each_network
from ddbench.machine.files import atomic_write, sha256
from ddbench.machine.folders import cache_dir
from ddbench.machine.seeds import derive_seed

BATCH, RATE, MOMENTUM, DECAY = 128, 0.05, 0.9, 5e-4
TRACED = 2
"""Networks of the training that serves all methods where nothing else is said."""
CHUNK = 500
"""Examples per forward pass when all are looked at."""
FORMAT = 2
"""Of the files in the cache: those of another format are not found. Raise it with what is kept, or how it is made."""
KINDS = {"weights": "w.", "buffers": "b.", "early": "ew.", "early_buffers": "eb."}
"""What the names of a trace's weights and buffers begin with where all are in one mapping."""
PER_EXAMPLE = 128
"""Examples whose gradients are taken apart at a time."""


@dataclass(frozen=True)
class Trace:
    """Of every network and every epoch, as the epoch left the network: margins and errors of all training examples.

    `margins [nets, epochs, n]`: the logit of an example's own class less the largest other; positive where it is
    classified rightly. `errors [nets, epochs, n]`: |softmax - one-hot|_2. `weights` and `buffers` after the last epoch,
    `early` and `early_buffers` after the one that `early_epoch` names: `{name: [nets, *shape]}`.
    """

    margins: Tensor
    errors: Tensor
    early_epoch: int
    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]
    early: dict[str, Tensor]
    early_buffers: dict[str, Tensor]


def trace(task: Task, run: Run, networks: int, epochs: int) -> Trace:
    """Train `networks` networks from the task's init distribution on all training examples for `epochs` epochs.

    SGD, batches of 128, momentum .9, weight decay 5e-4, rate .05 falling linearly to zero. Kept in the cache folder:
    one training serves every method and budget. The early epoch, for scores that are about the beginning, is a fifth
    of the way. Raises `DdbenchError` where the training diverges.
    """
    starts = task.networks.sample(networks)
    module, examples = task.networks.module, task.train
    early_epoch = max(0, epochs // 5 - 1)
    path = cache_dir() / "traces" / f"{_key(module, starts, examples, run.seed, epochs)}.safetensors"
    kept = _read(path, run.device, early_epoch)
    if kept is not None:
        return kept

    count = len(next(iter(starts.values())))
    state = {f"w.{name}": tensor.clone() for name, tensor in starts.items()}
    state |= {f"m.{name}": torch.zeros_like(tensor) for name, tensor in starts.items()}
    state |= {f"ew.{name}": tensor.clone() for name, tensor in starts.items()}
    for name, buffer in module.named_buffers():
        for kind in ("b.", "eb."):
            state[f"{kind}{name}"] = buffer[None].expand(count, *buffer.shape).clone()
    margins = torch.zeros(count, epochs, len(examples), device=run.device)
    errors, done = torch.zeros_like(margins), torch.zeros((), dtype=torch.long)
    for epoch in run.loop(epochs, {**state, "margins": margins, "errors": errors, "done": done}):

        def one(own: nn.Module, net: int, epoch: int = epoch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
            mine = {name: tensor[net].clone() for name, tensor in state.items()}
            _epoch(own, mine, examples, epoch, epochs, derive_seed(run.seed, "trace", net, epoch))
            logits = _logits(own, _of(mine, "w."), _of(mine, "b."), examples.inputs)
            return mine, *_difficulty(logits, examples.labels)

        for net, (mine, margin, error) in enumerate(for_each_network(one, module, range(count))):
            for name, tensor in mine.items():
                if name.startswith(("w.", "b.", "m.")):
                    state[name][net] = tensor
                # Up to the early epoch: a training that ends before it has its last one there.
                if name.startswith(("w.", "b.")) and epoch <= early_epoch:
                    state[f"e{name}"][net] = tensor
            margins[net, epoch], errors[net, epoch] = margin, error
            # A roll-back would be of no use: the same seed trains the same way again.
            if not finite({**mine, "margin": margin, "error": error}):
                raise DdbenchError(
                    f"the training that scores and features come from diverged in epoch {epoch + 1} of {epochs}.",
                    "Choose another --network, --init or --seed.",
                )
        done.fill_(epoch + 1)
        run.log(trained_accuracy=(margins[:, epoch] > 0).float().mean())
    seen = max(1, int(done))
    found = Trace(margins[:, :seen], errors[:, :seen], min(early_epoch, seen - 1), **_groups(state))
    if seen == epochs:
        _write(path, found)
    return found


def logits_of(task: Task, found: Trace) -> Tensor:
    """Logits of all training examples, averaged over the networks as the last epoch left them: `[n, classes]`."""
    each = [
        _logits(task.networks.module, weights, buffers, task.train.inputs)
        for weights, buffers in _networks(task.networks.module, found.weights, found.buffers)
    ]
    return torch.stack(each).mean(0)


def gradient_norms(task: Task, found: Trace) -> Tensor:
    """GraNd: the norm of the gradient of each example's loss, over all weights, averaged over the networks `[n]`.

    At the early epoch (Paul, Ganguli and Dziugaite 2021, Definition 1).
    """
    module, examples = task.networks.module, task.train

    def loss(weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(module, (weights, buffers), (x[None],)), y[None])

    each = vmap(grad(loss), (None, None, 0, 0))
    norms = []
    with evaluation_mode(module):
        for weights, buffers in _networks(module, found.early, found.early_buffers):
            parts = []
            for x, y in zip(
                torch.split(examples.inputs, PER_EXAMPLE), torch.split(examples.labels, PER_EXAMPLE), strict=True
            ):
                gradients = each(weights, buffers, x, y)
                squares = [g.flatten(1).square().sum(1) for g in gradients.values()]
                parts.append(torch.stack(squares).sum(0).sqrt())
            norms.append(torch.cat(parts))
    return torch.stack(norms).mean(0)


def penultimate(
    module: nn.Module, weights: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """What the last linear layer is given, `[n, d]`, and what it makes of it, `[n, classes]`.

    Raises `Unsupported` for a network without a linear layer.
    """
    last = next((layer for layer in reversed(list(module.modules())) if isinstance(layer, nn.Linear)), None)
    if last is None:
        raise Unsupported("the network has no linear layer whose input could serve as features.")
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda layer, given: seen.append(given[0].flatten(1)))
    try:
        logits = _logits(module, weights, buffers, inputs)
    finally:
        handle.remove()
    return torch.cat(seen), logits


def one_network(found: Trace, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and buffers of the first network as the last epoch left it."""
    return next(_networks(module, found.weights, found.buffers))


def _networks(
    module: nn.Module, weights: dict[str, Tensor], buffers: dict[str, Tensor]
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    for net, its in enumerate(unstack(module, weights)):
        yield its, {name: buffer[net] for name, buffer in buffers.items()}


def _epoch(
    module: nn.Module, state: dict[str, Tensor], examples: ExampleSet, epoch: int, epochs: int, seed: int
) -> None:
    """One epoch of SGD with momentum on `state`, in place."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).to(examples.labels.device)
    batches = torch.split(order, BATCH)
    weights = {name: tensor.requires_grad_() for name, tensor in _of(state, "w.").items()}
    buffers = _of(state, "b.")
    with FastOperators(), inner_mode(module):
        for position, batch in enumerate(batches):
            rate = RATE * (1 - (epoch + position / len(batches)) / epochs)
            loss = F.cross_entropy(
                functional_call(module, (weights, buffers), (examples.inputs[batch],)), examples.labels[batch]
            )
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
            with torch.no_grad():
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                    momentum = state[f"m.{name}"]
                    momentum.mul_(MOMENTUM).add_(gradient).add_(weight, alpha=DECAY)
                    weight.add_(momentum, alpha=-rate)
    for name, weight in weights.items():
        state[f"w.{name}"] = weight.detach()


def _logits(module: nn.Module, weights: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor) -> Tensor:
    with torch.no_grad(), evaluation_mode(module), FastOperators():
        return torch.cat([functional_call(module, (weights, buffers), (part,)) for part in torch.split(inputs, CHUNK)])


def _difficulty(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Margin and error of each example."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    wrong = logits.softmax(1) - F.one_hot(labels, logits.shape[1])
    return own[:, 0] - others, torch.linalg.vector_norm(wrong, dim=1)


def _of(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _groups(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    return {field: _of(state, prefix) for field, prefix in KINDS.items()}


def _key(module: nn.Module, starts: dict[str, Tensor], examples: ExampleSet, seed: int, epochs: int) -> str:
    """Everything the trace depends on: network, initial weights, data, order of the examples, length."""
    weights = b"".join(tensor.detach().cpu().contiguous().numpy().tobytes() for tensor in starts.values())
    recipe = (FORMAT, epochs, BATCH, RATE, MOMENTUM, DECAY)
    facts = [repr(module), sha256(weights), examples.info.content_hash, len(examples), seed, recipe]
    return sha256("\n".join(map(str, [*facts, torch.__version__, examples.inputs.device])).encode())


def _write(path: Path, found: Trace) -> None:
    tensors = {"margins": found.margins, "errors": found.errors}
    for field, prefix in KINDS.items():
        tensors |= {f"{prefix}{name}": tensor for name, tensor in getattr(found, field).items()}
    # A cache that cannot be written costs time, not the run.
    with contextlib.suppress(DdbenchError):
        atomic_write(path, safetensors.torch.save({k: v.cpu().contiguous() for k, v in tensors.items()}))


def _read(path: Path, device: torch.device, early_epoch: int) -> Trace | None:
    if not path.exists():
        return None
    try:
        state = {name: tensor.to(device) for name, tensor in safetensors.torch.load_file(path).items()}
    except (safetensors.SafetensorError, OSError) as error:
        raise UsageError(f"{path} is damaged: {error}.", "Remove it; it is made again when it is needed.") from error
    return Trace(state["margins"], state["errors"], early_epoch, **_groups(state))
