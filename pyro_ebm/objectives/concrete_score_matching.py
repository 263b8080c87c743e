"""Concrete score matching."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator, Tensor

from pyro_ebm.objectives.data import Domain
from pyro_ebm.objectives.objective import Objective, Report, Trained
from pyro_ebm.objectives.site_changes import log_ratios


class ConcreteScoreMatching(Objective):
    """Match the concrete score of discrete data, the relative changes `c(x) = p(x') / p(x) - 1` by single changes.

    With the ratio `r = p̃(x') / p̃(x)`, summed over all single changes x' of x,
    `loss = E_data[Σ (c² + 2 c) - 2 Σ c_reverse] = E_data[Σ (r² - 2 / r + 1)]`,
    which is `E_data |c - c_data|²` up to a constant: for the reverse change, from x' to the datum x, has the ratio 1/r.

    Use it for small problems with smooth probabilities, where the score itself is wanted. Not where ratios are large:
    `r²` has no bound, and makes for heavy tails, or where some states are forbidden (a loss that is not finite raises);
    `PseudoLikelihood` is the safe choice.

    References:
        Meng, Choi, Song and Ermon 2022, Concrete score matching: generalized score matching for discrete data.

    >>> from pyro_ebm import EnergyDistribution, Ising
    >>> model = Ising((3, 3), torch.nn.Parameter(torch.tensor(0.0)))
    >>> loss, _ = ConcreteScoreMatching()(EnergyDistribution(model), torch.ones(20, 3, 3))
    >>> loss.detach()
    tensor(0.)
    """

    domain: ClassVar[Domain] = Domain.FINITE

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        ratios = log_ratios(self._reference(distribution), data)
        loss = (torch.exp(2 * ratios) - 2 * torch.exp(-ratios) + 1).sum((-1, -2)).mean()
        return loss, {"largest_log_ratio": ratios.abs().max()}
