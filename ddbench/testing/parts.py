"""Checks of init distributions, objectives, adaptation targets, datasets and networks."""

import inspect
import json
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ddbench.contract.sets import DatasetInfo, ImageSplits
from ddbench.contract.task import AdaptationTarget, Objective
from ddbench.engine.networks import evaluation_mode
from ddbench.errors import MissingPrerequisite, Unsupported, UsageError
from ddbench.machine.folders import data_dir
from ddbench.testing import tiny as small
from ddbench.testing.checks import EVERY, Check, Failed, Skipped, Subject, untouched_globals

SHAPES = ((1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 64, 64), (3, 224, 224))
CLASSES = 4


def _draw(subject: Subject, n: int, seed: int, side: str, module: nn.Module | None = None) -> dict[str, Tensor]:
    component, (train, _) = subject.component, small.examples(1, 3)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if sum(p.kind in kinds for p in inspect.signature(component.function).parameters.values()) > 5:
        raise Skipped("it draws on pools or on other distributions, which only a run has")
    generator = torch.Generator().manual_seed(seed)
    arguments = (module or small.network(1, 3), train.info, n, generator, side)
    drawn: dict[str, Tensor] = component.call(component.validated({}), *arguments)
    return drawn


def draws_every_weight(subject: Subject) -> None:
    """`{name: [n, *shape]}` for every parameter, finite, up to the number that was asked for."""
    module = small.network(1, 3)
    wanted = dict(module.named_parameters())
    for n in (1, 3):
        drawn = _draw(subject, n, 0, "train", module)
        if not isinstance(drawn, Mapping) or drawn.keys() != wanted.keys():
            raise Failed("it does not return every parameter by name.", "Return {name: [n, *shape]}.")
        for name, tensor in drawn.items():
            if tensor.shape[1:] != wanted[name].shape or not 1 <= tensor.shape[0] <= n:
                raise Failed(f"asked for {n}, it returns {name} of shape {list(tensor.shape)}.", "Stack n networks.")
            if not torch.isfinite(tensor).all():
                raise Failed(f"{name} is not finite.", "Check the variances of the layers.")


def draws_the_same_for_the_same_seed(subject: Subject) -> None:
    """A generator in the same state gives the same weights; another seed, or side, other ones or the one it has."""
    first, again, other = (_draw(subject, 2, seed, "train") for seed in (0, 0, 1))
    if any(not torch.equal(first[name], again[name]) for name in first):
        raise Failed("the same seed gives other weights.", "Draw from the generator it is given.")
    alone = len(next(iter(first.values()))) == 1
    if not alone and all(torch.equal(first[name], other[name]) for name in first):
        raise Failed("another seed gives the same weights.", "Draw from the generator, or return one network.")


def leaves_the_network_alone(subject: Subject) -> None:
    """The network's own weights and the process's global state are as before."""
    module = small.network(1, 3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with untouched_globals():
        _draw(subject, 2, 0, "train", module)
    if any(not torch.equal(before[name], tensor) for name, tensor in module.state_dict().items()):
        raise Failed("it changes the network it is given.", "Write into new tensors.")


def _objective(subject: Subject) -> tuple[Objective, DatasetInfo, Tensor, Tensor]:
    train, _ = small.examples(1, CLASSES)
    with untouched_globals():
        made = subject.component.call(subject.component.validated({}), train.info)
    if not isinstance(made, Objective):
        raise Failed(f"it returns {type(made).__name__}.", "Return a ddbench.Objective.")
    logits = torch.randn((40, CLASSES), generator=torch.Generator().manual_seed(0))
    return made, train.info, logits, torch.arange(CLASSES).repeat(10)


def measures_in_numbers(subject: Subject) -> None:
    """Metrics are plain numbers that JSON can hold, and the primary one is among them."""
    made, _, logits, labels = _objective(subject)
    found = made.metrics(logits, labels)
    if made.primary not in found:
        raise Failed(f"the primary metric {made.primary!r} is not measured.", f"It measures {', '.join(found)}.")
    for name, value in found.items():
        if not isinstance(value, int | float):
            raise Failed(f"{name} is a {type(value).__name__}.", "Return plain numbers: tensor.item().")
    if not math.isfinite(found[made.primary]):
        raise Failed(f"{made.primary} of random logits is {found[made.primary]}.", "Measure something finite.")
    json.dumps(found)


def can_be_descended(subject: Subject) -> None:
    """The losses are differentiable scalars, and real labels can be made into those of a distilled set."""
    made, _, logits, labels = _objective(subject)
    relabelled = made.relabel(labels)
    if len(relabelled) != len(labels):
        raise Failed(f"relabel gives {len(relabelled)} labels for {len(labels)}.", "Give one for each.")
    losses = [("inner_loss", made.inner_loss, relabelled)]
    if made.loss is not None:
        losses.append(("loss", made.loss, labels))
    for name, loss, targets in losses:
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, targets)
        if value.dim() or not torch.isfinite(value):
            raise Failed(f"{name} is {value.tolist()}.", "Return one finite number: the mean over the batch.")
        [gradient] = torch.autograd.grad(value, [leaf], allow_unused=True)
        if gradient is None or not gradient.any():
            raise Failed(f"{name} has no gradient.", "Compute it with torch, from the logits.")


def names_what_it_adapts(subject: Subject) -> None:
    """An AdaptationTarget with a network that exists, and a dataset that exists where it names one."""
    try:
        made = subject.component.call(subject.component.validated({}))
    except (UsageError, MissingPrerequisite) as reason:
        raise Skipped(f"with default options: {reason.message}") from reason
    if not isinstance(made, AdaptationTarget):
        raise Failed(f"it returns {type(made).__name__}.", "Return a ddbench.AdaptationTarget.")
    for kind, name in (("dataset", made.dataset), ("network", made.network)):
        if name is not None:
            subject.catalog.get(kind, name)


def _load(subject: Subject) -> ImageSplits:
    component = subject.component
    try:
        loaded = component.call(component.validated({}), data_dir(), False)
    except MissingPrerequisite as reason:
        raise Skipped(f"its data are not here: {reason.message}") from reason
    if not isinstance(loaded, ImageSplits):
        raise Failed(f"it returns {type(loaded).__name__}.", "Return a ddbench.ImageSplits.")
    return loaded


def loads_what_it_declares(subject: Subject) -> None:
    """uint8 images and int64 labels of the declared shape and classes, every class in both splits."""
    loaded, facts = _load(subject), subject.component.facts
    classes = len(facts["classes"])
    loaded.validate("it", classes, tuple(facts["sample_shape"]))
    for split, labels in (("train", loaded.train_labels), ("test", loaded.test_labels)):
        there = set(labels.tolist())
        if there != set(range(classes)):
            raise Failed(f"the {split} split has the labels {sorted(there)} of {classes} classes.", "Mend the classes.")


def loads_the_same_again(subject: Subject) -> None:
    """The content hash, which rows carry, does not change, and neither does global state."""
    first = _load(subject).content_hash()
    with untouched_globals():
        again = _load(subject).content_hash()
    if first != again:
        raise Failed("loading it twice gives other images or another order.", "Sort files, and draw nothing.")


def _builds(subject: Subject) -> list[tuple[tuple[int, int, int], nn.Module]]:
    """The network for each size of image that it takes."""
    built = []
    for shape in SHAPES:
        info = _info(shape)
        try:
            built.append((shape, subject.component.call(subject.component.validated({}), info)))
        except (Unsupported, UsageError):
            continue
    if not built:
        raise Failed("it is built for no size of image.", f"Take one of {', '.join(map(str, SHAPES))}.")
    return built


def _info(shape: tuple[int, int, int]) -> DatasetInfo:
    names = tuple(f"class {i}" for i in range(CLASSES))
    return DatasetInfo("tiny", names, shape, (0.0,) * shape[0], (1.0,) * shape[0], "image", "", False)


def maps_images_to_classes(subject: Subject) -> None:
    """A module that gives one finite number a class, the same for the same weights."""
    for shape, module in _builds(subject):
        if not isinstance(module, nn.Module):
            raise Failed(f"it returns {type(module).__name__}.", "Return a torch.nn.Module.")
        images = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), evaluation_mode(module):
            logits, again = module(images), module(images)
        if tuple(logits.shape) != (2, CLASSES) or not torch.isfinite(logits).all():
            raise Failed(f"for {list(shape)} it gives {list(logits.shape)}.", "Give one number for each class.")
        if not torch.equal(logits, again):
            raise Failed("it gives other numbers for the same images.", "Be deterministic in evaluation mode.")


def can_be_differentiated_twice(subject: Subject) -> None:
    """A Hessian-vector product exists: what distillation through training needs."""
    shape, module = _builds(subject)[0]
    weights = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}
    with evaluation_mode(module):
        loss = functional_call(module, weights, (torch.randn(2, *shape),)).square().mean()
    try:
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True, allow_unused=True)
        norm = torch.stack([g.square().sum() for g in gradients if g is not None]).sum()
        second = torch.autograd.grad(norm, list(weights.values()), allow_unused=True)
    except RuntimeError as error:
        raise Failed(
            f"its gradient cannot be differentiated: {error}.", "Use layers with a second derivative."
        ) from error
    # A backward without a derivative of its own can also end the path in silence.
    if not any(g is not None and g.any() for g in second):
        raise Failed("its gradient does not depend on its weights.", "Use layers with a second derivative.")


def leaves_global_state_alone(subject: Subject) -> None:
    """Building it changes nothing of the process but torch's random state, which the harness puts back."""
    shape, _ = _builds(subject)[0]
    with untouched_globals():
        random_state = torch.get_rng_state()
        subject.component.call(subject.component.validated({}), _info(shape))
        torch.set_rng_state(random_state)


INIT: Sequence[Check] = (*EVERY, draws_every_weight, draws_the_same_for_the_same_seed, leaves_the_network_alone)
OBJECTIVE: Sequence[Check] = (*EVERY, measures_in_numbers, can_be_descended)
TARGET: Sequence[Check] = (*EVERY, names_what_it_adapts)
DATASET: Sequence[Check] = (*EVERY, loads_what_it_declares, loads_the_same_again)
NETWORK: Sequence[Check] = (*EVERY, maps_images_to_classes, can_be_differentiated_twice, leaves_global_state_alone)
