import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddbench.engine.fixed_point import InformationBuffer, ReversibleMomentum, as_ratio
from ddbench.errors import DdbenchError

RATIOS = st.sampled_from([Fraction(9, 10), Fraction(1, 2), Fraction(1, 65536), Fraction(1)]) | st.floats(1e-4, 1).map(
    as_ratio
)


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 40),
    steps=st.lists(st.tuples(RATIOS, st.floats(0, 2)), min_size=1, max_size=80),
    decay=st.sampled_from([0.0, 5e-4]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10_000),
)
def test_steps_are_undone_to_the_last_bit(size, steps, decay, dtype, seed):
    start = torch.randn((2, size), generator=torch.Generator().manual_seed(seed), dtype=dtype)
    state = ReversibleMomentum(*start)
    before = state.weights

    def gradient(t: int) -> torch.Tensor:
        return torch.sin(3 * state.weights.to(dtype) + t)

    for t, (momentum, lr) in enumerate(steps):
        state.step(gradient(t), lr, momentum, decay)
    for t, (momentum, lr) in reversed(list(enumerate(steps))):
        assert not state.at_start
        state.undo_weights(lr)
        state.undo_velocities(gradient(t), momentum, decay)
    assert state.at_start
    assert torch.equal(state.weights, before)
    torch.testing.assert_close(before, start[0].double(), rtol=0, atol=2**-53)


def test_steps_are_those_of_momentum_sgd():
    start = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state, weights = ReversibleMomentum(start, torch.zeros(7)), start.clone().requires_grad_()
    optimizer = torch.optim.SGD([weights], lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(100):
        weights.grad = weights.detach().sin()
        optimizer.step()
        state.step(state.weights.sin(), 0.1, as_ratio(0.9), 0.01)
    torch.testing.assert_close(state.weights, weights.detach(), rtol=0, atol=1e-13)


def test_another_gradient_is_noticed():
    state = ReversibleMomentum(torch.ones(3), torch.zeros(3))
    gradient = torch.full((3,), 0.25)
    state.step(gradient, 0.1, Fraction(9, 10), 0.0)
    state.undo_weights(0.1)
    state.undo_velocities(gradient + 2**-20, Fraction(9, 10), 0.0)
    assert not state.at_start


def test_a_product_is_rounded_by_less_than_its_numerator():
    values = torch.arange(-50, 50) * (10**12 + 1)
    product = values.clone()
    InformationBuffer(100).multiply(product, Fraction(9, 10))
    assert (10 * product - 9 * values).abs().max() <= 90


def test_memory_law():
    """8 bytes and log2(1 / momentum) bits a step for each weight; up to one word is not full."""
    steps, size = 2000, 10
    buffer, values = InformationBuffer(size), torch.full((size,), 10**17)
    for t in range(steps):
        buffer.multiply(values, Fraction(9, 10))
        values += 10**16 + t
    law = steps * math.log2(10 / 9) / 8
    assert law - 8 <= buffer.nbytes / size - 8 <= law


@pytest.mark.parametrize("gradient", [2000.0, float("nan"), float("inf")])
def test_numbers_out_of_range_are_refused(gradient):
    state = ReversibleMomentum(torch.ones(3), torch.zeros(3))
    with pytest.raises(DdbenchError, match="reached 1024"):
        state.step(torch.full((3,), gradient), 0.1, Fraction(9, 10), 0.0)


def test_sums_out_of_range_are_refused():
    state = ReversibleMomentum(torch.ones(3), torch.zeros(3))
    with pytest.raises(DdbenchError, match="reached 1024") as error:  # noqa: PT012, the step that overflows is not fixed
        for _ in range(10):
            state.step(torch.full((3,), 400.0), 0.1, Fraction(1), 0.0)
    assert "Recompute()" in error.value.hint


def test_a_momentum_must_be_a_ratio_in_range():
    assert as_ratio(0.9) == Fraction(9, 10)
    assert abs(as_ratio(math.exp(-0.5)) - math.exp(-0.5)) < 2**-31
    for momentum in (0.0, 1e-9, 1.1, -0.5):
        with pytest.raises(ValueError, match="without momentum"):
            as_ratio(momentum)
