"""Arrays: floats of any shape, such as features of other networks or rows of a table."""

import torch

from ddbench.contract.component import modality
from ddbench.contract.examples import ExampleSet, ExamplesRequest, ImageSplits, Splits
from ddbench.contract.presentation import Presentation
from ddbench.contract.sets import DistilledSet
from ddbench.errors import PluginError, UsageError

SHOWN = 8
"""Values of an example that its line shows."""


def values_of(distilled: DistilledSet) -> Presentation:
    """Return the first values of each example, as they are: normalised."""
    inputs = distilled.flat()[0].flatten(1)
    more = " ..." if inputs.shape[1] > SHOWN else ""
    return Presentation(lines=tuple(" ".join(f"{v:.3g}" for v in row[:SHOWN].tolist()) + more for row in inputs))


def random_arrays(generator: torch.Generator) -> Splits:
    """Return a few vectors of noise, as an example of this modality."""
    values, labels = torch.randn(8, 5, generator=generator), torch.arange(8) % 2
    return Splits(values[:4], labels[:4], values[4:], labels[4:])


@modality(present=values_of, example=random_arrays)
def array(splits: Splits | ImageSplits, request: ExamplesRequest) -> tuple[ExampleSet, ExampleSet]:
    """Floats of any shape, normalised along the first axis of an example: each value of a vector, each channel."""
    request.refuse_image_settings()
    if not isinstance(splits, Splits) or not splits.train_inputs.is_floating_point():
        raise PluginError(f"{request.name} holds arrays and gives no floats.", "Return ddbench.Splits of floats.")
    train, test = splits.train_inputs.float(), splits.test_inputs.float()
    if not (torch.isfinite(train).all() and torch.isfinite(test).all()):
        raise UsageError(
            f"{request.name} has values that are not finite.", "Replace NaN and infinity, or leave out the examples."
        )
    flat = train.transpose(0, 1).flatten(1)
    mean, std = flat.mean(1), flat.std(1, correction=0)
    # A value that is the same in all examples becomes 0.
    std = torch.where(std > 1e-6 * mean.abs().clamp_min(1e-6), std, torch.ones_like(std))
    shape = (-1, *[1] * (train.dim() - 2))
    mean_, std_ = mean.view(shape), std.view(shape)
    return request.examples(
        splits, (train - mean_) / std_, (test - mean_) / std_, mean=tuple(mean.tolist()), std=tuple(std.tolist())
    )
