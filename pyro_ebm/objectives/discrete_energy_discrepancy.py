"""The energy discrepancy of discrete data."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Generator, Tensor

from pyro_ebm._core.supports import state_range
from pyro_ebm.objectives.checks import at_least
from pyro_ebm.objectives.data import Domain
from pyro_ebm.objectives.energy_discrepancy import checked_stabiliser, discrepancy
from pyro_ebm.objectives.objective import Objective, Report, Trained


class DiscreteEnergyDiscrepancy(Objective):
    """Compare the energy of discrete data with that of data whose elements have changed at random, twice.

    Each element of x takes, with probability ε, one of its other values, all alike: y; and each of y again: `x_j`.
    `loss = E[log (w/M + 1/M Σ_j exp(E(x) - E(x_j)))]` nats, which is least where p is the data's, as M grows.

    Use it for energies that are dear at each evaluation, in many elements: it takes M of them where
    `PseudoLikelihood` takes one for each element and value. Where that can be had, it is more accurate.

    Args:
        epsilon: the probability that an element changes.
        num_perturbations: M.
        w: bounds what one low energy may do; it adds a bias that falls as w/M.

    References:
        Schröder, Ou, Li and Duncan 2024, Energy-based modelling for discrete and mixed data via heat equations on
        structured spaces.

    >>> from pyro_ebm import EnergyDistribution, Ising
    >>> model = Ising((3, 3), torch.nn.Parameter(torch.tensor(0.1)))
    >>> loss, _ = DiscreteEnergyDiscrepancy()(EnergyDistribution(model), torch.ones(20, 3, 3))
    >>> loss.backward()
    """

    domain: ClassVar[Domain] = Domain.FINITE

    def __init__(self, epsilon: float = 0.1, num_perturbations: int = 32, w: float = 1.0) -> None:
        super().__init__()
        if not 0 < epsilon < 1:
            raise ValueError(f"DiscreteEnergyDiscrepancy: got epsilon={epsilon}, expected it between 0 and 1.")
        self.epsilon = float(epsilon)
        self.num_perturbations = at_least(1, num_perturbations, "DiscreteEnergyDiscrepancy", "num_perturbations")
        self.w = checked_stabiliser(w, "DiscreteEnergyDiscrepancy")

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        density = self._reference(distribution)
        low, step, states = cast(tuple[int, int, int], state_range(density.support))
        numbers = ((data - low) / step).round().long()
        once = self._changed(numbers, states, generator)
        twice = self._changed(once.expand(self.num_perturbations, *once.shape), states, generator)
        return discrepancy(density, data, (low + step * twice).to(data.dtype), self.w)

    def _changed(self, numbers: Tensor, states: int, generator: Generator | None) -> Tensor:
        shape, device = numbers.shape, numbers.device
        changes = torch.rand(shape, generator=generator, device=device) < self.epsilon
        if states == 1:
            return numbers
        shift = torch.randint(1, states, shape, generator=generator, device=device)
        return torch.where(changes, (numbers + shift) % states, numbers)
