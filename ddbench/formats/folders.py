"""Folders of images: `PATH/CLASS/IMAGE.png`, one sub-folder per class, in the manner of torchvision's `ImageFolder`.

The name of a sub-folder is the name of its class. Pixels lie in [0, 1]: nothing was normalised.
Images with one grey channel keep it, all others become RGB.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddbench.errors import UsageError
from ddbench.formats.released_set import ReleasedSet

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def matches(path: Path) -> bool:
    """Return True for every folder."""
    return path.is_dir()


def read(path: Path) -> ReleasedSet:
    """Read the images of each sub-folder, sorted by name. Raises `UsageError` where there are none or sizes differ."""
    classes = sorted(child for child in path.iterdir() if child.is_dir())
    images, labels = [], []
    for label, folder in enumerate(classes):
        for file in sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES):
            try:
                with Image.open(file) as picture:
                    array = np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise UsageError(f"{file} is not a picture.", "Remove it, or fetch it again.") from error
            images.append(torch.from_numpy(array.copy()).view(*array.shape[:2], -1).permute(2, 0, 1).float() / 255)
            labels.append(label)
    if not images:
        raise UsageError(f"{path} has no folders of images.", "Arrange them as PATH/CLASS/IMAGE.png.")
    if len({image.shape for image in images}) > 1:
        raise UsageError(
            f"the images in {path} differ in size or in channels.", "Convert them to one size and one colour mode."
        )
    names = tuple(folder.name for folder in classes)
    return ReleasedSet(torch.stack(images), torch.tensor(labels), pixels=True, classes=names)
