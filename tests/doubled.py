"""Settings, sets and networks in float64, whose numbers do not depend on how a processor rounds.

Data are normalised in float32, by sums that processors take in different orders, so inputs are rounded to a thousandth.
"""

import dataclasses

import torch
from torch import Tensor

from ddbench import DistilledSet, State
from ddbench.protocols.base import Setting


def double(setting: Setting) -> Setting:
    """Return a setting whose networks and data are float64; networks on the full data are trained in float32."""
    module = setting.module.double()

    def networks(side, generator):
        drawn = setting.networks(side, generator)

        class Doubled:
            def sample(self, n):
                return double_state(drawn.sample(n))

        return Doubled()

    def full_data(patience):
        return [double_state(state) for state in setting.full_data(patience)]

    examples = (dataclasses.replace(part, inputs=rounded(part.inputs)) for part in (setting.validation, setting.test))
    validation, test = examples
    return dataclasses.replace(
        setting, module=module, networks=networks, full_data=full_data, validation=validation, test=test
    )


def rounded(inputs: Tensor) -> Tensor:
    """Return inputs in float64, each a whole number of thousandths."""
    return torch.round(inputs.double(), decimals=3)


def double_state(state: State) -> State:
    """Return the same weights, with floats in float64."""
    parts = (state.params, state.buffers)
    return State(*({k: t.double() if t.is_floating_point() else t for k, t in part.items()} for part in parts))


def double_set(distilled: DistilledSet) -> DistilledSet:
    """Return the same set with images and rates in float64."""
    lrs = None if distilled.lrs is None else distilled.lrs.double()
    return dataclasses.replace(distilled, inputs=rounded(distilled.inputs), lrs=lrs)
