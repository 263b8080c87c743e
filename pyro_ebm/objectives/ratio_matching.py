"""Ratio matching."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator, Tensor

from pyro_ebm.objectives.data import Domain
from pyro_ebm.objectives.objective import Objective, Report, Trained
from pyro_ebm.objectives.site_changes import log_ratios


class RatioMatching(Objective):
    """Match the ratios of probabilities of binary data and of data with one bit flipped.

    `loss = E_data[Σ_i σ(log p̃(x^i) - log p̃(x))²]`, where `x^i` has element i flipped and σ is the logistic function:
    the square of the conditional probability of what was not observed. Log Z cancels. Bounded by n, and so robust
    against outliers; a little less accurate than `PseudoLikelihood`, whose costs are the same.

    Use it for binary data with outliers; for other finite supports use `PseudoLikelihood`.

    References:
        Hyvärinen 2007, Some extensions of score matching.

    >>> from pyro_ebm import EnergyDistribution, Ising
    >>> model = Ising((3, 3), torch.nn.Parameter(torch.tensor(0.0)))
    >>> loss, _ = RatioMatching()(EnergyDistribution(model), torch.ones(20, 3, 3))
    >>> loss  # 9 / 4
    tensor(2.2500, grad_fn=<MeanBackward0>)
    """

    domain: ClassVar[Domain] = Domain.BINARY

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        ratios = log_ratios(self._reference(distribution), data).squeeze(-1)
        loss = torch.sigmoid(ratios).square().sum(-1).mean()
        return loss, {"accuracy": (ratios < 0).to(loss).mean()}
