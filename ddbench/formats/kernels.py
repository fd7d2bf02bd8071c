"""Files of kernel inducing points (KIP): `.npz` archives with the arrays `images` and `labels`.

As released at https://github.com/google-research/google-research/tree/master/kip:
images `[n, height, width, channels]`, labels `[n, classes]`. The labels are targets of a kernel regression: one-hot or
learned labels less their mean, 1 / classes.
"""

from pathlib import Path

import numpy as np
import torch

from ddbench.errors import UsageError
from ddbench.formats.released_set import ReleasedSet, are_distributions


def matches(path: Path) -> bool:
    """Return True for a path that ends in `.npz`."""
    return path.suffix == ".npz"


def read(path: Path) -> ReleasedSet:
    """Read both arrays; labels less their mean become hard labels or probabilities again."""
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
    except Exception as error:
        # A file of another kind can make the reader raise any type of exception.
        raise UsageError(f"{path} has no arrays images and labels: {error}.", "Fetch it again.") from error
    channels_last = images.dim() == 4 and images.shape[-1] in (1, 3)
    stored = ReleasedSet.checked(path, images.permute(0, 3, 1, 2) if channels_last else images, labels)
    if not labels.is_floating_point() or not are_distributions(labels + 1 / labels.shape[1]):
        return stored
    labels = labels + 1 / labels.shape[1]
    if bool(labels.amax(-1).ge(1 - 1e-3).all()):
        notice = f"Labels of {path} are one-hot less 1/classes: taken as hard labels."
        return ReleasedSet(stored.images, labels.argmax(-1), notices=(notice,))
    notice = f"Labels of {path} are probabilities less 1/classes: taken as soft labels, with 1/classes added."
    return ReleasedSet(stored.images, labels, notices=(notice,))
