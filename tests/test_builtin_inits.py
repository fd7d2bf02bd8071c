import math

import pytest
import torch
from torch import nn

from ddbench.contract.examples import DatasetInfo
from ddbench.contract.inits import InitRequest
from ddbench.discovery.catalog import Catalog

INFO = DatasetInfo("x", ("a", "b"), (1, 8, 8), (0.0,), (1.0,), "image", "", False)


NETWORK = nn.Sequential(nn.Conv2d(1, 32, 3), nn.GroupNorm(4, 32), nn.Flatten(), nn.Linear(32 * 36, 64))


def sample(catalog: Catalog, name: str, n: int, seed: int = 0, side: str = "train", **options: object):
    component = catalog.get("init", name)
    return component.call(component.validated(options), request(n, torch.Generator().manual_seed(seed), side))


def request(n: int, generator: torch.Generator, side: str = "train") -> InitRequest:
    return InitRequest(NETWORK, INFO, n, generator, side, None)


def xavier_std(fan_in: int, fan_out: int) -> float:
    return math.sqrt(2 / (fan_in + fan_out))


@pytest.mark.parametrize(
    ("scheme", "distribution", "std"),
    [
        ("xavier", "normal", xavier_std(1152, 64)),
        ("xavier", "uniform", xavier_std(1152, 64)),
        ("kaiming", "normal", math.sqrt(2 / 1152)),
        ("kaiming", "uniform", math.sqrt(2 / 1152)),
        ("default", "normal", 1 / math.sqrt(3 * 1152)),
    ],
)
def test_spread_and_shape(catalog, scheme, distribution, std):
    weight = sample(catalog, "random", 3, scheme=scheme, distribution=distribution)["3.weight"]
    assert weight.shape == (3, 64, 1152)
    assert float(weight.std()) == pytest.approx(std, rel=0.02)
    kurtosis = float(((weight - weight.mean()) ** 4).mean() / weight.var() ** 2)
    assert kurtosis == pytest.approx(3.0 if distribution == "normal" and scheme != "default" else 1.8, abs=0.1)


def test_orthogonal_rows(catalog):
    weight = sample(catalog, "random", 1, scheme="orthogonal")["3.weight"][0]
    torch.testing.assert_close(weight @ weight.T, torch.eye(64), atol=1e-5, rtol=0)


def test_biases_are_zero_and_norms_are_one(catalog):
    drawn = sample(catalog, "random", 2)
    assert not drawn["0.bias"].any()
    assert not drawn["1.bias"].any()
    assert (drawn["1.weight"] == 1).all()


@pytest.mark.parametrize("scheme", ["xavier", "kaiming", "orthogonal", "default"])
def test_random_draws_anew_and_seeds_decide(catalog, scheme):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    drawn = sample(catalog, "random", 2, scheme=scheme)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(drawn["0.weight"][0], drawn["0.weight"][1])
    torch.manual_seed(6)
    assert torch.equal(sample(catalog, "random", 2, scheme=scheme)["0.weight"], drawn["0.weight"])
    assert not torch.equal(sample(catalog, "random", 2, seed=1, scheme=scheme)["0.weight"], drawn["0.weight"])


def test_fixed_is_one_network_on_both_sides(catalog):
    train = sample(catalog, "fixed", 4, seed=0)
    evaluation = sample(catalog, "fixed", 20, seed=9, side="evaluation")
    for name, tensor in train.items():
        assert tensor.shape[0] == 1
        assert torch.equal(tensor, evaluation[name])
    assert not torch.equal(sample(catalog, "fixed", 1, **{"seed": 0})["0.weight"], _with_seed(catalog, 1)["0.weight"])


def _with_seed(catalog: Catalog, seed: int):
    component = catalog.get("init", "fixed")
    return component.call(component.validated({"seed": seed}), request(1, torch.Generator()))
