"""Data drawn from an energy at proposed parameters: exactly, or by moves that start at the data that were seen."""

from __future__ import annotations

from torch import Generator, Tensor

from pyro_ebm._core.randomness import seeded
from pyro_ebm.distributions import EnergyDistribution
from pyro_ebm.mcmc.moves import move_for


def exact_data(distribution: EnergyDistribution, generator: Generator) -> Tensor | None:
    """Draws `(*batch, *event)` by the distribution's sampler, its energy or enumeration; `None` if it has none."""
    with seeded(generator, generator.device):
        return distribution.sample() if distribution.sampler is not None else distribution.exact_sample()


def moved_data(distribution: EnergyDistribution, value: Tensor, num_moves: int, generator: Generator) -> Tensor:
    """Where moves of the distribution take a value `(*batch, *event)`.

    A move is a sweep of block Gibbs for a discrete graph, and else one of the usual length: see `move_for`.
    """
    own = distribution.root
    extra = len(distribution.batch_shape) - len(own.batch_shape)
    if distribution.batch_shape[extra:] != own.batch_shape:
        own, extra = distribution, 0
    walkers = value.reshape(-1, *own.batch_shape, *own.event_shape)
    move = move_for(own)
    tuning = move.tune(walkers)
    for _ in range(num_moves):
        moved = move(own.unnormalized_log_prob, walkers, tuning, generator, num_steps=move.usual_steps)
        walkers, tuning = moved.value, moved.tuning
    return walkers.reshape(value.shape)
