"""Images that stay in their files: a tensor that reads them when it is indexed."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ddbench.errors import Unsupported

READ_AT_ONCE = 2**28
"""Bytes of images, as float32, up to which any operation reads all of them."""

Read = Callable[[Int[Tensor, " n"]], UInt8[Tensor, "n c h w"]]
"""`read(indices)`, the pixels of the images of these numbers, on the CPU."""


class StoredImages(Tensor):
    """Normalised images `[n, channels, height, width]` float32 that are read from their files when they are needed.

    It has the shape, the type and the device of a tensor, and none of its memory. `images[indices]` reads these images
    alone. `torch.split(images, n)` and slices stay in files. Any other operation reads all images where they take at
    most `READ_AT_ONCE` bytes, and raises `Unsupported` where they take more.
    """

    _reader: Read
    _chosen: Int[Tensor, " n"]
    _mean: tuple[float, ...]
    _std: tuple[float, ...]
    _place: torch.device
    _identity: str

    @classmethod
    def make(
        cls,
        read: Read,
        indices: Int[Tensor, " n"],
        sample_shape: Sequence[int],
        identity: str,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
        device: torch.device | None = None,
    ) -> "StoredImages":
        """Return images whose pixels `read` gives, in [0, 1], less `mean` and divided by `std`.

        `identity` is a text that changes with the content of the files.
        """
        empty = torch.empty((len(indices), *sample_shape), device="meta")
        images: StoredImages = Tensor._make_subclass(cls, empty)
        images._reader, images._chosen, images._identity = read, indices, identity
        images._mean, images._std, images._place = mean, std, device or torch.device("cpu")
        return images

    @property
    def identity(self) -> str:
        """A text that changes with the content of the files, and with the choice of images."""
        return f"{self._identity} {self._chosen.tolist() if len(self._chosen) < 1000 else len(self._chosen)}"

    def subset(self, indices: Tensor | slice) -> "StoredImages":
        """Return some of the images, still in their files."""
        chosen = self._chosen[indices if isinstance(indices, slice) else indices.cpu()]
        return self._like(chosen)

    def normalised(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "StoredImages":
        """Return the same images, normalised per channel."""
        return self._like(self._chosen, mean=mean, std=std)

    def pixels(self, indices: Int[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        """Read some of the images as they are in their files."""
        return self._reader(self._chosen[indices.cpu()])

    def load(self) -> Float[Tensor, "n c h w"]:
        """Read all images; they are normalised on the device. Raises `Unsupported` where they do not fit."""
        with torch._C.DisableTorchFunctionSubclass():
            shape = tuple(self.shape)
        size = 4 * math.prod(shape)
        if size > READ_AT_ONCE:
            raise Unsupported(
                f"this needs all {shape[0]} images in memory, {size / 1e9:.1f} GB; they are read in batches from disk.",
                "Take a method that works in batches, fewer images, or smaller ones with --set dataset.size=64.",
            )
        if not shape[0]:
            return torch.empty(shape, device=self._place)
        axes = (-1, *[1] * (len(shape) - 2))
        mean, std = (torch.tensor(values, device=self._place).view(axes) for values in (self._mean, self._std))
        return self._reader(self._chosen).to(self._place).float().div_(255).sub_(mean).div_(std)

    def _like(self, indices: Tensor, **changes: Any) -> "StoredImages":
        with torch._C.DisableTorchFunctionSubclass():
            shape = tuple(self.shape)[1:]
        fields = {"mean": self._mean, "std": self._std, "device": self._place, **changes}
        return StoredImages.make(self._reader, indices, shape, self._identity, **fields)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answer questions of shape and type, read what is indexed, and read everything for any other operation."""
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if func == Tensor.device.__get__ and isinstance(first, StoredImages):
            return first._place
        if func in _FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if isinstance(first, StoredImages):
            if func == Tensor.__getitem__:
                return first._indexed(args[1])
            if func in (torch.split, Tensor.split) and not kwargs.get("dim") and isinstance(args[1], int):
                return tuple(first._like(part) for part in torch.split(first._chosen, args[1]))
            if func in (Tensor.detach, Tensor.contiguous):
                return first
            if func == Tensor.to and len(args) == 2 and isinstance(args[1], str | torch.device):
                return first._like(first._chosen, device=torch.device(args[1]))
        if func == Tensor.to and len(args) > 1 and isinstance(args[1], StoredImages):
            return first.to(args[1]._place, torch.float32, **kwargs)  # type: ignore[union-attr]
        with torch._C.DisableTorchFunctionSubclass():
            return func(*_loaded(args), **_loaded(kwargs))

    def _indexed(self, index: Any) -> Tensor:
        """Return the images of an index: a number, a slice, or numbers in a tensor of any shape."""
        if isinstance(index, slice):
            part = self._like(self._chosen[index])
            return part
        if isinstance(index, tuple):
            return self._indexed(index[0])[(slice(None), *index[1:])]
        numbers = torch.as_tensor(index).cpu()
        if numbers.dtype == torch.bool:
            numbers = numbers.nonzero().squeeze(1)
        read = self._like(self._chosen[numbers.reshape(-1)]).load()
        return read.view(*numbers.shape, *read.shape[1:])


_FACTS = {
    Tensor.shape.__get__,  # type: ignore[attr-defined]
    Tensor.dtype.__get__,  # type: ignore[attr-defined]
    Tensor.layout.__get__,  # type: ignore[attr-defined]
    Tensor.requires_grad.__get__,  # type: ignore[attr-defined]
    Tensor.ndim.__get__,  # type: ignore[attr-defined]
    Tensor.is_meta.__get__,  # type: ignore[attr-defined]
    Tensor.dim,
    Tensor.size,
    Tensor.numel,
    Tensor.__len__,
    Tensor.element_size,
    Tensor.is_floating_point,
    Tensor.__hash__,
    torch.is_floating_point,
}


def _loaded(value: Any) -> Any:
    """Return arguments of an operation with stored images read."""
    if isinstance(value, StoredImages):
        return value.load()
    if isinstance(value, list | tuple):
        return type(value)(_loaded(part) for part in value)
    if isinstance(value, dict):
        return {name: _loaded(part) for name, part in value.items()}
    return value
