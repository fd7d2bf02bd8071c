"""Checks of objectives, datasets and networks."""

import json
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ddbench.contract.examples import DatasetInfo, ImageSplits, Splits
from ddbench.contract.task import Objective
from ddbench.discovery.modalities import modality_of
from ddbench.engine.networks import evaluation_mode
from ddbench.errors import MissingPrerequisite, Unsupported, UsageError
from ddbench.machine.folders import data_dir
from ddbench.pipeline.data import request_of
from ddbench.testing import tiny as small
from ddbench.testing.checks import EVERY, Check, Failed, Skipped, Subject, untouched_globals

SHAPES: tuple[tuple[int, ...], ...] = ((1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 64, 64), (3, 224, 224), (24, 50))
"""Shapes of images, and one of sentences."""
CLASSES = 4


def _objective(subject: Subject) -> tuple[Objective, DatasetInfo, Tensor, Tensor]:
    train, _ = small.examples(1, CLASSES)
    with untouched_globals():
        objective = subject.component.call(subject.component.validated({}), train.info)
    if not isinstance(objective, Objective):
        raise Failed(f"it returns {type(objective).__name__}.", "Return a ddbench.Objective.")
    logits = torch.randn((40, CLASSES), generator=torch.Generator().manual_seed(0))
    return objective, train.info, logits, torch.arange(CLASSES).repeat(10)


def measures_in_numbers(subject: Subject) -> None:
    """Require the metrics that are declared, no others, as plain numbers."""
    objective, _, logits, labels = _objective(subject)
    metrics = objective.measure(logits, labels)
    declared = [metric.name for metric in objective.metrics]
    if not declared or sorted(declared) != sorted(metrics):
        raise Failed(
            f"it declares {', '.join(declared) or 'no metric'} and measures {', '.join(metrics)}.",
            "List every metric once in Objective.metrics, the one that ranks first.",
        )
    for name, value in metrics.items():
        if not isinstance(value, int | float):
            raise Failed(f"{name} is a {type(value).__name__}.", "Return plain numbers: tensor.item().")
    primary = metrics[objective.primary]
    if not math.isfinite(primary):
        raise Failed(f"{objective.primary} of random logits is {primary}.", "Return a finite number.")
    json.dumps(metrics)


def can_be_descended(subject: Subject) -> None:
    """Require losses that are differentiable scalars, and a label for each real label from `relabel`."""
    objective, _, logits, labels = _objective(subject)
    relabelled = objective.relabel(labels)
    if len(relabelled) != len(labels):
        raise Failed(f"relabel gives {len(relabelled)} labels for {len(labels)}.", "Give one for each.")
    losses = [("inner_loss", objective.inner_loss, relabelled)]
    if objective.loss is not None:
        losses.append(("loss", objective.loss, labels))
    for name, loss, targets in losses:
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, targets)
        if value.dim() or not torch.isfinite(value):
            raise Failed(f"{name} is {value.tolist()}.", "Return one finite number: the mean over the batch.")
        [gradient] = torch.autograd.grad(value, [leaf], allow_unused=True)
        if gradient is None or not gradient.any():
            raise Failed(f"{name} has no gradient.", "Compute it with torch, from the logits.")


def _load(subject: Subject) -> ImageSplits | Splits:
    component = subject.component
    try:
        loaded = component.call(component.validated({}), data_dir(), False)
    except MissingPrerequisite as reason:
        raise Skipped(f"its data are not here: {reason.message}") from reason
    if not isinstance(loaded, ImageSplits | Splits):
        raise Failed(f"it returns {type(loaded).__name__}.", "Return a ddbench.ImageSplits, or ddbench.Splits.")
    return loaded


def loads_what_it_declares(subject: Subject) -> None:
    """Require examples and int64 labels of the declared shape and classes, every class in both splits.

    Images are uint8; of another modality, what it makes of the examples has the declared shape.
    """
    loaded, facts = _load(subject), subject.component.facts
    classes, shape = len(facts["classes"]), tuple(facts["sample_shape"])
    if isinstance(loaded, ImageSplits):
        loaded.validate("it", classes, shape)
    else:
        loaded.validate("it", classes)
        modality = modality_of(subject.component, subject.catalog)
        train, _ = modality.call({}, loaded, request_of(subject.component, modality))
        if train.info.sample_shape != shape:
            raise Failed(f"its examples have the shape {list(train.info.sample_shape)}.", "Declare it as sample_shape.")
    for split, labels in (("train", loaded.train_labels), ("test", loaded.test_labels)):
        present = set(labels.tolist())
        if present != set(range(classes)):
            raise Failed(
                f"the {split} split has the labels {sorted(present)} of {classes} classes.",
                "Declare the classes that there are, or load examples of each.",
            )


def loads_the_same_again(subject: Subject) -> None:
    """Require the same content hash, which rows carry, when it loads again, and unchanged global state."""
    first = _load(subject).content_hash()
    with untouched_globals():
        again = _load(subject).content_hash()
    if first != again:
        raise Failed("loading it twice gives other images or another order.", "Sort files, and draw nothing.")


def _builds(subject: Subject) -> list[tuple[tuple[int, ...], nn.Module]]:
    """Build the network for each size of image that it supports."""
    built: list[tuple[tuple[int, ...], nn.Module]] = []
    for shape in SHAPES:
        info = _info(shape)
        try:
            built.append((shape, subject.component.call(subject.component.validated({}), info)))
        except (Unsupported, UsageError):
            continue
    if not built:
        raise Failed("it supports no size of image.", f"Take one of {', '.join(map(str, SHAPES))}.")
    return built


def _info(shape: tuple[int, ...]) -> DatasetInfo:
    names = tuple(f"class {i}" for i in range(CLASSES))
    return DatasetInfo("tiny", names, shape, (0.0,) * shape[0], (1.0,) * shape[0], "image", "", False)


def maps_images_to_classes(subject: Subject) -> None:
    """Require a module that gives one finite number per class, the same for the same weights."""
    for shape, module in _builds(subject):
        if not isinstance(module, nn.Module):
            raise Failed(f"it returns {type(module).__name__}.", "Return a torch.nn.Module.")
        images = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), evaluation_mode(module):
            logits, again = module(images), module(images)
        if tuple(logits.shape) != (2, CLASSES) or not torch.isfinite(logits).all():
            raise Failed(f"for images {list(shape)} it gives {list(logits.shape)}.", "Give one number for each class.")
        if not torch.equal(logits, again):
            raise Failed("it gives other numbers for the same images.", "Be deterministic in evaluation mode.")


def can_be_differentiated_twice(subject: Subject) -> None:
    """Require a Hessian-vector product, which distillation through training needs."""
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
    # A backward pass without a derivative can also end the path without an error.
    if not any(g is not None and g.any() for g in second):
        raise Failed("its gradient does not depend on its weights.", "Use layers with a second derivative.")


def leaves_global_state_alone(subject: Subject) -> None:
    """Require that building it changes no global state but torch's random state, which the harness restores."""
    shape, _ = _builds(subject)[0]
    with untouched_globals():
        random_state = torch.get_rng_state()
        subject.component.call(subject.component.validated({}), _info(shape))
        torch.set_rng_state(random_state)


OBJECTIVE: Sequence[Check] = (*EVERY, measures_in_numbers, can_be_descended)
DATASET: Sequence[Check] = (*EVERY, loads_what_it_declares, loads_the_same_again)
NETWORK: Sequence[Check] = (*EVERY, maps_images_to_classes, can_be_differentiated_twice, leaves_global_state_alone)
