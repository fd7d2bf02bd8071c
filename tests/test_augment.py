"""Augmentation against the numbers of the published implementation, and what the draws must satisfy."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ddbench import augment
from ddbench.engine.augment import OPERATIONS, STRATEGIES
from ddbench.errors import UsageError

PUBLISHED = dict(np.load(Path(__file__).parent / "golden" / "field_dsa.npz"))
CASES = [str(name) for name in PUBLISHED["case_names"]]
SEEDS = [int(seed) for seed in PUBLISHED["full_seeds"]]
GENERATOR = torch.Generator().manual_seed(0)


def tensor(key: str) -> torch.Tensor:
    return torch.from_numpy(PUBLISHED[key].astype(np.float64))


def images_of(case: str) -> torch.Tensor:
    return tensor("x_second" if case.endswith("second") else "x_odd" if case.endswith("odd") else "x")


def spans(operation: str, shape: torch.Size) -> list[tuple[int, int]] | None:
    """The published code draws whole numbers from these ranges, rows and then columns; None: uniform numbers."""
    if operation == "crop":
        reach = [int(side * 0.125 + 0.5) for side in shape[2:]]
        return [(-most, most + 1) for most in reach]
    if operation == "cutout":
        return [(0, side + (1 - int(side * 0.5 + 0.5) % 2)) for side in shape[2:]]
    return None


def uniform(operation: str, draws: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The numbers in [0, 1) that stand for the published draws `[numbers, n]`."""
    ranges = spans(operation, shape)
    if ranges is None:
        return draws
    return torch.stack([(row - low + 0.5) / (high - low) for row, (low, high) in zip(draws, ranges, strict=True)])


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-8) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("case", CASES)
def test_an_operation_agrees_with_the_published_one(case: str):
    operation, images = case.partition("_")[0], images_of(case)
    count = OPERATIONS[operation][1]
    draws = torch.stack([tensor(f"{case}_draw{k}") for k in range(count)])
    if "siamese" in case:
        draws = draws[:, :1]
    params = augment.Augmentation((operation,), uniform(operation, draws, images.shape))
    images.requires_grad_()
    transformed = augment.apply(images, params)
    close(transformed, tensor(f"{case}_out"))
    if f"{case}_vjp" in PUBLISHED:
        (gradient,) = torch.autograd.grad((tensor("cotangent") * transformed).sum(), images)
        close(gradient, tensor(f"{case}_vjp"))


def test_colour_is_brightness_then_saturation_then_contrast():
    params = augment.Augmentation(STRATEGIES["color"], tensor("color_draw"))
    close(augment.apply(tensor("x"), params), tensor("color_out"))


def from_seed(names: tuple[str, ...], seed: int, shape: torch.Size) -> augment.Augmentation:
    """One amount for all images, each number drawn by its own seed, as the published code does."""
    draws = []
    for operation in names:
        ranges = spans(operation, shape)
        for number in range(OPERATIONS[operation][1]):
            generator = torch.Generator().manual_seed(seed + len(draws))
            if ranges is None:
                draws.append(torch.rand(shape[0], 1, generator=generator)[0].double())
            else:
                low, high = ranges[number]
                whole = torch.randint(low, high, (shape[0], 1), generator=generator)[0]
                draws.append((whole - low + 0.5) / (high - low))
    return augment.Augmentation(names, torch.stack(draws).view(-1, 1))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_whole_call_agrees_with_the_published_one(seed: int):
    names = augment.DSA.split("_")
    generator = torch.Generator().manual_seed(seed)
    choice = names[int(torch.randint(0, len(names), (1,), generator=generator))]
    assert choice == names[PUBLISHED["full_choice"][SEEDS.index(seed)]]
    images = tensor("x_second")
    params = from_seed(STRATEGIES[choice], seed + 1, images.shape)
    close(augment.apply(images, params), tensor(f"full_out_seed{seed}"), 1e-6)  # stored as float32


def test_all_operations_in_order_agree_with_the_published_mode():
    params = augment.draw(augment.DSA, torch.Generator(), every=True)
    images = tensor("x")
    published = from_seed(params.operations, int(PUBLISHED["multiple_seed"]), images.shape)
    assert published.draws.shape == params.draws.shape
    close(augment.apply(images, published), tensor("multiple_out"))


def test_two_calls_without_a_seed_agree_with_the_published_ones():
    draws, images = iter(tensor("unseeded_draws").tolist()), tensor("x")
    names = augment.DSA.split("_")
    for k in (1, 2):
        operation = names[int(next(draws))]
        assert operation in OPERATIONS
        count = OPERATIONS[operation][1]
        rows = torch.tensor([[next(draws) for _ in images] for _ in range(count)], dtype=torch.float64)
        params = augment.Augmentation((operation,), uniform(operation, rows, images.shape))
        close(augment.apply(images, params), tensor(f"unseeded_out{k}"))


def test_one_draw_serves_batches_of_any_size_side_and_number_of_channels():
    generator = torch.Generator().manual_seed(1)
    seen = set()
    for _ in range(20):
        params = augment.draw(augment.DSA, generator)
        seen.add(params.operations)
        for shape in ((5, 3, 16, 16), (3, 1, 8, 8)):
            images = torch.randn(shape)
            transformed = augment.apply(images, params)
            assert transformed.shape == images.shape and transformed.dtype == images.dtype
            torch.testing.assert_close(augment.apply(images[:1], params), transformed[:1])
    assert seen == {STRATEGIES[name] for name in augment.DSA.split("_")}


def test_each_image_has_an_amount_of_its_own():
    image = torch.randn(1, 3, 12, 12, generator=GENERATOR).expand(6, -1, -1, -1)
    params = augment.draw("rotate", GENERATOR, images=6)
    transformed = augment.apply(image, params)
    assert len({tuple(part.flatten().tolist()) for part in transformed}) == 6
    with pytest.raises(UsageError, match="drawn for 6 images was applied to 5"):
        augment.apply(image[:5], params)


def test_whole_numbers_cover_their_range_and_no_more():
    edge = torch.tensor([[0.0, 1 - 2**-53]] * 2, dtype=torch.float64)
    images = torch.arange(1.0, 65).view(1, 1, 8, 8).expand(2, -1, -1, -1)
    first, last = augment.apply(images, augment.Augmentation(("crop",), edge))
    assert first[0, 1:, 1:].equal(images[0, 0, :-1, :-1]) and last[0, :-1, :-1].equal(images[0, 0, 1:, 1:])
    first, last = augment.apply(images, augment.Augmentation(("cutout",), edge))
    assert int((first == 0).sum()) == int((last == 0).sum()) == 4


def test_an_unknown_operation_is_named():
    with pytest.raises(UsageError, match="unknown operation 'fliip'. Did you mean") as caught:
        augment.draw("crop_fliip", GENERATOR)
    assert "color, crop, cutout, flip, scale, rotate" in caught.value.hint
