"""Maximum pseudo-likelihood."""

from __future__ import annotations

from typing import ClassVar

from torch import Generator, Tensor

from pyro_ebm.objectives.data import Domain
from pyro_ebm.objectives.objective import Objective, Report, Trained
from pyro_ebm.objectives.site_changes import site_changes


class PseudoLikelihood(Objective):
    """The likelihood of each element given all others, of discrete data: log Z cancels.

    `loss = -E_data[Σ_i log p(x_i | x_-i)]` nats, a sum over the n elements of an event. It is least at the data's
    distribution, and the estimate is consistent; on pairwise models it is nearly as accurate as maximum likelihood.

    Use it for Ising and Potts models, Boltzmann machines and other factor graphs, whose factors give it in one pass,
    and as the first choice for any discrete energy: of one that is not a graph (or is, with large factors over whole
    variables), it evaluates all `n (K - 1)` single changes in one batch. Not where elements all but determine one
    another.

    References:
        Besag 1975, Statistical analysis of non-lattice data.

    >>> import torch
    >>> from pyro_ebm import EnergyDistribution, Ising
    >>> model = Ising((3, 3), torch.nn.Parameter(torch.tensor(0.0)))
    >>> loss, _ = PseudoLikelihood()(EnergyDistribution(model), torch.ones(20, 3, 3))
    >>> loss  # 9 log 2
    tensor(6.2383, grad_fn=<NegBackward0>)
    """

    domain: ClassVar[Domain] = Domain.FINITE

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        weights, numbers = site_changes(self._reference(distribution), data)
        conditionals = weights.log_softmax(-1)
        loss = -conditionals.gather(-1, numbers.unsqueeze(-1)).squeeze(-1).sum(-1).mean()
        return loss, {"accuracy": (weights.argmax(-1) == numbers).to(loss).mean()}
