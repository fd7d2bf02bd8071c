"""Checks of init distributions and of pretrained-adaptation targets."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddbench.contract.examples import DatasetInfo
from ddbench.contract.inits import InitDistribution, InitRequest, checked_state
from ddbench.contract.state import State
from ddbench.contract.task import AdaptationTarget
from ddbench.errors import MissingPrerequisite, PluginError, UsageError
from ddbench.pipeline.data import info_from_facts
from ddbench.testing import tiny as small
from ddbench.testing.checks import EVERY, Check, Failed, Skipped, Subject, untouched_globals
from ddbench.testing.pools import TinyPools


def _draw(subject: Subject, n: int, seed: int, module: nn.Module | None = None) -> State:
    """Draw `n` networks for the training side; pools and other distributions are tiny stand-ins."""
    component, (train, _) = subject.component, small.examples(1, 3)
    options = component.validated({})

    def sample(request: InitRequest) -> State | dict[str, Tensor]:
        drawn: State | dict[str, Tensor] = component.call(options, request)
        return drawn

    return _sampled(subject, sample, module or _network(), train.info, n, seed)


def _sampled(
    subject: Subject, sample: InitDistribution, module: nn.Module, info: DatasetInfo, n: int, seed: int
) -> State:
    """Return the answer to a request. Raises `Failed` where it is no valid stack of up to `n` networks."""
    generator = torch.Generator().manual_seed(seed)
    drawn = sample(InitRequest(module, info, n, generator, "train", TinyPools(subject.catalog)))
    try:
        return checked_state(drawn, module, n)
    except PluginError as error:
        raise Failed(error.message, error.hint or "Return {name: [n, *shape]}, or a ddbench.State.") from error


def _network() -> nn.Module:
    """Return a network with running statistics."""
    convolution, *others = small.network(1, 3).children()
    return nn.Sequential(convolution, nn.BatchNorm2d(4), *others)


def draws_every_weight(subject: Subject) -> None:
    """Require 1 to n networks, `{name: [n, *shape]}` for every parameter, finite."""
    for n in (1, 3):
        _draw(subject, n, 0)


def draws_the_same_for_the_same_seed(subject: Subject) -> None:
    """Require the same weights from a generator in the same state, and others for another seed (unless n is 1)."""
    first, again, other = (_draw(subject, 2, seed).params for seed in (0, 0, 1))
    if any(not torch.equal(first[name], again[name]) for name in first):
        raise Failed("the same seed gives other weights.", "Draw from request.generator.")
    single = len(next(iter(first.values()))) == 1
    if not single and all(torch.equal(first[name], other[name]) for name in first):
        raise Failed("another seed gives the same weights.", "Draw from request.generator, or return one network.")


def leaves_the_network_alone(subject: Subject) -> None:
    """Require that the weights of the given network and the global state of the process stay the same."""
    module = _network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with untouched_globals():
        _draw(subject, 2, 0, module)
    if any(not torch.equal(before[name], tensor) for name, tensor in module.state_dict().items()):
        raise Failed("it changes the network it is given.", "Write into new tensors.")


def _target(subject: Subject) -> AdaptationTarget:
    try:
        target = subject.component.call(subject.component.validated({}))
    except (UsageError, MissingPrerequisite) as reason:
        raise Skipped(f"with default options: {reason.message}") from reason
    if not isinstance(target, AdaptationTarget):
        raise Failed(f"it returns {type(target).__name__}.", "Return a ddbench.AdaptationTarget.")
    return target


def names_what_it_adapts(subject: Subject) -> None:
    """Require an AdaptationTarget with a network that exists, and a dataset that exists if it names one."""
    target = _target(subject)
    for kind, name in (("dataset", target.dataset), ("network", target.network)):
        if name is not None:
            subject.catalog.get(kind, name)


def draws_source_weights(subject: Subject) -> None:
    """Require 1 to n networks, `{name: [n, *shape]}` for every parameter of the network of the target, finite."""
    target = _target(subject)
    if target.sample is None:
        raise Skipped("it starts from the weights of its network")
    info = small.examples(1, 3)[0].info
    if target.dataset is not None:
        info = info_from_facts(subject.catalog.get("dataset", target.dataset), target.sample_shape)
    network = subject.catalog.get("network", target.network, info)
    with torch.random.fork_rng(devices=[]):
        module = network.call(network.validated({}), info)
    _sampled(subject, target.sample, module, info, 2, 0)


INIT: Sequence[Check] = (*EVERY, draws_every_weight, draws_the_same_for_the_same_seed, leaves_the_network_alone)
TARGET: Sequence[Check] = (*EVERY, names_what_it_adapts, draws_source_weights)
