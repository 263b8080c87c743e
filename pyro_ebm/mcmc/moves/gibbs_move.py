"""Moves by the Gibbs step that an energy brings."""

from __future__ import annotations

from typing import cast

from torch import Generator, Tensor

from pyro_ebm._core.protocols import HasGibbsStep
from pyro_ebm.mcmc.moves.gibbs_with_gradients_move import untuned
from pyro_ebm.mcmc.moves.move import Density, Moved, Start, Tuning


class GibbsMove:
    """Gibbs steps of all walkers: nothing is rejected."""

    usual_steps = 1
    needs_gradient = False

    def tune(self, value: Tensor) -> Tuning:
        """See `Move`: there is nothing to tune."""
        return untuned(value)

    def __call__(
        self,
        density: Density,
        value: Tensor,
        tuning: Tuning,
        generator: Generator,
        *,
        num_steps: int,
        start: Start | None = None,
    ) -> Moved:
        """See `Move`."""
        energy = cast(HasGibbsStep, density.energy)
        for _ in range(num_steps):
            value = energy.gibbs_step(value, generator)
        log_density = density.unnormalized_log_prob(value)
        return Moved(value, log_density, log_density.new_ones(log_density.shape[1:]), tuning)
