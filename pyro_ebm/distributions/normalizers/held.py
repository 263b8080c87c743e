"""Log Z by walkers that are held where they are: frozen ones, and any under MCMC or where no gradient is asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_ebm.distributions._caller import moved_by_chains, scored_site
from pyro_ebm.distributions.normalizers.guards import check_potential
from pyro_ebm.distributions.normalizers.population import Population
from pyro_ebm.distributions.normalizers.surrogate import check_anchor, surrogate
from pyro_ebm.mcmc.moves import EnergyDensity


def held(
    distribution: EnergyDensity,
    population: Population,
    *,
    is_frozen: bool,
    check_report: Callable[[Population, Tensor], None],
) -> Tensor:
    """Log Z by all walkers, `(*batch,)`.

    Args:
        distribution: the density.
        population: its walkers.
        is_frozen: whether the user holds them.
        check_report: raises where they must not report a log Z at the present density there, `(walkers, *batch)`.

    Raises:
        AnchorError: if they are frozen too far from the present parameters; not under MCMC.
        StochasticPotentialError: under MCMC over parameters of the energy, if they are not frozen.
    """
    in_mcmc = moved_by_chains()
    log_density, log_weights = distribution.unnormalized_log_prob(population.value), population.all_log_weights()
    if not is_frozen:
        check_potential(log_density, scored_site())
        if not in_mcmc:
            check_report(population, log_density)
    elif not in_mcmc:
        check_anchor(log_weights, log_density.detach(), population.log_density)
    return surrogate(population.log_normalizer(), log_weights, log_density, population.log_density)


def check_held(distribution: EnergyDensity, population: Population) -> None:
    """Raise where the parameters of a density are too far from those at which its walkers were frozen.

    Raises:
        AnchorError: there.
    """
    with torch.no_grad():
        log_density = distribution.unnormalized_log_prob(population.value)
        check_anchor(population.all_log_weights(), log_density, population.log_density)
