"""Files of no family: a dict with `images` and `labels`, whose scale and labels only the user knows."""

from typing import Any

from ddbench.errors import UsageError
from ddbench.formats.reading import Family, Reading, Source
from ddbench.formats.released_set import ReleasedSet
from ddbench.formats.tensor_files import load

NAMES = (("images", "labels"), ("image", "label"), ("data", "target"), ("x", "y"))


def names_in(content: Any) -> tuple[str, str] | None:
    """Return the names under which a dict has images and labels; None where it has neither."""
    if not isinstance(content, dict):
        return None
    return next((pair for pair in NAMES if all(name in content for name in pair)), None)


def _read(source: Source) -> ReleasedSet:
    source.one_set()
    content = load(source.path)
    names = names_in(content)
    if names is None:
        raise UsageError(f"{source.path} has no tensors images and labels.", "See: ddbench evaluate --help")
    return ReleasedSet.checked(source.path, *(content[name] for name in names))


def _assumed(source: Source, released: ReleasedSet) -> Reading:
    return Reading(notes=("Nothing is known of this file's authors: all of the above is assumed.",))


FAMILIES = (Family("plain", "a dict with images and labels", _read, _assumed),)
