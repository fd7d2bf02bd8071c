"""Checks of a distilled set against the task that it was made for."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ddbench.contract.sets import DistilledSet
    from ddbench.contract.task import Task

LabelKind = Literal["class", "distribution", "logits", "regression"]
LABEL_KINDS: tuple[LabelKind, ...] = get_args(LabelKind)

EXTRAS_LIMIT = 2**30
"""Maximum bytes of the extras of a set, where the budget sets no bytes."""
STORABLE = {
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.bool,
}  # fmt: skip
"""Types of tensors in payloads and extras."""


def problems(distilled: "DistilledSet", task: "Task") -> Iterator[str]:
    """Yield each problem of a set as the end of a sentence; a later one may follow from the first."""
    yield from _malformed(distilled)
    yield from _named_tensors("payload", distilled.payload)
    yield from _named_tensors("extras", distilled.extras)
    if not distilled.decoder:
        yield from _inputs(distilled, task)
    yield from _labels(distilled, task)
    yield from _weights(distilled)
    yield from _budget(distilled, task)
    yield from _rates(distilled, task)
    if distilled.decoder:
        yield from _inputs(distilled.decoded(task.decode), task)


def _malformed(distilled: "DistilledSet") -> Iterator[str]:
    """Yield fields that are not tensors, and parts of a payload without the others."""
    optional = ("lrs", "weights")
    for name in ("inputs", "labels", *optional):
        tensor = getattr(distilled, name)
        if not isinstance(tensor, Tensor) and not (name in optional and tensor is None):
            yield f"{name} of type {type(tensor).__name__} instead of a tensor"
    if not isinstance(distilled.decoder, str):
        yield f"a decoder of type {type(distilled.decoder).__name__} instead of a name"
    if bool(distilled.payload) != bool(distilled.decoder):
        yield "a payload without a decoder" if distilled.payload else "a decoder without a payload"
    if distilled.decoder and distilled.inputs.numel():
        yield "both inputs and a payload"
    if not _is_json(distilled.decoder_options):
        yield "decoder_options that are not plain values by name, as JSON takes them"


def _is_json(options: object) -> bool:
    try:
        return isinstance(options, Mapping) and json.loads(json.dumps(dict(options))) == dict(options)
    except (TypeError, ValueError):
        return False


def _named_tensors(field: str, tensors: Any) -> Iterator[str]:
    """Yield what is wrong with a mapping of tensors."""
    if not isinstance(tensors, Mapping):
        yield f"{field} of type {type(tensors).__name__} instead of tensors by name"
        return
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not name:
            yield f"{field} with the name {name!r}, which is not text"
        if not isinstance(tensor, Tensor):
            yield f"{field} {name!r} of type {type(tensor).__name__} instead of a tensor"
        elif tensor.layout != torch.strided or tensor.dtype not in STORABLE:
            yield f"{field} {name!r} of type {tensor.dtype} and layout {tensor.layout}, which a file does not hold"
        elif tensor.is_floating_point() and not torch.isfinite(tensor).all():
            yield f"{field} {name!r} with NaN or infinite values"


def _labels(distilled: "DistilledSet", task: "Task") -> Iterator[str]:
    labels, classes, kind = distilled.labels, len(task.info.classes), distilled.label_kind
    if labels.dim() < 2:
        yield f"labels of shape {list(labels.shape)} where [steps, n] or [steps, n, {classes}] is expected"
    shape = tuple(distilled.inputs.shape[:2])
    expected = (*shape, classes) if distilled.soft else shape
    if tuple(labels.shape) != expected:
        yield f"labels of shape {list(labels.shape)} where {list(expected)} is expected"
    if labels.dtype != (torch.float32 if distilled.soft else torch.int64):
        wanted = "torch.float32" if distilled.soft else "torch.int64"
        yield f"labels of type {labels.dtype} instead of {wanted}"
    if not torch.isfinite(labels).all():
        yield "labels with NaN or infinite values"
    if kind is not None and kind not in LABEL_KINDS:
        yield f"labels of the unknown kind {kind!r}, which is not one of {', '.join(LABEL_KINDS)}"
    if kind is not None and (kind != "class") != distilled.soft:
        yield f"labels of the kind {kind!r} with the type {labels.dtype}"
    if not distilled.soft:
        if labels.numel() and not 0 <= labels.min() <= labels.max() < classes:
            yield f"labels outside 0 .. {classes - 1}"
        return
    # Targets of a regression may be any numbers, whether the set says so or the objective.
    if kind == "distribution" or (kind is None and task.objective.kind == "classification"):
        sums = labels.sum(-1)
        if not ((sums - 1).abs().le(1e-4).all() and labels.ge(0).all()):
            yield (
                "soft labels that are not distributions: they must not be negative and sum to one; "
                "others need label_kind='logits' or 'regression'"
            )


def _weights(distilled: "DistilledSet") -> Iterator[str]:
    weights = distilled.weights
    if weights is None:
        return
    expected = distilled.labels.shape[:2]
    if tuple(weights.shape) != tuple(expected):
        yield f"weights of shape {list(weights.shape)} where {list(expected)} is expected"
    if weights.dtype != torch.float32:
        yield f"weights of type {weights.dtype} instead of torch.float32"
    if not torch.isfinite(weights).all():
        yield "weights with NaN or infinite values"
    if weights.lt(0).any():
        yield f"a negative weight, {float(weights.min()):g}"
    if not weights.sum() > 0:
        yield "weights that are all zero"
    if not torch.isfinite(weights.sum()):
        yield "weights whose sum is not finite"


def _budget(distilled: "DistilledSet", task: "Task") -> Iterator[str]:
    classes, budget = len(task.info.classes), task.budget
    stored = distilled.stored_examples(tuple(task.info.sample_shape))
    if distilled.count < 1 or not 1 <= stored <= budget.images_per_class * classes:
        what = f"a payload of the size of {stored} images" if distilled.decoder else f"{stored} images"
        yield f"{what} where the budget is {budget.images_per_class} for each of {classes} classes"
    if budget.bytes is not None and distilled.nbytes > budget.bytes:
        yield f"{distilled.nbytes} bytes where the budget is {budget.bytes} bytes"
    extras = sum(tensor.numel() * tensor.element_size() for tensor in distilled.extras.values())
    if budget.bytes is None and extras > EXTRAS_LIMIT:
        yield f"extras of {extras} bytes where at most {EXTRAS_LIMIT} are kept without a budget in bytes"


def _rates(distilled: "DistilledSet", task: "Task") -> Iterator[str]:
    lrs, steps, budget = distilled.lrs, distilled.labels.shape[0], task.budget
    if lrs is not None and not torch.isfinite(lrs).all():
        yield "lrs with NaN or infinite values"
    if lrs is None or not lrs.dim():
        if budget.total_steps % steps:
            rates = "without rates" if lrs is None else "with one rate"
            yield f"{steps} batches {rates}, which {budget.total_steps} steps cannot cycle through"
        return
    if lrs.dim() != 2 or lrs.shape[1] != steps:
        yield f"lrs of shape {list(lrs.shape)} where [epochs, {steps}] or [] is expected"
    if not 1 <= lrs.numel() <= budget.total_steps:
        yield f"{lrs.numel()} gradient steps where the budget is {budget.total_steps}"


def _inputs(distilled: "DistilledSet", task: "Task") -> Iterator[str]:
    """Yield what is wrong with the inputs of a set that is decoded."""
    shape, sample = tuple(distilled.inputs.shape), tuple(task.info.sample_shape)
    if distilled.inputs.dim() != 2 + len(sample) or shape[2:] != sample:
        yield f"inputs of shape {list(shape)} where [steps, n, {', '.join(map(str, sample))}] is expected"
    if distilled.inputs.dtype != torch.float32:
        yield f"inputs of type {distilled.inputs.dtype} instead of torch.float32"
    if not torch.isfinite(distilled.inputs).all():
        yield "inputs with NaN or infinite values"
