"""The trace of a short training, seen by each example: one training, cached, for all scores of difficulty."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from ddbench import DdbenchError, ExampleSet, Run, Task, UsageError
from ddbench.cache import atomic_write, cache_dir, derive_seed, sha256
from ddbench.networks import State, evaluation_mode, fast_operators, features, fit, for_each_network, forward

BATCH, RATE, MOMENTUM, DECAY = 128, 0.05, 0.9, 5e-4
TRACED = 2
"""Number of networks in the training that serves all methods by default."""
CHUNK = 500
"""Examples per forward pass over all of them."""
FORMAT = 2
"""Version of the files in the cache; files of another version are not found. Raise it when their content changes."""
PER_EXAMPLE = 128
"""Number of examples whose own gradients are computed at a time."""


@dataclass(frozen=True)
class Trace:
    """Margins and errors of all training examples, for every network at the end of every epoch.

    The margin is the logit of an example's own class less the largest other; it is positive where the example is
    classified correctly. The error is |softmax - one-hot|_2. `last` is the stacked state of the networks after the last
    epoch, `early` the one after `early_epoch`.
    """

    margins: Float[Tensor, "nets epochs n"]
    errors: Float[Tensor, "nets epochs n"]
    early_epoch: int
    last: State
    early: State


def trace(task: Task, run: Run, networks: int, epochs: int) -> Trace:
    """Train `networks` networks from the task's init distribution on all training examples for `epochs` epochs.

    SGD, batches of 128, momentum .9, weight decay 5e-4, rate .05 falling linearly to zero. The trace is kept in the
    cache folder: one training serves every method and budget. The early epoch, for scores about the beginning of
    training, is a fifth of the way. Raises `DdbenchError` where the training diverges.
    """
    starts = task.networks.sample(networks)
    module, examples = task.networks.module, task.train
    early_epoch = max(0, epochs // 5 - 1)
    path = cache_dir() / "traces" / f"{_key(module, starts, examples, run.seed, epochs)}.safetensors"
    cached = _read(path, run.device, early_epoch)
    if cached is not None:
        return cached

    count = starts.count
    last, early = (State(_clone(starts.params), _clone(starts.buffers)) for _ in range(2))
    velocity = {name: torch.zeros_like(tensor) for name, tensor in starts.params.items()}
    margins = torch.zeros(count, epochs, len(examples), device=run.device)
    errors, done = torch.zeros_like(margins), torch.zeros((), dtype=torch.long)
    state = {**_named(last, early), **{f"m.{name}": tensor for name, tensor in velocity.items()}}
    for epoch in run.loop(epochs, {**state, "margins": margins, "errors": errors, "done": done}):

        def one_epoch(replica: nn.Module, net: int, epoch: int = epoch) -> tuple[State, Tensor, Tensor]:
            seed = derive_seed(run.seed, "trace", net, epoch)
            momenta = [tensor[net] for tensor in velocity.values()]
            trained = _train_epoch(replica, last.network(net), momenta, examples, epoch, epochs, seed)
            return trained, *_difficulty(eval_logits(replica, trained, examples.inputs), examples.labels)

        for net, (trained, margin, error) in enumerate(for_each_network(one_epoch, module, range(count))):
            # The early epoch follows until it is over: a training that ends before it has its last one there.
            for stack in (last, early) if epoch <= early_epoch else (last,):
                _assign(stack, net, trained)
            margins[net, epoch], errors[net, epoch] = margin, error
            # A roll-back would not help: the same seed trains the same way again.
            if not (trained.finite and margin.isfinite().all() and error.isfinite().all()):
                raise DdbenchError(
                    f"the training that scores and features come from diverged in epoch {epoch + 1} of {epochs}.",
                    "Choose another --network, --init or --seed.",
                )
        done.fill_(epoch + 1)
        run.log(trained_accuracy=(margins[:, epoch] > 0).float().mean())
    seen = max(1, int(done))
    result = Trace(margins[:, :seen], errors[:, :seen], min(early_epoch, seen - 1), last, early)
    if seen == epochs:
        _write(path, result)
    return result


def mean_logits(task: Task, result: Trace) -> Float[Tensor, "n classes"]:
    """Return the logits of all training examples after the last epoch, averaged over the networks."""
    count = len(result.margins)
    logits = [eval_logits(task.networks.module, result.last.network(net), task.train.inputs) for net in range(count)]
    return torch.stack(logits).mean(0)


def gradient_norms(task: Task, result: Trace) -> Float[Tensor, " n"]:
    """Return GraNd: the norm of the gradient of each example's loss, over all weights, averaged over the networks.

    At the early epoch (Paul, Ganguli and Dziugaite 2021, Definition 1).
    """
    module, examples = task.networks.module, task.train

    def loss(weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(module, (weights, buffers), (x[None],)), y[None])

    per_example = vmap(grad(loss), (None, None, 0, 0))
    batches = list(
        zip(torch.split(examples.inputs, PER_EXAMPLE), torch.split(examples.labels, PER_EXAMPLE), strict=True)
    )
    norms = []
    with evaluation_mode(module):
        for net in range(len(result.margins)):
            state, parts = result.early.network(net), []
            for x, y in batches:
                gradients = per_example(state.params, state.buffers, x, y)
                squares = [g.flatten(1).square().sum(1) for g in gradients.values()]
                parts.append(torch.stack(squares).sum(0).sqrt())
            norms.append(torch.cat(parts))
    return torch.stack(norms).mean(0)


def penultimate(module: nn.Module, state: State, inputs: Float[Tensor, " n *sample"]) -> Float[Tensor, "n d"]:
    """Return the features of many examples in evaluation mode: the input of the last linear layer.

    Raises `Unsupported` for a network without a linear layer.
    """
    with torch.no_grad(), fast_operators():
        parts = [features(module, state, x, batch_statistics=False) for x in torch.split(inputs, CHUNK)]
    return torch.cat(parts)


def eval_logits(module: nn.Module, state: State, inputs: Float[Tensor, " n *sample"]) -> Float[Tensor, "n classes"]:
    """Return the logits of many examples in evaluation mode."""
    with fast_operators():
        return forward(module, state, inputs, CHUNK)


class _Momentum:
    """SGD with momentum and weight decay: v <- mu v + g + d w, w <- w - r v.

    The velocities belong to the caller: they outlive an epoch and are part of the run's state.
    """

    def __init__(self, parameters: list[Tensor], velocities: list[Tensor]) -> None:
        self.param_groups: list[dict[str, object]] = [{"lr": RATE}]
        self.pairs = list(zip(parameters, velocities, strict=True))

    def step(self) -> None:
        rate = self.param_groups[0]["lr"]
        assert isinstance(rate, float)
        with torch.no_grad():
            for w, v in self.pairs:
                assert w.grad is not None
                v.mul_(MOMENTUM).add_(w.grad).add_(w, alpha=DECAY)
                w.add_(v, alpha=-rate)


def _train_epoch(
    module: nn.Module,
    state: State,
    velocities: list[Tensor],
    examples: ExampleSet,
    epoch: int,
    epochs: int,
    seed: int,
) -> State:
    """Return the state after one epoch; `velocities` are updated in place."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).to(examples.labels.device)
    indices = torch.split(order, BATCH)
    batches = ((examples.inputs[batch], examples.labels[batch]) for batch in indices)
    return fit(
        module,
        state,
        batches,
        lambda parameters: _Momentum(parameters, velocities),
        rate=lambda step: RATE * (1 - (epoch + step / len(indices)) / epochs),
    )


def _difficulty(
    logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return the margin and the error of each example."""
    true = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    error = logits.softmax(1) - F.one_hot(labels, logits.shape[1])
    return true[:, 0] - others, torch.linalg.vector_norm(error, dim=1)


def _clone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _assign(stack: State, net: int, state: State) -> None:
    """Write the state of one network into a stack."""
    for target, source in ((stack.params, state.params), (stack.buffers, state.buffers)):
        for name, tensor in source.items():
            target[name][net] = tensor


def _named(last: State, early: State) -> dict[str, Tensor]:
    """Return both states as one mapping, by prefix: the form of checkpoints and of files in the cache."""
    groups = {"w.": last.params, "b.": last.buffers, "ew.": early.params, "eb.": early.buffers}
    return {f"{prefix}{name}": tensor for prefix, group in groups.items() for name, tensor in group.items()}


def _by_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _key(module: nn.Module, starts: State, examples: ExampleSet, seed: int, epochs: int) -> str:
    """Return a hash of everything the trace depends on: network, initial weights, data, order of examples, length."""
    tensors = (*starts.params.values(), *starts.buffers.values())
    weights = b"".join(tensor.detach().cpu().contiguous().numpy().tobytes() for tensor in tensors)
    recipe = (FORMAT, epochs, BATCH, RATE, MOMENTUM, DECAY)
    facts = [repr(module), sha256(weights), examples.info.content_hash, len(examples), seed, recipe]
    return sha256("\n".join(map(str, [*facts, torch.__version__, examples.inputs.device])).encode())


def _write(path: Path, result: Trace) -> None:
    tensors = {"margins": result.margins, "errors": result.errors, **_named(result.last, result.early)}
    # A cache that cannot be written costs time, not the run.
    with contextlib.suppress(DdbenchError):
        atomic_write(path, safetensors.torch.save({name: t.cpu().contiguous() for name, t in tensors.items()}))


def _read(path: Path, device: torch.device, early_epoch: int) -> Trace | None:
    if not path.exists():
        return None
    try:
        tensors = {name: tensor.to(device) for name, tensor in safetensors.torch.load_file(path).items()}
    except (safetensors.SafetensorError, OSError) as error:
        raise UsageError(f"{path} is damaged: {error}.", "Remove it; the next run computes it again.") from error
    last, early = (State(_by_prefix(tensors, w), _by_prefix(tensors, b)) for w, b in (("w.", "b."), ("ew.", "eb.")))
    return Trace(tensors["margins"], tensors["errors"], early_epoch, last, early)
