"""Kernels against numbers of the library neural-tangents, and regression against plain linear algebra."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ddbench.engine.kernels import predictions, relu_ntk, ridge_coefficients
from ddbench.errors import DdbenchError

PUBLISHED = dict(np.load(Path(__file__).parent / "golden" / "field_kip.npz"))


def tensor(key: str) -> torch.Tensor:
    return torch.from_numpy(PUBLISHED[key].astype(np.float64))


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= 1e-8 * expected.norm()


@pytest.mark.parametrize("depth", [1, 2])
def test_kernel_loss_and_gradients_agree_with_the_published_formula(depth: int):
    images, labels = tensor("syn_images").requires_grad_(), tensor("syn_labels_centred").requires_grad_()
    rows, inputs = images.flatten(1), tensor("real_images").flatten(1)
    kernel = relu_ntk(rows, depth=depth)
    close(kernel, tensor(f"kernel_ss_depth{depth}"))
    close(relu_ntk(inputs, rows, depth), tensor(f"kernel_ts_depth{depth}"))
    coefficients = ridge_coefficients(kernel, labels, float(PUBLISHED["reg"]))
    answers = predictions(inputs, rows, coefficients, depth, block=50)
    close(answers, tensor(f"predictions_depth{depth}"))
    loss = 0.5 * (answers - tensor("real_labels_centred")).square().mean()
    close(loss, tensor(f"loss_depth{depth}"))
    grad_images, grad_labels = torch.autograd.grad(loss, [images, labels])
    close(grad_images, tensor(f"grad_images_depth{depth}"))
    close(grad_labels, tensor(f"grad_labels_depth{depth}"))


def test_an_example_of_weight_two_counts_as_two():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    targets = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    inputs = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    weights = torch.ones(6, dtype=torch.float64)
    weights[2] = 2
    twice = torch.tensor([0, 1, 2, 2, 3, 4, 5])
    kernel, larger = relu_ntk(rows), relu_ntk(rows[twice], rows[twice])
    # The same absolute ridge: a share of the mean of another diagonal.
    ridge = 1e-2 * kernel.trace() / 6 / (larger.trace() / 7)
    weighted = predictions(inputs, rows, ridge_coefficients(kernel, targets, 1e-2, weights))
    repeated = predictions(inputs, rows[twice], ridge_coefficients(larger, targets[twice], float(ridge)))
    torch.testing.assert_close(weighted, repeated, rtol=1e-6, atol=1e-6)


def test_a_kernel_that_cannot_be_inverted_is_an_error():
    with pytest.raises(DdbenchError, match="cannot be inverted"):
        ridge_coefficients(-torch.eye(3), torch.ones(3, 1), 1e-6)
