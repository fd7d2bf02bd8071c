"""The linear case of dataset distillation, solved in closed form (Wang et al. 2018, arXiv 1811.10959, Section 3.3)."""

import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

import ddbench
from ddbench import DistilledSet, Run, Task, Unsupported

NETWORKS = 20


@ddbench.method
def linear_bound(task: Task, run: Run) -> DistilledSet:
    r"""Compute the best set for one gradient step on least squares with a linear network, in closed form.

    With features X of D columns (pixels and a one for the bias) and one-hot Y, the least-squares weights are
    `W* = pinv(X) Y`. A step at rate lr on M distilled rows X~, Y~ leads from any W to

        W - lr/M X~' (X~ W - Y~)  =  W* + (I - lr/M X~' X~) (W - W*)    for  Y~ = X~ W*

    so it reaches W* from every W if and only if X~' X~ = (M / lr) I, which needs M >= D rows. With fewer rows, the
    matrix in brackets is the identity on at least D - M dimensions, for any set. This set leaves the dimensions along
    which the training data vary least. The column of ones fixes lr = 1.

    The log shows two figures on 20 networks of the training side, each as a share of its value before the step:
    `excess_loss`, the mean training loss above that of W*, and `distance`, the distance to W*.
    """
    weight, bias = _linear_layer(task)
    if task.budget.steps != 1 or task.budget.epochs != 1:
        raise Unsupported("linear_bound needs a budget of one gradient step: --steps 1 --epochs 1.")
    features = torch.cat([task.train.inputs.flatten(1), torch.ones(len(task.train), 1, device=run.device)], 1).double()
    classes = len(task.info.classes)
    targets = torch.nn.functional.one_hot(task.train.labels, classes).double()
    # Some directions have no variation, so the solution is not unique: take the shortest, by eigenvalues of X'X / n.
    moment = features.T @ features / len(features)
    solution = torch.linalg.pinv(moment, hermitian=True) @ (features.T @ targets / len(features))
    rows = task.budget.images_per_class * classes
    inputs = _distil(moment, rows, run.generator)
    distilled = DistilledSet(
        inputs[:, :-1].float().view(1, rows, *task.info.sample_shape),
        (inputs @ solution).float()[None],
        torch.ones(1, 1, device=run.device),
    )

    starts = task.networks.sample(NETWORKS).params
    w = torch.cat([starts[weight].flatten(2).transpose(1, 2), starts[bias][:, None]], 1).double()
    step = w - inputs.T @ (inputs @ w - inputs @ solution) / rows
    for _ in run.loop(1, {}):
        run.log(
            excess_loss=_excess(step - solution, moment) / _excess(w - solution, moment),
            distance=torch.linalg.vector_norm(step - solution) / torch.linalg.vector_norm(w - solution),
        )
    return distilled


def _linear_layer(task: Task) -> tuple[str, str]:
    """Return the names of weight and bias. Raises `Unsupported` for other networks and losses than `linear_bound`'s."""
    names = [name for name, _ in task.networks.module.named_parameters()]
    probe = torch.Generator().manual_seed(0)
    logits, labels = torch.randn((4, len(task.info.classes)), generator=probe), torch.zeros(4, dtype=torch.long)
    quadratic = 0.5 * (logits - torch.nn.functional.one_hot(labels, logits.shape[1])).square().sum(1).mean()
    if not torch.allclose(task.objective.inner_loss(logits, labels), quadratic):
        raise Unsupported("linear_bound needs least squares: --objective least_squares.")
    x = torch.randn((3, *task.info.sample_shape), generator=probe).to(next(task.networks.module.parameters()))
    if len(names) == 2:
        weight, bias = names
        parameters: dict[str, Tensor] = dict(task.networks.module.named_parameters())
        linear_map = x.flatten(1) @ parameters[weight].flatten(1).T + parameters[bias]
        if torch.allclose(functional_call(task.networks.module, parameters, (x,)), linear_map, atol=1e-5):
            return weight, bias
    raise Unsupported("linear_bound needs a network of one linear layer: --network linear.")


def _distil(moment: Float[Tensor, "d d"], rows: int, generator: torch.Generator) -> Float[Tensor, "rows d"]:
    """Return X~ with last column one and X~' X~ = rows P, where P is a projection on min(rows, D) dimensions.

    X~ = sqrt(rows) Q V'. V holds the last axis and the leading eigenvectors of the second moment orthogonal to it. Q
    has orthonormal columns, the first of them ones / sqrt(rows).
    """
    width = len(moment)
    dimensions = min(rows, width)
    _, vectors = torch.linalg.eigh(moment[:-1, :-1])
    basis = torch.zeros(width, dimensions, dtype=moment.dtype, device=moment.device)
    basis[-1, 0] = 1.0
    basis[:-1, 1:] = vectors.flip(1)[:, : dimensions - 1]
    noise = torch.randn(rows, dimensions, generator=generator, dtype=torch.float64).to(moment.device)
    noise[:, 0] = 1.0
    q, _ = torch.linalg.qr(noise)
    q = q * q[0, 0].sign()
    inputs: Tensor = math.sqrt(rows) * q @ basis.T
    return inputs


def _excess(difference: Float[Tensor, "nets d classes"], moment: Float[Tensor, "d d"]) -> Float[Tensor, ""]:
    """Return the mean over networks of the loss above its minimum, 1/2 tr(d' H d)."""
    return 0.5 * torch.einsum("ndc,de,nec->n", difference, moment, difference).mean()


@ddbench.hookimpl
def ddbench_methods() -> list[object]:
    return [linear_bound]


@ddbench.hookimpl
def ddbench_experiments() -> list[Path]:
    return sorted((Path(__file__).parent / "experiments").glob("*.toml"))
