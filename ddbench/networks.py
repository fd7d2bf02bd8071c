"""Networks for authors of methods: states, passes, gradients, modes and workers; training, measuring, weights files."""

from ddbench.contract.experts import Experts, Teachers, TrainedNetworks, Trajectories
from ddbench.contract.inits import InitRequest, Side
from ddbench.contract.state import Params, State
from ddbench.contract.task import CrossEntropy, Loss, Networks, cross_entropy
from ddbench.engine.cpu.operators import fast_operators
from ddbench.engine.features import features, gradient, logits
from ddbench.engine.fit import POOL_RATE, POOL_STEPS, Optimiser, fit
from ddbench.engine.networks import evaluation_mode, forward, inner_mode, measure, unstack
from ddbench.engine.weights import SourceNormalised, check_weights, read_weights
from ddbench.engine.workers import for_each_network
from ddbench.machine.environment import free_memory
from ddbench.machine.files import load_tensors
from ddbench.machine.processes import gather

__all__ = [
    "POOL_RATE",
    "POOL_STEPS",
    "CrossEntropy",
    "Experts",
    "InitRequest",
    "Loss",
    "Networks",
    "Optimiser",
    "Params",
    "Side",
    "SourceNormalised",
    "State",
    "Teachers",
    "TrainedNetworks",
    "Trajectories",
    "check_weights",
    "cross_entropy",
    "evaluation_mode",
    "fast_operators",
    "features",
    "fit",
    "for_each_network",
    "forward",
    "free_memory",
    "gather",
    "gradient",
    "inner_mode",
    "load_tensors",
    "logits",
    "measure",
    "read_weights",
    "unstack",
]
