"""Moves of many walkers that leave a density invariant, chosen by its support."""

from pyro_ebm._core.protocols import HasGibbsStep
from pyro_ebm.mcmc.moves.gibbs_move import GibbsMove
from pyro_ebm.mcmc.moves.gibbs_with_gradients_move import GibbsWithGradientsMove
from pyro_ebm.mcmc.moves.langevin_move import LangevinMove
from pyro_ebm.mcmc.moves.move import EnergyDensity, LogDensity, Move, Moved, Start, Tuning


def move_for(density: EnergyDensity) -> Move:
    """The move that fits a density.

    MALA where it is continuous; where it is discrete its energy's own Gibbs step, if it has one, else Gibbs with
    gradients.

    Raises:
        EnergySupportError: if it is discrete with infinitely many states.
    """
    own = own_step(density)
    return annealing_move_for(density) if own is None else GibbsMove(own)


def own_step(density: EnergyDensity) -> HasGibbsStep | None:
    """The energy of a discrete density, if it can be sampled by its own Gibbs step, which would know of no base."""
    energy: object = density.energy
    if density.base is not None or not density.support.is_discrete:
        return None
    return energy if isinstance(energy, HasGibbsStep) and energy.has_gibbs_step else None


def annealing_move_for(density: EnergyDensity) -> Move:
    """The move that fits the densities between a reference and a density, whose energy's own step would not.

    Raises:
        EnergySupportError: if it is discrete with infinitely many states.
    """
    kind = GibbsWithGradientsMove if density.support.is_discrete else LangevinMove
    return kind(density.support, density.event_shape)


__all__ = [
    "EnergyDensity",
    "GibbsMove",
    "GibbsWithGradientsMove",
    "LangevinMove",
    "LogDensity",
    "Move",
    "Moved",
    "Start",
    "Tuning",
    "annealing_move_for",
    "own_step",
    "move_for",
]
