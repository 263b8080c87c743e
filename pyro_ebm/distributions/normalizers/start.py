"""Where walkers start: at draws of a normalised reference, carried to the density by annealing where it differs.

Along the path `log p_β = (1 - β) log r + β u`, the weights of annealed importance sampling with resampling give log Z.
A tilt that starts at zero is its base, so its walkers are in equilibrium at once, and log Z is zero without an error.

References:
    Neal 2001, Annealed importance sampling.
    Zhou, Johansen and Aston 2016, Toward automatic model comparison: an adaptive sequential Monte Carlo approach.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Distribution, Independent
from torch.distributions.constraints import Constraint

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.errors import InitializationError, NormalizerError
from pyro_ebm._core.protocols import HasReference
from pyro_ebm._core.supports import state_range
from pyro_ebm.distributions.normalizers.population import Population
from pyro_ebm.distributions.normalizers.uniform_states import UniformStates
from pyro_ebm.energies.energy import Energy
from pyro_ebm.mcmc.moves import Density, annealing_move_for

# Each stage keeps this share of the walkers: with fewer, weights would vary more; with more, it would take longer.
_CONDITIONAL_ESS = 0.9
_MAX_STAGES = 10_000
_STEPS_PER_STAGE = 5


def reference_of(density: Density) -> Distribution:
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
    shape = density.batch_shape + density.event_shape
    states = UniformStates(found, like_of(density.energy).new_zeros(shape))
    return Independent(states, len(density.event_shape)) if density.event_shape else states


@dataclass(frozen=True)
class _Path:
    """The density at one place of the path, `(1 - β) log r + β u`."""

    target: Density
    reference: Distribution
    beta: float

    @property
    def energy(self) -> Energy:
        return self.target.energy

    @property
    def base(self) -> Distribution | None:
        return self.target.base

    @property
    def support(self) -> Constraint:
        return self.target.support

    @property
    def batch_shape(self) -> Size:
        return self.target.batch_shape

    @property
    def event_shape(self) -> Size:
        return self.target.event_shape

    def unnormalized_log_prob(self, value: Tensor) -> Tensor:
        log_prob: Tensor = self.reference.log_prob(value)
        return (1 - self.beta) * log_prob + self.beta * self.target.unnormalized_log_prob(value)


def started(density: Density, num_walkers: int, num_groups: int, generator: Generator) -> Population:
    """Walkers in equilibrium with a density, with weights that tell its log Z.

    Args:
        density: the density.
        num_walkers: in all, as `counts` gives it.
        num_groups: of trackers.
        generator: of all random numbers but those of the reference's draws, which are seeded by it.

    Raises:
        NormalizerError: if there is no reference to start from.
        InitializationError: if the density is not finite at its draws.
    """
    with torch.no_grad():
        reference = reference_of(density)
        value = _draws(reference, num_walkers, generator)
        move = annealing_move_for(density)
        log_reference = reference.log_prob(value)
        log_density = density.unnormalized_log_prob(value)
        if not bool(torch.isfinite(log_density).all()):
            raise InitializationError(
                "got an energy that is not finite at draws of the base, where walkers start, expected a finite one. "
                "Give a base that lives where the energy is finite."
            )
        weights = torch.zeros_like(log_density, dtype=torch.double)
        zeros = weights.new_zeros(num_groups, *density.batch_shape)
        population = Population(value, log_reference, weights, zeros, move.tune(value))
        beta, stage = 0.0, 0
        while beta < 1:
            gain = (log_density - log_reference).double()
            new = _next_beta(population.log_weight, gain, beta)
            stage += 1
            if stage > _MAX_STAGES:
                raise InitializationError(
                    f"got an energy so far from its base that {_MAX_STAGES} stages of annealing do not bridge them "
                    "(the walkers do not move, or the density is not finite). Give a base nearer to the density."
                )
            weight = population.log_weight + (new - beta) * gain
            population = population._replace(log_weight=weight)
            beta = new
            if beta == 1 and bool((gain == gain[:1]).all()):
                break  # a constant: the walkers are in equilibrium
            population = population.resampled(generator)
            path = _Path(density, reference, beta)
            moved = move(path, population.value, population.tuning, generator, num_steps=_STEPS_PER_STAGE)
            population = population._replace(value=moved.value, tuning=moved.tuning)
            log_reference = reference.log_prob(moved.value)
            log_density = density.unnormalized_log_prob(moved.value)
        return population._replace(log_density=density.unnormalized_log_prob(population.value))


def _draws(reference: Distribution, count: int, generator: Generator) -> Tensor:
    """Draws of a distribution, which knows torch's own generators only."""
    devices = [generator.device] if generator.device.type == "cuda" else []
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        return reference.sample(Size([count]))


def _next_beta(log_weight: Tensor, gain: Tensor, beta: float) -> float:
    """The farthest inverse temperature at which enough walkers of each batch element count."""

    def share(step: float) -> float:
        weight = torch.softmax(log_weight, 0)
        log_ratio = step * gain
        top = log_ratio.amax(0)
        ratio = (log_ratio - top).exp()
        conditional = (weight * ratio).sum(0).square() / (weight * ratio.square()).sum(0)
        return float(conditional.min())

    low, high = 0.0, 1 - beta
    if share(high) >= _CONDITIONAL_ESS:
        return 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) >= _CONDITIONAL_ESS else (low, middle)
    return beta + max(low, 1e-6)
