"""Walkers follow a density through a change of its parameters: they are reweighted, and moved on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyro_ebm._core.errors import StepTooLargeError, WalkersDivergedError
from pyro_ebm._core.gradients import value_and_gradient
from pyro_ebm.distributions.normalizers.population import Population, relative_ess
from pyro_ebm.mcmc.moves import EnergyDensity, Move, Moved, Start

# One change must leave this share of the walkers of use.
_MIN_STEP_SHARE = 0.1


class Evaluated(NamedTuple):
    """A density at walkers.

    Attributes:
        log_density: unnormalised, of all walkers, detached, `(walkers, *batch)`.
        drivers: of those that drive the gradient, with the graph to the parameters, `(drivers, *batch)`.
        start: where a move starts; `None` if it needs no gradient.
    """

    log_density: Tensor
    drivers: Tensor
    start: Start | None


def evaluated(density: EnergyDensity, population: Population, move: Move, num_drivers: int) -> Evaluated:
    """A density at the walkers of a population.

    Gradients in the walkers and in the parameters are of two graphs: one graph for both would give each where only the
    other is asked for, which costs more than to evaluate the drivers twice.
    """
    drivers = density.unnormalized_log_prob(population.value[:num_drivers])
    if move.needs_gradient:
        value, gradient = value_and_gradient(density.unnormalized_log_prob, population.value)
        return Evaluated(value, drivers, Start(value, gradient))
    with torch.no_grad():
        others = density.unnormalized_log_prob(population.value[num_drivers:])
    return Evaluated(torch.cat([drivers.detach(), others]), drivers, None)


def is_step_too_large(old: Population, log_density: Tensor) -> Tensor:
    """Where too few walkers are of use after a change of the density, `(*batch,)` booleans."""
    return _step_share(old, log_density) < _MIN_STEP_SHARE


def _step_share(old: Population, log_density: Tensor) -> Tensor:
    return relative_ess((log_density - old.log_density).double())


def reweighted(old: Population, log_density: Tensor, when: str) -> Population:
    """The walkers of a changed density where they are, with the weights that they have for it.

    Args:
        old: the walkers, as they were before the change.
        log_density: the new density there, unnormalised, `(walkers, *batch)`.
        when: to begin errors with.

    Raises:
        WalkersDivergedError: if energies are not finite.
        StepTooLargeError: if less than a tenth of the walkers are of use for the new density.
    """
    if not bool(torch.isfinite(log_density).all()):
        raise WalkersDivergedError(
            f"{when}: got an energy that is not finite at the walkers (their largest coordinate is "
            f"{float(old.value.abs().max()):.3g}), expected finite ones. The parameters may not be finite any more: "
            "lower the learning rate, clip gradients, or give a base that confines the density."
        )
    share = float(_step_share(old, log_density).min())
    if share < _MIN_STEP_SHARE:
        raise StepTooLargeError(
            f"{when}: got a change of the energy after which {share:.1%} of the walkers count, expected at least "
            f"{_MIN_STEP_SHARE:.0%}. Lower the learning rate, or clip gradients; if the energy is conditional, its "
            "contexts must not change from call to call."
        )
    return old.reweighted(log_density)


@torch.no_grad()
def moved_on(
    distribution: EnergyDensity,
    population: Population,
    move: Move,
    generator: Generator,
    *,
    num_steps: int,
    start: Start | None,
    when: str,
) -> tuple[Population, Moved]:
    """The walkers, resampled if need be, and moved.

    Args:
        distribution: the density.
        population: its walkers.
        move: leaves the density invariant.
        generator: of the random numbers.
        num_steps: of the move.
        start: what is known where they are.
        when: to begin errors with.

    Raises:
        WalkersDivergedError: if walkers are not finite.
    """
    fresh = population.resampled(generator)
    moved = move(
        distribution.unnormalized_log_prob,
        fresh.value,
        fresh.tuning,
        generator,
        num_steps=num_steps,
        start=start if fresh is population else None,
    )
    if not _is_finite(moved.value):
        raise WalkersDivergedError(
            f"{when}: got walkers that are not finite, expected finite ones. Give a base that confines the density, or "
            "lower the learning rate."
        )
    return fresh._replace(value=moved.value, log_density=moved.log_density, tuning=moved.tuning), moved


def _is_finite(values: Tensor) -> bool:
    """Whether all are; a sum is one pass, and tells unless it overflows."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())
