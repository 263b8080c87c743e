"""Walkers follow a density through a change of its parameters."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from pyro_ebm._core.errors import StepTooLargeError, WalkersDivergedError
from pyro_ebm.distributions.normalizers.population import Population, relative_ess
from pyro_ebm.mcmc.moves import EnergyDensity, Move, Moved, Start

# One change must leave this share of the walkers of use.
_MIN_STEP_SHARE = 0.1


def is_step_too_large(old: Population, log_density: Tensor) -> Tensor:
    """Where too few walkers are of use after a change of the density, `(*batch,)` booleans."""
    return _step_share(old, log_density) < _MIN_STEP_SHARE


def _step_share(old: Population, log_density: Tensor) -> Tensor:
    return relative_ess((log_density - old.log_density).double())


def refreshed(
    distribution: EnergyDensity,
    old: Population,
    value: Tensor,
    log_density: Tensor,
    move: Move,
    generator: Generator,
    *,
    num_steps: int,
    when: str,
) -> tuple[Population, Moved]:
    """The walkers of a changed density: reweighted, resampled if need be, and moved.

    Args:
        distribution: the density.
        old: the walkers, as they were before the change.
        value: where they are, with a gradient if the move needs one, `(walkers, *batch, *event)`.
        log_density: the new density there, unnormalised, `(walkers, *batch)`.
        move: leaves the new density invariant.
        generator: of the random numbers.
        num_steps: of the move.
        when: to begin errors with.

    Raises:
        WalkersDivergedError: if walkers, or their energies, are not finite.
        StepTooLargeError: if less than a tenth of the walkers are of use for the new density.
    """
    if not bool(torch.isfinite(log_density).all()):
        raise WalkersDivergedError(
            f"{when}: got an energy that is not finite at the walkers (their largest coordinate is "
            f"{float(value.detach().abs().max()):.3g}), expected finite ones. The parameters may not be finite any "
            "more: lower the learning rate, clip gradients, or give a base that confines the density."
        )
    start = None
    if value.requires_grad and log_density.requires_grad:
        (gradient,) = torch.autograd.grad(log_density.sum(), value, allow_unused=True, materialize_grads=True)
        start = Start(log_density.detach(), gradient)
    with torch.no_grad():
        population = old.reweighted(log_density.detach())
        share = float(_step_share(old, log_density.detach()).min())
        if share < _MIN_STEP_SHARE:
            raise StepTooLargeError(
                f"{when}: got a change of the energy after which {share:.1%} of the walkers count, expected at least "
                f"{_MIN_STEP_SHARE:.0%}. Lower the learning rate, or clip gradients; if the energy is conditional, its "
                "contexts must not change from call to call."
            )
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
