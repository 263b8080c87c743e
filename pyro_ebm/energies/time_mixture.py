"""The OR of families of energies over noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pyro_ebm._core.supports import join_supports
from pyro_ebm.energies.energy import Energy
from pyro_ebm.energies.mixture import MixtureEnergy
from pyro_ebm.energies.time_conditional import TimeConditional, parts_of, shared_event_shape


class MixtureTimeConditional(TimeConditional):
    """The mixture `-log Σ_k w_k exp(-E_k(x, σ))` of families, level by level.

    Where the energies are those of smoothed densities up to the same constant, this is the smoothed mixture, exactly.

    Args:
        families: K families over the same events.
        weights: positive, `(K,)`, of the unnormalised densities; all one if not given; a `Parameter` is learned.
    """

    def __init__(self, families: Sequence[TimeConditional], weights: Tensor | None = None) -> None:
        super().__init__(shared_event_shape(families, "MixtureTimeConditional"))
        self.support = join_supports([each.support for each in families], "MixtureTimeConditional")
        self.components = nn.ModuleList(families)
        given = torch.ones(len(families)) if weights is None else weights
        if isinstance(given, nn.Parameter):
            self.register_parameter("weights", given)
        else:
            self.register_buffer("weights", given)

    def _at(self, sigma: Tensor) -> Energy:
        return MixtureEnergy([each.at(sigma) for each in parts_of(self.components)], cast(Tensor, self.weights))


def time_mixture(families: Sequence[TimeConditional], weights: Tensor | None = None) -> MixtureTimeConditional:
    """The OR of families: see `MixtureTimeConditional`."""
    return MixtureTimeConditional(families, weights)
