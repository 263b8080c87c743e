"""Where walkers start: at draws of a normalised reference, carried to the density by annealing where it differs.

Along a path from the one to the other, the weights of annealed importance sampling with resampling give log Z.
A tilt that starts at zero is its base, so its walkers are in equilibrium at once, and log Z is zero without an error.

References:
    Neal 2001, Annealed importance sampling.
    Zhou, Johansen and Aston 2016, Toward automatic model comparison: an adaptive sequential Monte Carlo approach.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Distribution, Independent
from torch.distributions.constraints import integer_interval

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.errors import InitializationError, NormalizerError
from pyro_ebm._core.protocols import AnnealingPath, HasAnnealingPath, HasReference
from pyro_ebm._core.randomness import seeded
from pyro_ebm._core.supports import state_range, strip_independent
from pyro_ebm.distributions.normalizers.population import Population
from pyro_ebm.distributions.normalizers.uniform_states import UniformStates
from pyro_ebm.mcmc.annealed import Path, Transition, density_at, gain_along, geometric_path, longest_step
from pyro_ebm.mcmc.moves import EnergyDensity, LogDensity, Move, Tuning, annealing_move_for, move_for, own_step

# Each stage keeps this share of the walkers: with fewer, weights would vary more; with more, it would take longer.
_CONDITIONAL_ESS = 0.9
_STEPS_PER_STAGE = 5


def reference_of(density: EnergyDensity) -> Distribution:
    """The normalised distribution at which walkers of a density start, over its batch.

    Its base; or what its energy says is near; or, where the states are finitely many, the uniform one.

    Raises:
        NormalizerError: if there is none.
    """
    energy: object = density.energy
    if density.base is not None:
        expanded: Distribution = density.base.expand(density.batch_shape)
        return expanded
    if isinstance(energy, HasReference):
        near: Distribution = energy.reference().expand(density.batch_shape)
        return near
    found = state_range(density.support)
    if found is None:
        raise NormalizerError(
            f"got an energy {type(energy).__name__} on {density.support} without a base, expected one that says where "
            "walkers start and log Z is known. Give a base (a fitted Gaussian, say): EnergyDistribution(energy, base)."
        )
    like = like_of(density.energy).new_zeros(density.batch_shape + density.event_shape)
    states = UniformStates(found, like, integers=isinstance(strip_independent(density.support), integer_interval))
    return Independent(states, len(density.event_shape)) if density.event_shape else states


def started(
    density: EnergyDensity, num_drivers: int, num_trackers: int, num_groups: int, generator: Generator
) -> tuple[Population, int]:
    """Walkers in equilibrium with a density, with weights that tell its log Z; and the stages that it took.

    Args:
        density: the density.
        num_drivers: the walkers that drive the gradient.
        num_trackers: those that track log Z, as `counts` gives them.
        num_groups: of trackers.
        generator: of all random numbers.

    Raises:
        NormalizerError: if there is no reference to start from.
        InitializationError: if the density is not finite at its draws.
    """
    with torch.no_grad():
        reference = reference_of(density)
        with seeded(generator, generator.device):
            value = reference.sample(Size([num_drivers + num_trackers]))
        if value.is_floating_point():
            value = value.to(torch.promote_types(value.dtype, density.unnormalized_log_prob(value).dtype))
        elif density.base is not None:  # numbers of states, of a categorical base: moves need gradients in them
            value = value.to(like_of(density.energy).dtype)
        path, transition = _annealing(density, reference, value, generator)
        at_value = path(value)
        beta, one = value.new_zeros((), dtype=torch.double), value.new_ones((), dtype=torch.double)
        gain = gain_along(at_value, beta, one).double()
        if not bool(torch.isfinite(gain).all()):
            raise InitializationError(
                "got an energy that is not finite at draws of the base, where walkers start, expected a finite one. "
                "Give a base that lives where the energy is finite."
            )
        weights = torch.zeros_like(gain)
        zeros = weights.new_zeros(num_groups, *density.batch_shape)
        population = Population(value, at_value(beta), weights, zeros, transition.tuning, num_drivers)
        if bool((gain == gain[:1]).all()):  # a constant: the walkers are in equilibrium
            population, beta = population._replace(log_weight=gain), one
        num_stages = 0
        while beta < 1:
            num_stages += 1
            following = longest_step(at_value, population.log_weight, beta, _CONDITIONAL_ESS)
            if following == beta:
                raise InitializationError(
                    f"got an energy that annealing does not reach from its base: at inverse temperature "
                    f"{float(beta):.3g} no step keeps {_CONDITIONAL_ESS:.0%} of the walkers, expected one that does. "
                    "Give a base nearer to the density."
                )
            weights = population.log_weight + gain_along(at_value, beta, following)
            population, beta = population._replace(log_weight=weights).resampled(generator), following
            value = transition(population.value, partial(density_at, path, beta), beta)
            population = population._replace(value=value, tuning=transition.tuning)
            at_value = path(population.value)
        return population._replace(log_density=density.unnormalized_log_prob(population.value)), num_stages


def _annealing(
    density: EnergyDensity, reference: Distribution, value: Tensor, generator: Generator
) -> tuple[Path, _Transition]:
    """The path from a reference, and transitions along it: the energy's own, if it has one, or the geometric one."""
    energy: object = own_step(density)
    if isinstance(energy, HasAnnealingPath):
        own = energy.annealing_path(generator)
        return own, _OwnTransition(own, move_for(density).tune(value))
    move = annealing_move_for(density)
    path = geometric_path(reference.log_prob, density.unnormalized_log_prob)
    return path, _MoveTransition(move, move.tune(value), generator)


class _Transition(Transition, Protocol):
    """A transition, and what the moves of walkers are to know of it afterwards."""

    tuning: Tuning


class _OwnTransition:
    """That of an energy's own path."""

    def __init__(self, path: AnnealingPath, tuning: Tuning) -> None:
        self._path, self.tuning = path, tuning

    def __call__(self, values: Tensor, log_density: LogDensity, beta: Tensor, /) -> Tensor:
        return self._path.move(values, log_density, beta)


class _MoveTransition:
    """Moves whose tuning follows the densities along the path."""

    def __init__(self, move: Move, tuning: Tuning, generator: Generator) -> None:
        self._move, self.tuning, self._generator = move, tuning, generator

    def __call__(self, values: Tensor, log_density: LogDensity, beta: Tensor, /) -> Tensor:
        moved = self._move(log_density, values, self.tuning, self._generator, num_steps=_STEPS_PER_STAGE)
        self.tuning = moved.tuning
        return moved.value
