import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from ddbench.engine.fit import Recipe, train_each
from ddbench.networks import State, fit


def starts(network: nn.Module, count: int):
    generator = torch.Generator().manual_seed(1)
    return [
        State({name: 0.1 * torch.randn(p.shape, generator=generator) for name, p in network.named_parameters()})
        for _ in range(count)
    ]


def test_each_network_is_trained_as_if_alone(make_prepared):
    """Against Adam written out in a loop; and in the same way however many workers there are."""
    prepared = make_prepared(network="mlp")
    network, examples, recipe = prepared.setting.module, prepared.train, Recipe(steps=25, lr=0.01, batch=64)
    drawn = starts(network, 3)

    def trained(threads: int):
        torch.set_num_threads(threads)
        results = []
        train_each(network, drawn, [5, 6, 7], examples, recipe, results.append)
        return results

    alone, parallel = trained(1), trained(2)
    for first, second in zip(alone, parallel, strict=True):
        assert all(torch.equal(first.params[name], second.params[name]) for name in first.params)

    import math

    generator = torch.Generator().manual_seed(6)
    weights = {name: tensor.clone().requires_grad_() for name, tensor in drawn[1].params.items()}
    optimizer = torch.optim.Adam(weights.values(), lr=1.0, betas=(0.5, 0.999))
    full = len(examples) // 64
    for step in range(25):
        if step % full == 0:
            batches = torch.randperm(len(examples), generator=generator)[: full * 64].view(full, 64)
        chosen = batches[full - 1 - step % full]
        optimizer.zero_grad()
        F.cross_entropy(
            functional_call(network, weights, (examples.inputs[chosen],)), examples.labels[chosen]
        ).backward()
        optimizer.param_groups[0]["lr"] = 0.005 * (1 + math.cos(math.pi * step / 25))
        optimizer.step()
    for name, tensor in weights.items():
        torch.testing.assert_close(alone[1].params[name], tensor.detach(), atol=1e-5, rtol=1e-4)


def test_training_sets_smaller_than_a_batch(make_prepared):
    prepared = make_prepared()
    few = prepared.train[torch.arange(10)]
    results = []
    train_each(prepared.setting.module, starts(prepared.setting.module, 1), [0], few, Recipe(50, 0.1), results.append)
    assert (functional_call(prepared.setting.module, results[0].params, (few.inputs,)).argmax(1) == few.labels).all()


def test_fit_is_the_loop_of_torch_with_running_statistics():
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3))
    batches = [(torch.randn(6, 4, generator=generator), torch.randint(3, (6,), generator=generator)) for _ in range(5)]
    start = State(
        {name: p.detach().clone() for name, p in network.named_parameters()},
        {name: b.clone() for name, b in network.named_buffers()},
    )

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=1.0, momentum=0.9)

    result = fit(network, start, iter(batches), sgd, rate=lambda step: 0.1 / (step + 1))
    assert network.training and not network[1].running_mean.any()
    assert not torch.equal(start.params["0.weight"], result.params["0.weight"])

    network[2].eval()
    optimiser = sgd(network.parameters())
    for step, (inputs, labels) in enumerate(batches):
        optimiser.param_groups[0]["lr"] = 0.1 / (step + 1)
        optimiser.zero_grad()
        F.cross_entropy(network(inputs), labels).backward()
        optimiser.step()
    assert int(result.buffers["1.num_batches_tracked"]) == 5
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        torch.testing.assert_close({**result.params, **result.buffers}[name], tensor.detach())
