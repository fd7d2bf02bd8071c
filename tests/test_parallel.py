import threading

import pytest
import torch
from torch import nn

from ddbench.networks import for_each_network


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_whatever_the_workers(threads: int):
    network, seen = nn.Linear(3, 2, bias=False), []

    def total(replica: nn.Module, item: int) -> float:
        with torch.no_grad():
            replica.weight.fill_(item)
        return float(replica(torch.ones(3)).detach().sum())

    results = for_each_network(total, network, range(7), seen.append)
    assert results == seen == [6.0 * item for item in range(7)]
    assert torch.get_num_threads() == threads


def test_workers_do_not_share_the_network(threads: int):
    network = nn.Linear(3, 2)
    weight = network.weight.detach().clone()
    replica = for_each_network(lambda replica, item: (threading.get_ident(), id(replica)), network, range(20))
    if threads > 1:
        assert id(network) not in {network_id for _, network_id in replica}

    def wipe(replica: nn.Module, item: int) -> None:
        with torch.no_grad():
            replica.weight.zero_()

    if threads > 1:
        for_each_network(wipe, network, range(4))
    assert torch.equal(network.weight, weight)


def test_what_a_worker_raises_is_raised_here(threads: int):
    def fail(replica: nn.Module, item: int) -> None:
        if item == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        for_each_network(fail, nn.Linear(1, 1), range(5))
    assert torch.get_num_threads() == threads
