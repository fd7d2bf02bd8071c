"""Checks of decoders, each on the payload of the decoder's example."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddbench.contract.examples import DatasetInfo
from ddbench.discovery.decoders import Decoders
from ddbench.errors import DdbenchError, Unsupported, UsageError
from ddbench.testing.checks import EVERY, Check, Failed, Subject, untouched_globals

SHAPES = ((1, 8, 8), (3, 32, 32), (3, 7, 9))
"""Shapes of examples; the last one has sides that few factors divide."""


def _info(shape: tuple[int, ...]) -> DatasetInfo:
    return DatasetInfo("tiny", ("a", "b"), shape, (0.5,) * shape[0], (0.25,) * shape[0], "image", "", False)


def _payload(subject: Subject, info: DatasetInfo) -> dict[str, Tensor]:
    component = subject.component
    example = component.facts["example"](info, torch.Generator().manual_seed(0), **component.validated({}))
    if not isinstance(example, dict) or not all(isinstance(tensor, Tensor) for tensor in example.values()):
        raise Failed("its example is not a mapping of tensors.", "Return {name: tensor}.")
    return example


def _supported(subject: Subject) -> list[tuple[Decoders, dict[str, Tensor]]]:
    """Return the decoders for each shape that this one supports, with its payload there."""
    pairs = []
    for shape in SHAPES:
        decoders = Decoders(subject.catalog, _info(shape))
        payload = _payload(subject, decoders.info)
        try:
            decoders(subject.component.name, payload)
        except (Unsupported, UsageError):
            continue
        pairs.append((decoders, payload))
    if not pairs:
        raise Failed("it decodes its example for no shape.", f"Take one of {', '.join(map(str, SHAPES))}.")
    return pairs


def decodes_its_example(subject: Subject) -> None:
    """Require finite float32 inputs of the shape of a sample, the same at each call."""
    for decoders, payload in _supported(subject):
        with untouched_globals():
            inputs, again = (decoders(subject.component.name, payload) for _ in range(2))
        if inputs.dtype != torch.float32 or not torch.isfinite(inputs).all() or not len(inputs):
            raise Failed(f"it gives {inputs.dtype} {list(inputs.shape)}.", "Return finite float32 inputs.")
        if not torch.equal(inputs, again):
            raise Failed("two calls on one payload differ.", "Draw no random numbers: a file must mean one set.")


def can_be_differentiated(subject: Subject) -> None:
    """Require a gradient by each floating-point tensor of its payload."""
    decoders, payload = _supported(subject)[0]
    leaves = {name: t.clone().requires_grad_() if t.is_floating_point() else t for name, t in payload.items()}
    inputs = decoders(subject.component.name, leaves)
    for name, leaf in leaves.items():
        if not leaf.requires_grad:
            continue
        gradient = None
        if inputs.requires_grad:
            [gradient] = torch.autograd.grad(inputs.square().sum(), [leaf], retain_graph=True, allow_unused=True)
        if gradient is None or not gradient.any():
            raise Failed(f"its inputs have no gradient by {name!r}.", "Compute them with torch, from the payload.")


def refuses_other_payloads(subject: Subject) -> None:
    """Require a `UsageError` for a payload without a tensor of its own: files hold payloads."""
    decoders, payload = _supported(subject)[0]
    for name in payload:
        rest = {other: tensor for other, tensor in payload.items() if other != name}
        try:
            decoders(subject.component.name, rest)
        except UsageError:
            continue
        except DdbenchError as error:
            raise Failed(
                f"without {name!r} in the payload: {error.message}", "Raise a ddbench.UsageError that says what lacks."
            ) from error


DECODER: Sequence[Check] = (*EVERY, decodes_its_example, can_be_differentiated, refuses_other_payloads)
