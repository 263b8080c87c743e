"""The structured hinge loss."""

from __future__ import annotations

from typing import ClassVar

from torch import Generator, Tensor

from pyro_ebm.objectives.checks import positive
from pyro_ebm.objectives.data import Domain
from pyro_ebm.objectives.decoding import Decoder
from pyro_ebm.objectives.objective import Objective, Report, Trained


class StructuredHinge(Objective):
    """The right answer is to be better than any other by a margin that grows with the errors in it.

    `loss = E_data[max_x' (m H(x, x') - E(x')) + E(x)]`, where `H` is the Hamming distance, the number of elements that
    differ. It is never negative, bounds m times the Hamming loss of the best answer, and its maximum is exact: each
    wrong state is made less costly by m, and the graph decoded.

    Use it for structured prediction by the best answer: chains, trees and small lattices. It gives no probabilities;
    `NegativeLogLikelihood` does.

    Args:
        margin: m, for each wrong element, in units of energy.

    References:
        Taskar, Guestrin and Koller 2003, Max-margin Markov networks.
        Tsochantaridis, Joachims, Hofmann and Altun 2005, Large margin methods for structured and interdependent output
        variables.

    >>> import torch
    >>> from pyro_ebm import EnergyDistribution, Ising
    >>> flat = EnergyDistribution(Ising((3,), 0.0))
    >>> StructuredHinge()(flat, torch.ones(5, 3))[0]
    tensor(3.)
    """

    domain: ClassVar[Domain] = Domain.FINITE

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = positive(margin, "StructuredHinge", "margin")

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        decoder = Decoder.of(self._reference(distribution), "StructuredHinge")
        at_data = decoder.energy(data, "data")
        right = decoder.observed(data)
        answer = decoder.best(-self.margin * (~right).double())
        wrong = (decoder.observed(answer) & ~right).any(-1)
        at_answer = decoder.energy(answer, "the answer with margin")
        loss = (self.margin * wrong.to(at_data).sum(-1) - at_answer + at_data).mean()
        return loss, {"violated": wrong.any(-1).to(loss).mean()}
