"""Networks for authors of methods: states, modes and workers; training, measuring, and reading files of weights."""

from ddbench.contract.state import Params, State
from ddbench.contract.task import CrossEntropy, InitSampler, Loss, Networks, Side, Sources, cross_entropy
from ddbench.engine.cpu.operators import fast_operators
from ddbench.engine.fit import POOL_RATE, POOL_STEPS, Optimiser, fit
from ddbench.engine.networks import evaluation_mode, forward, inner_mode, measure, unstack
from ddbench.engine.workers import for_each_network
from ddbench.machine.environment import free_memory
from ddbench.machine.files import load_tensors

__all__ = [
    "POOL_RATE",
    "POOL_STEPS",
    "CrossEntropy",
    "InitSampler",
    "Loss",
    "Networks",
    "Optimiser",
    "Params",
    "Side",
    "Sources",
    "State",
    "cross_entropy",
    "evaluation_mode",
    "fast_operators",
    "fit",
    "for_each_network",
    "forward",
    "free_memory",
    "inner_mode",
    "load_tensors",
    "measure",
    "unstack",
]
