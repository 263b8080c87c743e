"""`Objective`: what every loss has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from pyro_ebm._core.errors import NonFiniteError
from pyro_ebm._core.protocols import Density
from pyro_ebm.energies import Energy
from pyro_ebm.objectives.data import Domain, checked_data
from pyro_ebm.objectives.levels import density_at

Report = dict[str, Tensor]
Trained = Density | Callable[[Tensor], Density | Energy]


class Objective(nn.Module, ABC):
    """A loss that trains an energy: `objective(distribution, data)` is a loss and a report.

    An objective is a module: what it learns beside the energy (log Z, noise) are its parameters, to be given to the
    optimiser with the energy's, and what it has found in the data is in its `state_dict`. A subclass defines `_loss`.

    Attributes:
        domain: the supports that it takes.
        levels: noise levels, for an objective that takes a family: a `TimeConditional`, or a callable from a level.
    """

    domain: ClassVar[Domain] = Domain.ANY
    levels: tuple[float, ...] = ()

    def forward(
        self, distribution: Trained, data: Tensor, *, generator: Generator | None = None
    ) -> tuple[Tensor, Report]:
        """The loss at data, and what it tells.

        Args:
            distribution: any torch or Pyro distribution, such as an `EnergyDistribution`; it need not be normalised.
                For an objective with noise levels, a `TimeConditional`.
            data: `(*sample, *batch, *event)`, which the loss is a mean over; with covariates bound in the batch, each
                has data of its own, and there may be no sample dims.
            generator: of the random numbers; torch's global one by default.

        Returns:
            The loss, a scalar whose gradient reaches the energy's parameters, and detached scalars by name, "loss"
            among them.

        Raises:
            NonFiniteError: if data or a log density at them is not finite; nothing is ever left out or replaced.
            EnergyShapeError: if the data do not have the event shape.
            EnergySupportError: if the objective is not meant for the distribution's support.
            ValueError: if data lie outside of the support, where torch.distributions checks values.
        """
        what = type(self).__name__
        data = checked_data(self._reference(distribution), data.detach(), self.domain, what)
        loss, report = self._loss(distribution, data, generator)
        if not bool(loss.isfinite()):
            raise NonFiniteError(
                f"{what}: got a loss of {float(loss.detach())}, though the log densities in it are "
                "finite: it overflows. Lower the learning rate, clip gradients, use float64, or a base that confines."
            )
        loss = loss if torch.is_grad_enabled() else loss.detach()
        return loss, {"loss": loss.detach(), **{name: value.detach() for name, value in report.items()}}

    @abstractmethod
    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        """The loss at checked data, `(*sample, *batch, *event)`, and what it tells beside it."""

    def _reference(self, distribution: Trained) -> Density:
        """The distribution, or the first of a family."""
        if isinstance(distribution, Density):
            return distribution
        if self.levels and callable(distribution) and not isinstance(distribution, Energy):
            return density_at(distribution, torch.tensor(self.levels[0]))
        expected = "a distribution, or a family of them by noise level" if self.levels else "a distribution"
        raise TypeError(
            f"{type(self).__name__}: got {type(distribution).__name__}, expected {expected}. "
            "Make an energy one with EnergyDistribution(energy)."
        )
