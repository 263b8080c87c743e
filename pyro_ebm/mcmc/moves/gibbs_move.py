"""Moves by the Gibbs step that an energy brings."""

from __future__ import annotations

from torch import Generator, Tensor

from pyro_ebm._core.protocols import HasGibbsStep
from pyro_ebm.mcmc.moves.gibbs_with_gradients_move import untuned
from pyro_ebm.mcmc.moves.move import LogDensity, Moved, Start, Tuning


class GibbsMove:
    """Gibbs steps of all walkers: nothing is rejected.

    Args:
        energy: the energy, whose density is the one that is sampled.
    """

    usual_steps = 1
    least_acceptance = 0.0
    needs_gradient = False

    def __init__(self, energy: HasGibbsStep) -> None:
        self._energy = energy

    def tune(self, value: Tensor) -> Tuning:
        """See `Move`: there is nothing to tune."""
        return untuned(value)

    def __call__(
        self,
        log_density: LogDensity,
        value: Tensor,
        tuning: Tuning,
        generator: Generator,
        *,
        num_steps: int,
        start: Start | None = None,
    ) -> Moved:
        """See `Move`."""
        for _ in range(num_steps):
            value = self._energy.gibbs_step(value, generator)
        found = log_density(value)
        return Moved(value, found, found.new_ones(found.shape[1:]), tuning)
