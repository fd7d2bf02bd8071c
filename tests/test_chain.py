import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ddbench.engine.cpu import Chain, chain
from ddbench.unroll import MEMORIES, SGD, Memory, Recompute, loss_on, meta_gradient

CHAINS = {
    "pool after relu": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3),
    ),
    "response normalisation, pools that overlap": lambda: nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), nn.LocalResponseNorm(4, alpha=0.5),
        nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(), nn.LocalResponseNorm(3, alpha=0.7, beta=0.6, k=2),
        nn.MaxPool2d(3, 2, padding=1), nn.Flatten(), nn.Linear(24, 3),
    ),
    "average pools, strides, no biases": lambda: nn.Sequential(
        nn.AvgPool2d(2), nn.Conv2d(2, 4, 2, stride=2, bias=False), nn.ReLU(), nn.Conv2d(4, 3, (1, 2), padding=(0, 1)),
        nn.AvgPool2d((1, 2)), nn.Dropout(), nn.Identity(), nn.Flatten(), nn.Linear(3, 3, bias=False),
    ),
    "group normalisation": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.ReLU(), nn.AvgPool2d(3, 2, 1), nn.Conv2d(4, 6, 3, padding=1),
        nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.GroupNorm(1, 4, affine=False), nn.Flatten(),
        nn.Linear(36, 3),
    ),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 3)),
    "perceptron": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.ReLU(), nn.Linear(4, 3)),
    "convolutions to the end": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 4), nn.Flatten()),
}  # fmt: skip


def problem(network: nn.Module, nets: int, soft: bool, seed: int, ties: bool = False):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    network = network.double()
    params = {name: 0.4 * normal(nets, *p.shape) for name, p in network.named_parameters()}
    inputs = normal(2, 3, 2, 6, 6)
    # Not to sum 1: then the sum of a label's parts shows.
    labels = 1.5 * normal(2, 3, 3).softmax(-1) if soft else torch.randint(3, (2, 3), generator=generator)
    lrs = 0.05 + 0.1 * normal(2, 2).square()
    real = torch.randint(3, (5,), generator=generator)
    outer = loss_on(F.cross_entropy, normal(5, 2, 6, 6), real)
    return network, params, inputs.round() if ties else inputs, labels, SGD(lrs), outer


def assert_equal_to_autograd(stated, memory: Memory = Recompute()) -> bool:  # noqa: B008
    """Return False where a gradient is zero: a network all of whose units are off shows nothing."""
    alive = True
    assert Chain.from_network(stated[0], stated[2]) is not None
    by_hand = meta_gradient(*stated, memory=memory)
    handle = stated[0].register_forward_pre_hook(lambda *_: None)
    assert Chain.from_network(stated[0], stated[2]) is None
    by_autograd = meta_gradient(*stated)
    handle.remove()
    for name in ("loss", "inputs", "lrs", "labels"):
        actual, expected = getattr(by_hand, name), getattr(by_autograd, name)
        if expected is None:
            assert actual is None
        else:
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-13)
            alive = alive and bool(actual.abs().sum() > 0)
    return alive


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(CHAINS)),
    nets=st.integers(1, 3),
    soft=st.booleans(),
    memory=st.sampled_from(MEMORIES),
    seed=st.integers(0, 1000),
    few=st.sampled_from([0, 32]),
)
def test_derivatives_by_hand_are_those_of_autograd(kind, nets, soft, memory, seed, few):
    with pytest.MonkeyPatch.context() as patch:
        # 0: every convolution after the first is the library's own.
        patch.setattr(chain, "FEW_CHANNELS", few)
        assume(assert_equal_to_autograd(problem(CHAINS[kind](), nets, soft, seed), memory))


def test_of_equal_values_pooling_takes_torchs():
    """Whole numbers in images and kernels: most windows hold their maximum more than once."""
    network = CHAINS["pool after relu"]()
    stated = problem(network, 2, False, 0, ties=True)
    stated[1]["0.weight"] = stated[1]["0.weight"].mul(3).round()
    stated[1]["0.bias"] = torch.zeros_like(stated[1]["0.bias"])
    assert assert_equal_to_autograd(stated)


def shared() -> nn.Module:
    layer = nn.Linear(72, 72)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer)


class Own(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 1


NOT_CHAINS = {
    "statistics": nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 3)),
    "groups": nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 3)),
    "normalisation first": nn.Sequential(nn.GroupNorm(2, 2), nn.Flatten(), nn.Linear(72, 3)),
    "dilation": nn.Sequential(nn.Conv2d(2, 3, 2, dilation=2), nn.Flatten(), nn.Linear(48, 3)),
    "other padding": nn.Sequential(nn.Conv2d(2, 3, 3, padding_mode="circular"), nn.Flatten(), nn.Linear(48, 3)),
    "padding by name": nn.Sequential(nn.Conv2d(2, 3, 3, padding="same"), nn.Flatten(), nn.Linear(108, 3)),
    "ceiling": nn.Sequential(nn.Conv2d(2, 3, 2), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(27, 3)),
    "nothing to learn first": nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)),
    "one layer twice": shared(),
    "its own forward": Own(nn.Flatten(), nn.Linear(72, 3)),
    "not a sequence": nn.Linear(6, 3),
    "logits per place": nn.Sequential(nn.Conv2d(2, 3, 3)),
    "no weights": nn.Sequential(nn.Flatten()),
    "shapes that do not fit": nn.Sequential(nn.Flatten(), nn.Linear(5, 3)),
}


@pytest.mark.parametrize("kind", NOT_CHAINS)
def test_other_networks_are_left_to_autograd(kind):
    assert Chain.from_network(NOT_CHAINS[kind], torch.zeros(1, 2, 2, 6, 6)) is None


def test_columns_of_large_images_are_not_taken_at_once(monkeypatch):
    network, inputs = CHAINS["convolutions to the end"](), torch.zeros(2, 3, 2, 6, 6)
    # 2 channels of 3 x 3, seen from 4 x 4 places of 6 images.
    monkeypatch.setattr(chain, "MOST_COLUMNS", 2 * 9 * 16 * 6)
    assert Chain.from_network(network, inputs) is not None
    monkeypatch.setattr(chain, "MOST_COLUMNS", 2 * 9 * 16 * 6 - 1)
    assert Chain.from_network(network, inputs) is None
