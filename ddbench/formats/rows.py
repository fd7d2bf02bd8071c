"""Files of RaT-BPTT and its relatives (PoDD, AT-BPTT): images as rows of values.

`.h5` with `data [n, channels * height * width]` and, where labels are learned, `label [n, classes]`; or a checkpoint
`.pth` with these under `model_state_dict` (`module.data.weight`) and `label_state_dict`, as written by `base.py` of
https://github.com/fengyzpku/Simple_Dataset_Distillation. Without labels, rows are in the order of the classes, each
class together.
"""

from typing import Any

import torch
from torch import Tensor

from ddbench.errors import UsageError
from ddbench.formats.arrays import read_hdf5
from ddbench.formats.reading import Family, Reading, Source
from ddbench.formats.released_set import ReleasedSet, are_distributions
from ddbench.formats.tensor_files import load

SUFFIXES = (".h5", ".hdf5")


def matches(content: Any) -> bool:
    """Return True for a checkpoint with images as the weight of an embedding."""
    return isinstance(content, dict) and isinstance(content.get("model_state_dict"), dict)


def _read(source: Source) -> ReleasedSet:
    source.one_set()
    path = source.path
    if path.suffix in SUFFIXES:
        arrays = read_hdf5(path)
        images, labels = (torch.from_numpy(arrays[name]) if name in arrays else None for name in ("data", "label"))
    else:
        content = load(path)
        content = content if isinstance(content, dict) else {}
        images = _only(content.get("model_state_dict"), "data.weight")
        labels = _only(content.get("label_state_dict"), "weight")
    if not isinstance(images, Tensor) or images.dim() < 2:
        raise UsageError(f"{path} has no rows of images under 'data'.", "Fetch it again.")
    rows = images.detach().flatten(1)
    if labels is not None:
        return ReleasedSet.checked(path, rows, labels, flat=True)
    count = len(source.classes)
    if len(rows) % count:
        raise UsageError(
            f"{path} has {len(rows)} images without labels, no multiple of the {count} classes of {source.dataset}.",
            "Name the dataset they were made for.",
        )
    order = torch.arange(count).repeat_interleave(len(rows) // count)
    return ReleasedSet.checked(path, rows, order, flat=True).noting("Labels follow from the order: class by class.")


def _only(state: Any, name: str) -> Any:
    """Return the tensor of a state dict whose name ends in `name`; None where there is none."""
    tensors = state.items() if isinstance(state, dict) else ()
    return next((tensor for key, tensor in tensors if str(key).endswith(name)), None)


def _rows(source: Source, released: ReleasedSet) -> Reading:
    soft = released.labels.is_floating_point() and not are_distributions(released.labels)
    notes = (
        "The authors train students with Adam and flips; train/v1 is close to it.",
        "If the images are whitened, as the authors' --zca does, say --file-whitening zca.",
    )
    return Reading(labels="regression" if soft else None, protocol="train/v1", notes=notes)


FAMILIES = (Family("rat_bptt", "unrolled through random windows (Feng et al. 2024)", _read, _rows),)
