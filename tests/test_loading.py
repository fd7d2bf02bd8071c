from typing import Annotated

import pydantic
import pytest
import torch

import ddbench
from ddbench.contract.examples import ImageSplits
from ddbench.contract.spec import Choice
from ddbench.errors import PluginError, UsageError
from ddbench.modalities.image import conversion, converted
from ddbench.pipeline.data import load_examples


def splits(*shape: int) -> ImageSplits:
    images = torch.randint(0, 256, (5, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSplits(images, torch.zeros(5, dtype=torch.int64), images[:2], torch.zeros(2, dtype=torch.int64), False)


def test_grey_becomes_colour_and_back():
    grey = splits(1, 6, 6)
    colour = converted(grey, (3, 6, 6))
    assert torch.equal(colour.train_images, grey.train_images.expand(-1, 3, -1, -1))
    assert torch.equal(converted(colour, (1, 6, 6)).train_images, grey.train_images)
    assert torch.equal(colour.test_images, colour.train_images[:2])
    assert colour.content_hash() != grey.content_hash()
    assert not colour.partial


def test_resizing_keeps_flat_areas_and_means():
    flat = ImageSplits(*[torch.full((2, 1, 16, 16), 77, dtype=torch.uint8), torch.zeros(2).long()] * 2)
    assert (converted(flat, (1, 28, 28)).train_images == 77).all()
    given = splits(3, 32, 32)
    smaller = converted(given, (3, 16, 16))
    assert smaller.train_images.shape == (5, 3, 16, 16)
    assert float(smaller.train_images.float().mean()) == pytest.approx(float(given.train_images.float().mean()), abs=1)


def test_what_cannot_be_converted():
    with pytest.raises(UsageError, match="2 channels cannot be converted to 3"):
        converted(splits(2, 4, 4), (3, 4, 4))


def test_what_a_plugin_loads_must_be_what_it_declares(catalog):
    @ddbench.dataset(classes=("a", "b"), sample_shape=(1, 6, 6), network="linear")
    def toy(
        root: object, download: bool, *, size: Annotated[int, pydantic.Field(description="pixels a side")] = 6
    ) -> ImageSplits:
        """Images that are made up."""
        return splits(1, size, size)

    def loaded(toy: object, **options: int) -> tuple[int, ...]:
        component = ddbench.component_of(toy, "dataset")
        return load_examples(component, Choice(name="toy", options=options), None, download=False, catalog=catalog)[
            0
        ].info.sample_shape

    assert loaded(toy) == loaded(toy, size=6) == (1, 6, 6)
    # An option may give images another shape than the one that is declared without it.
    assert loaded(toy, size=8) == (1, 8, 8)

    @ddbench.dataset(classes=("a", "b"), sample_shape=(1, 6, 6), network="linear")
    def wrong(root: object, download: bool) -> ImageSplits:
        """Images of another height than declared."""
        return splits(1, 5, 6)

    with pytest.raises(PluginError, match=r"dataset 'wrong' .*\[1, 5, 6\] where \[1, 6, 6\] is expected"):
        loaded(wrong)


def test_conversion_in_words():
    assert conversion((1, 16, 16), (3, 28, 28)) == "grey to RGB, 16x16 to 28x28 pixels"
    assert conversion((3, 8, 8), (1, 8, 8)) == "RGB to grey"
    assert conversion((1, 8, 8), (1, 8, 8)) == ""
