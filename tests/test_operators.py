import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ddbench.engine.cpu import operators
from ddbench.networks import fast_operators


@pytest.fixture(autouse=True)
def _small_inputs_too(monkeypatch):
    monkeypatch.setattr(operators, "MANY_VALUES", 0)


def images(*shape: int, ties: bool = False) -> torch.Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (drawn.round() if ties else drawn).requires_grad_()


def first_and_second(function, x: torch.Tensor) -> list[torch.Tensor]:
    """Values, gradient and the gradient's own derivative along a direction that depends on x."""
    y = function(x)
    [gradient] = torch.autograd.grad((y * y.detach().cos() * y).sum(), x, create_graph=True)
    [second] = torch.autograd.grad((gradient * gradient.detach().sin()).sum(), x)
    return [y.detach(), gradient.detach(), second]


POOLS = [
    nn.MaxPool2d(2), nn.MaxPool2d(3, 2, padding=1), nn.MaxPool2d(3, 2), nn.MaxPool2d((2, 3), (1, 2)), nn.MaxPool2d(2, 3),
]  # fmt: skip
NORMS = [
    nn.LocalResponseNorm(4, alpha=0.001 / 9, beta=0.75, k=1), nn.LocalResponseNorm(3, alpha=0.7, beta=0.6, k=2),
    nn.LocalResponseNorm(2, alpha=0.5), nn.LocalResponseNorm(5, alpha=2.0),
]  # fmt: skip


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_max_pooling_is_torchs_to_the_bit_of_equals(pool, ties):
    x = images(2, 3, 8, 10, ties=ties)
    expected = first_and_second(pool, x)
    with fast_operators():
        assert pool(x).grad_fn.name() == "_WindowMaximumBackward"
        actual = first_and_second(pool, x)
    assert torch.equal(actual[0], expected[0])
    for result, reference in zip(actual[1:], expected[1:], strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "pool", [nn.AvgPool2d(2), nn.AvgPool2d((1, 5)), nn.AvgPool2d((4, 1)), nn.AvgPool2d(1)], ids=str
)
def test_average_pooling_is_torchs(pool):
    x = images(2, 3, 8, 10)
    expected = first_and_second(pool, x)
    with fast_operators():
        assert pool(x).grad_fn.name() == "_AverageBackward"
        actual = first_and_second(pool, x)
    for result, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_response_normalisation_is_torchs(norm):
    x = images(2, 6, 4, 4)
    expected = first_and_second(norm, x)
    with fast_operators():
        assert norm(x).grad_fn.name() == "_ResponseNormBackward"
        actual = first_and_second(norm, x)
        assert torch.autograd.gradgradcheck(norm, images(1, 5, 2, 2))
    for result, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-12, atol=1e-12)


def test_nan_is_not_hidden():
    x = torch.tensor([[[[1.0, 2.0], [torch.nan, 0.0]]]])
    with fast_operators():
        assert F.max_pool2d(x, 2).isnan().all()


def test_other_calls_go_to_torch(monkeypatch):
    x = images(2, 3, 9, 9)
    with fast_operators():
        values, indices = F.max_pool2d(x, 2, return_indices=True)
        assert indices.shape == values.shape
        torch.testing.assert_close(F.max_pool2d(x, 2, ceil_mode=True), nn.MaxPool2d(2, ceil_mode=True)(x))
        assert F.max_pool2d(x[0], 2).shape == (3, 4, 4)
        assert F.local_response_norm(x[0], 2).shape == (3, 9, 9)
        for pool in (
            nn.AvgPool2d(2),
            nn.AvgPool2d(3, 2),
            nn.AvgPool2d(3, padding=1),
            nn.AvgPool2d(3, divisor_override=5),
        ):
            assert pool(x).grad_fn.name() == "AvgPool2DBackward0"
        assert F.avg_pool2d(x[0], 3).shape == (3, 3, 3)
        monkeypatch.setattr(operators, "MANY_VALUES", x.numel() + 1)
        assert F.max_pool2d(x, 2).grad_fn.name() == "MaxPool2DWithIndicesBackward0"
    assert F.local_response_norm(x, 2).grad_fn.name() != "_ResponseNormBackward"
