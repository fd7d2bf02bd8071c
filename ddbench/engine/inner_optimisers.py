"""Optimisers of the inner steps: each has the update of a step and its adjoint, as pure functions.

Notation: `w` are weights, `g` is the gradient of the inner loss at `w`, `a_w` is the derivative of the outer loss by
`w`, and likewise for moments. A prime marks what follows the step. The adjoint of an update takes `a_w'` and the
moments' to `a_g`, to the hyper-parameters' derivatives, and to that part of `a_w` that does not pass through `g`:
`d/dw <g, a_g>`, the Hessian-vector product of the network, is added by the caller.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ddbench.engine.inner_steps import Weights

Hyperparameter = Float[Tensor, "..."] | float
"""A number for all steps, a scalar tensor, or a tensor with a number for each step."""


class InnerState(NamedTuple):
    """Weights, and the moments that the optimiser keeps: each is a list of tensors in the layout of the weights."""

    weights: Weights
    moments: tuple[Weights, ...] = ()

    def map(self, function: Callable[..., Tensor], *others: "InnerState") -> "InnerState":
        """Return the state of `function(tensor, *(that of each other state))`."""
        weights, *moments = (
            [function(*tensors) for tensors in zip(*lists, strict=True)]
            for lists in zip(*((state.weights, *state.moments) for state in (self, *others)), strict=True)
        )
        return InnerState(weights, tuple(moments))


class StepAdjoint(NamedTuple):
    """The derivatives of the outer loss by the arguments of an update: state, gradient, hyper-parameters by name.

    The derivative by a hyper-parameter is that of this one step.
    """

    state: InnerState
    gradient: Weights
    hyperparameters: Mapping[str, Float[Tensor, ""]]


class InnerOptimiser(ABC):
    """An optimiser of the inner steps; `moments` is the number of tensors that it keeps for each weight.

    `hyperparameters` are the tensors that a meta-gradient is wanted by; a plain number gets none.
    """

    moments: int
    hyperparameters: Mapping[str, Tensor]

    @property
    def lrs(self) -> Float[Tensor, "..."]:
        """The rates: `[epochs, steps]`, `[T]`, or one for all steps."""
        return self.hyperparameters["lrs"]

    def start(self, weights: Weights) -> InnerState:
        """Return the state before the first step: moments are zero."""
        return InnerState(weights, tuple([torch.zeros_like(w) for w in weights] for _ in range(self.moments)))

    @abstractmethod
    def update(self, t: int, state: InnerState, gradient: Weights, *, differentiable: bool) -> InnerState:
        """Return the state after step `t`. `differentiable` steps are those that the reverse pass visits."""

    @abstractmethod
    def adjoint(self, t: int, state: InnerState, gradient: Weights, adjoint: InnerState) -> StepAdjoint:
        """Return the derivatives by the arguments of `update`, from the state before step `t` and those after it."""


class SGD(InnerOptimiser):
    """Gradient descent with momentum and weight decay, each step by

        h = g + decay w,    v' = momentum v + h,    w' = w - lr v',    v_0 = 0

    as `torch.optim.SGD` does (Polyak 1964; Sutskever et al. 2013, Section 2, with the rate outside of v).
    `lrs` is `[epochs, steps]`, `[T]` or one rate for all steps. So may `momentum` and `decay` be; where they are
    tensors, a meta-gradient has their derivatives.

    Adjoint:

        b = a_v' - lr a_w',    a_g = b,    a_w = a_w' + decay b,    a_v = momentum b,
        d lr = -<a_w', v'>,    d momentum = <b, v>,    d decay = <b, w>
    """

    def __init__(self, lrs: Hyperparameter, momentum: Hyperparameter = 0.0, decay: Hyperparameter = 0.0) -> None:
        named = {"lrs": torch.as_tensor(lrs), "momentum": momentum, "decay": decay}
        self.hyperparameters = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        self._lrs, self._momentum, self._decay = (_Schedule(value) for value in (lrs, momentum, decay))
        self.moments = int("momentum" in self.hyperparameters or any(self._momentum.values))

    def update(self, t: int, state: InnerState, gradient: Weights, *, differentiable: bool) -> InnerState:
        """See `InnerOptimiser.update`."""
        velocity = self._velocity(t, state, gradient)
        weights = [w.add(v, alpha=-self._lrs[t]) for w, v in zip(state.weights, velocity, strict=True)]
        return InnerState(weights, (velocity,) if self.moments else ())

    def adjoint(self, t: int, state: InnerState, gradient: Weights, adjoint: InnerState) -> StepAdjoint:
        """See `InnerOptimiser.adjoint`."""
        lr, momentum, decay = self._lrs[t], self._momentum[t], self._decay[t]
        derivatives = {"lrs": -_dot(adjoint.weights, self._velocity(t, state, gradient))}
        b = [-lr * a for a in adjoint.weights]
        if self.moments:
            b = [p.add_(a) for p, a in zip(b, adjoint.moments[0], strict=True)]
        if "momentum" in self.hyperparameters:
            derivatives["momentum"] = _dot(b, state.moments[0])
        if "decay" in self.hyperparameters:
            derivatives["decay"] = _dot(b, state.weights)
        weights = [a.add(p, alpha=decay) for a, p in zip(adjoint.weights, b, strict=True)] if decay else adjoint.weights
        moments = ([momentum * p for p in b],) if self.moments else ()
        return StepAdjoint(InnerState(weights, moments), b, derivatives)

    def schedules(self, steps: int) -> tuple[list[float], list[float], list[float]]:
        """Return rate, momentum and decay of each of so many steps."""
        lrs, momentum, decay = ([each[t] for t in range(steps)] for each in (self._lrs, self._momentum, self._decay))
        return lrs, momentum, decay

    def _velocity(self, t: int, state: InnerState, gradient: Weights) -> Weights:
        """Return v'."""
        momentum, decay = self._momentum[t], self._decay[t]
        h = gradient
        if decay:
            h = [g.add(w, alpha=decay) for g, w in zip(h, state.weights, strict=True)]
        if self.moments:
            h = [p.add(v, alpha=momentum) for p, v in zip(h, state.moments[0], strict=True)]
        return h


class Adam(InnerOptimiser):
    """Adam (Kingma and Ba 2015, arXiv 1412.6980, Section 2): m' = b1 m + (1 - b1) g,  v' = b2 v + (1 - b2) g^2.

    Steps that the reverse pass visits take the form at the end of the paper's Section 2, the others `torch`'s. They
    differ in what `eps` is compared with, as they do in the code of Feng et al. 2023 (arXiv 2311.07025).
    k = t + 1 counts from the first step:

        visited:  w' = w - lr c m' / (sqrt(v') + eps),    c = sqrt(1 - b2^k) / (1 - b1^k)
        before:   w' = w - lr / (1 - b1^k) m' / (sqrt(v' / (1 - b2^k)) + eps)

    `lrs` is `[epochs, steps]`, `[T]` or one rate for all steps.
    Raises `ValueError` for `betas` outside of [0, 1) and a negative `eps`.

    Adjoint of the visited form, with s = sqrt(v') and D = s + eps; where v' = 0 the root is given slope 0:

        d lr = -c <a_w', m' / D>,    a_m' += -lr c a_w' / D,    a_v' += lr c a_w' m' / D^2 / (2 s),
        a_g = (1 - b1) a_m' + 2 (1 - b2) g a_v',    a_w = a_w',    a_m = b1 a_m',    a_v = b2 a_v'
    """

    def __init__(self, lrs: Hyperparameter, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        if not all(0 <= beta < 1 for beta in betas) or eps < 0:
            raise ValueError(f"betas {betas} must lie in [0, 1), and eps {eps} must not be negative")
        self.hyperparameters = {"lrs": torch.as_tensor(lrs)}
        self.moments = 2
        self._lrs, self.betas, self.eps = _Schedule(lrs), betas, eps

    def update(self, t: int, state: InnerState, gradient: Weights, *, differentiable: bool) -> InnerState:
        """See `InnerOptimiser.update`."""
        m, v = self._moments(state, gradient)
        first, second = self._corrections(t)
        size = self._lrs[t] / first
        if differentiable:
            steps = [p / q.sqrt().add_(self.eps) for p, q in zip(m, v, strict=True)]
            size *= second
        else:
            steps = [p / q.sqrt().div_(second).add_(self.eps) for p, q in zip(m, v, strict=True)]
        return InnerState([w.add(p, alpha=-size) for w, p in zip(state.weights, steps, strict=True)], (m, v))

    def adjoint(self, t: int, state: InnerState, gradient: Weights, adjoint: InnerState) -> StepAdjoint:
        """See `InnerOptimiser.adjoint`."""
        b1, b2 = self.betas
        first, second = self._corrections(t)
        c = second / first
        size = self._lrs[t] * c
        m, v = self._moments(state, gradient)
        a_g, a_m, a_v, ratios = [], [], [], []
        for a, p, q, g, later_m, later_v in zip(adjoint.weights, m, v, gradient, *adjoint.moments, strict=True):
            root = q.sqrt()
            denominator = root + self.eps
            slope = torch.where(root > 0, p / (2 * root * denominator.square()), 0)
            by_m = later_m.sub(a / denominator, alpha=size)
            by_v = later_v.add(a * slope, alpha=size)
            a_g.append((1 - b1) * by_m + 2 * (1 - b2) * g * by_v)
            a_m.append(b1 * by_m)
            a_v.append(b2 * by_v)
            ratios.append(p / denominator)
        return StepAdjoint(InnerState(adjoint.weights, (a_m, a_v)), a_g, {"lrs": -c * _dot(adjoint.weights, ratios)})

    def _moments(self, state: InnerState, gradient: Weights) -> tuple[Weights, Weights]:
        """Return m' and v'."""
        b1, b2 = self.betas
        old_m, old_v = state.moments
        m = [(b1 * p).add_(g, alpha=1 - b1) for p, g in zip(old_m, gradient, strict=True)]
        v = [(b2 * q).addcmul_(g, g, value=1 - b2) for q, g in zip(old_v, gradient, strict=True)]
        return m, v

    def _corrections(self, t: int) -> tuple[float, float]:
        """Return 1 - b1^k and sqrt(1 - b2^k)."""
        b1, b2 = self.betas
        return 1 - b1 ** (t + 1), math.sqrt(1 - b2 ** (t + 1))


class _Schedule:
    """The values of a hyper-parameter as plain numbers; a single value counts for every step."""

    def __init__(self, value: Tensor | float) -> None:
        self.values: list[float] = value.flatten().tolist() if isinstance(value, Tensor) else [value]

    def __getitem__(self, t: int) -> float:
        return self.values[t] if len(self.values) > 1 else self.values[0]


def _dot(left: Weights, right: Weights) -> Float[Tensor, ""]:
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()
