"""The square-square loss."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator, Tensor

from pyro_ebm.objectives.checks import positive
from pyro_ebm.objectives.data import Domain
from pyro_ebm.objectives.decoding import Decoder
from pyro_ebm.objectives.objective import Objective, Report, Trained


class SquareSquare(Objective):
    """Energies of right answers are drawn to zero, those of the most offending wrong ones pushed above a margin.

    `loss = E_data[E(x)² + max(0, m - E(x̄))²]`, where `x̄` is the answer of least energy among all that are not x: found
    exactly, as the best of those in which a given element differs, over all elements.

    Use it where energies themselves should have a scale, as distances do. It costs a decoding for each element; of a
    factor graph without a constant, `StructuredHinge` asks for less.

    Args:
        margin: m, in units of energy.

    References:
        LeCun and Huang 2005, Loss functions for discriminative training of energy-based models.
        LeCun, Chopra, Hadsell, Ranzato and Huang 2006, A tutorial on energy-based learning.

    >>> from pyro_ebm import EnergyDistribution, Ising
    >>> flat = EnergyDistribution(Ising((3,), 0.0))
    >>> SquareSquare(margin=2.0)(flat, torch.ones(5, 3))[0]
    tensor(4.)
    """

    domain: ClassVar[Domain] = Domain.FINITE

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = positive(margin, "SquareSquare", "margin")

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        decoder = Decoder.of(self._reference(distribution), "SquareSquare")
        at_data = decoder.energy(data, "data")
        right = decoder.observed(data)  # (*lead, n, K)
        size = right.shape[-2]
        each = torch.eye(size, dtype=torch.bool, device=data.device).reshape(size, *[1] * (right.dim() - 2), size, 1)
        forbidden = torch.zeros(1, dtype=torch.double, device=data.device).masked_fill(each & right, torch.inf)
        answers = decoder.best(forbidden)  # (n, *lead, *event), where element number i differs
        at_wrong = decoder.energy(answers, "wrong answers").amin(0)
        loss = (at_data.square() + (self.margin - at_wrong).clamp(min=0).square()).mean()
        return loss, {"violated": (at_wrong <= at_data).to(loss).mean()}
