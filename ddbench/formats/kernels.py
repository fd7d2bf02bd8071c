"""Files of kernel methods: KIP and FRePo. `.npz` archives with images `[n, height, width, channels]` and labels.

KIP, as released at https://github.com/google-research/google-research/tree/master/kip: arrays `images` and `labels`;
names end in `_zca` or `_nozca`, `_l` (learned labels) or `_nol`. Labels are one-hot less their mean, 1 / classes, or
learned numbers. FRePo (https://github.com/yongchaoz/FRePo): arrays `image` and `label`, learned numbers; all datasets
but MNIST and Fashion-MNIST are whitened.
"""

from dataclasses import replace

from ddbench.contract.set_checks import LabelKind
from ddbench.contract.spec import Whitening
from ddbench.errors import UsageError
from ddbench.formats.arrays import read_arrays
from ddbench.formats.reading import Family, Reading, Source
from ddbench.formats.released_set import ReleasedSet, are_distributions

GREY = ("mnist", "fashion_mnist")
KIP_ARRAYS, FREPO_ARRAYS = ("images", "labels"), ("image", "label")


def _read_kip(source: Source) -> ReleasedSet:
    released = _read(source, KIP_ARRAYS)
    labels = released.labels
    if not labels.is_floating_point() or not are_distributions(labels + 1 / labels.shape[1]):
        return released
    labels = labels + 1 / labels.shape[1]
    if bool(labels.amax(-1).ge(1 - 1e-3).all()):
        hard = replace(released, labels=labels.argmax(-1))
        return hard.noting("Labels are one-hot less 1/classes: taken as class numbers.")
    soft = replace(released, labels=labels)
    return soft.noting("Labels are probabilities less 1/classes: taken as probabilities, with 1/classes added.")


def _read_frepo(source: Source) -> ReleasedSet:
    return _read(source, FREPO_ARRAYS)


def _read(source: Source, names: tuple[str, str]) -> ReleasedSet:
    source.one_set()
    arrays = read_arrays(source.path, names)
    return ReleasedSet.checked(source.path, arrays[names[0]], arrays[names[1]])


def _kip(source: Source, released: ReleasedSet) -> Reading:
    name = source.path.stem.lower()
    whitening: Whitening | None = "zca-kip" if "_zca" in name or name.startswith("zca") else None
    notes = ["krr/v1 has the kernel of a fully connected network; KIP's published figures are of convolutional ones."]
    if whitening is None and "nozca" not in name:
        notes.append("The name does not say whether images are whitened; if so, say --file-whitening zca-kip.")
    return Reading(whitening=whitening, labels=_learned(released), protocol="krr/v1", notes=tuple(notes))


def _frepo(source: Source, released: ReleasedSet) -> Reading:
    note = "FRePo's students learn these labels with a squared loss; krr/v1 solves for them with another kernel."
    whitening: Whitening | None = None if source.dataset in GREY else "zca-kip"
    return Reading(whitening=whitening, labels=_learned(released), protocol="krr/v1", notes=(note,))


def _learned(released: ReleasedSet) -> LabelKind | None:
    """Return the kind of labels that are neither class numbers nor probabilities."""
    learned = released.labels.is_floating_point() and not are_distributions(released.labels)
    return "regression" if learned else None


FAMILIES = (
    Family("kip", "kernel inducing points (Nguyen et al. 2021)", _read_kip, _kip),
    Family("frepo", "neural feature regression (Zhou et al. 2022)", _read_frepo, _frepo),
)


def named(arrays: list[str]) -> str:
    """Return the family whose arrays an archive has. Raises `UsageError` for other arrays."""
    if set(KIP_ARRAYS) <= set(arrays):
        return "kip"
    if set(FREPO_ARRAYS) <= set(arrays):
        return "frepo"
    raise UsageError(
        f"the archive has no arrays images and labels, but {', '.join(sorted(arrays)) or 'none'}.", "Fetch it again."
    )
