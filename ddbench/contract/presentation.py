"""Presentations: what people see, read or hear of a distilled set."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Presentation:
    """A distilled set as people perceive it; its modality makes one.

    Attributes:
        pixels: `[total, channels, height, width]` in [0, 1], a picture of each example; None where there are none.
        lines: the examples in words, a line each; `ddbench show` prints them.
        files: further files of the run folder by their name, such as sounds.
    """

    pixels: Float[Tensor, "total c h w"] | None = None
    lines: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
