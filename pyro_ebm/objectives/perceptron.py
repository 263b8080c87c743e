"""The perceptron loss."""

from __future__ import annotations

from typing import ClassVar

from torch import Generator, Tensor

from pyro_ebm.objectives.data import Domain
from pyro_ebm.objectives.decoding import Decoder
from pyro_ebm.objectives.objective import Objective, Report, Trained


class Perceptron(Objective):
    """The energy of the right answer less that of the best one: `loss = E_data[E(x) - min_x' E(x')]`.

    Zero as soon as the right answer is a best one. The minimum is exact, by the graph's `mode`.

    Use it for structured prediction where decoding is cheap and log Z is not. It knows no margin, and a flat energy
    has no loss: start from random parameters, and prefer `StructuredHinge`.

    References:
        Collins 2002, Discriminative training methods for hidden Markov models.
        LeCun, Chopra, Hadsell, Ranzato and Huang 2006, A tutorial on energy-based learning.

    >>> import torch
    >>> from pyro_ebm import EnergyDistribution, Ising
    >>> model = EnergyDistribution(Ising((3,), -1.0))  # likes neighbours to differ
    >>> Perceptron()(model, torch.ones(5, 3))[0]
    tensor(4.)
    """

    domain: ClassVar[Domain] = Domain.FINITE

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        decoder = Decoder.of(self._reference(distribution), "Perceptron")
        at_data = decoder.energy(data, "data")
        best = decoder.best()
        wrong = (decoder.observed(best) & ~decoder.observed(data)).any(-1)
        loss = (at_data - decoder.energy(best, "the best answer")).mean()
        return loss, {"error": wrong.to(loss).mean()}
