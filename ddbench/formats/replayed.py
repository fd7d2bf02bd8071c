"""Files of the original dataset distillation: `results.pth` of Wang et al. 2018 and of Sucholutsky and Schonlau 2021.

A list over steps and epochs of `(data, label, lr)`, as written by `utils/io.py` of
https://github.com/SsnL/dataset-distillation: the images of a step come again in every epoch, with another rate. Images
are normalised by mean and std of the dataset; soft labels are free numbers, whose inner loss is
-sum_c y_c log p_c.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ddbench.errors import UsageError
from ddbench.formats.reading import Family, Reading, Source
from ddbench.formats.released_set import ReleasedSet, are_distributions
from ddbench.formats.tensor_files import load


def matches(content: Any) -> bool:
    """Return True for a list of triples of tensors."""
    return (
        isinstance(content, list | tuple)
        and bool(content)
        and all(isinstance(step, list | tuple) and len(step) == 3 for step in content)
    )


def _read(source: Source) -> ReleasedSet:
    source.one_set()
    content = load(source.path)
    if not matches(content) or not all(isinstance(x, Tensor) for step in content for x in step[:2]):
        raise UsageError(f"{source.path} is not a list of (images, labels, rate).", "Fetch it again.")
    shapes = {(tuple(images.shape), tuple(labels.shape)) for images, labels, _ in content}
    if len(shapes) > 1:
        raise UsageError(
            f"the steps in {source.path} have images of different shapes.",
            "ddbench scores steps of equal size; save them again with as many images in each.",
        )
    rates = torch.stack([_rate(source, step[2]) for step in content])
    steps = _period(content)
    images, labels = (torch.cat([step[i].detach() for step in content[:steps]]) for i in (0, 1))
    released = ReleasedSet.checked(source.path, images, labels)
    return replace(released, steps=steps, lrs=rates.view(-1, steps)).noting(
        f"The file has {len(content)} gradient steps: {steps} batch{'' if steps == 1 else 'es'}, "
        f"{len(content) // steps} times in order."
    )


def _rate(source: Source, value: Any) -> Tensor:
    rate = torch.as_tensor(value, dtype=torch.float32) if isinstance(value, Tensor | float | int) else torch.empty(0)
    if rate.numel() != 1 or not torch.isfinite(rate).all():
        raise UsageError(f"a step in {source.path} has no learning rate.", "Fetch the file again.")
    return rate.detach().reshape(())


def _period(content: Sequence[Any]) -> int:
    """Return after how many steps the images and labels come again."""

    def same(a: Any, b: Any) -> bool:
        return a is b or (torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]))

    for period in range(1, len(content)):
        if len(content) % period == 0 and all(same(step, content[i % period]) for i, step in enumerate(content)):
            return period
    return len(content)


def _replayed(source: Source, released: ReleasedSet) -> Reading:
    soft = released.labels.is_floating_point() and not are_distributions(released.labels)
    note = "The authors initialise networks by Xavier's rule; so does the init distribution `random`."
    return Reading(labels="regression" if soft else None, protocol="replay/v1", notes=(note,))


FAMILIES = (Family("wang2018", "steps and rates, unrolled (Wang et al. 2018)", _read, _replayed),)
