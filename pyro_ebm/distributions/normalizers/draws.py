"""Draws from the density that walkers follow."""

from __future__ import annotations

import torch
from torch import Generator, Size, Tensor

from pyro_ebm.distributions.normalizers.population import Population
from pyro_ebm.mcmc.moves import EnergyDensity, move_for

# Draws are walkers moved on so many times, so that they are not the walkers that learning has seen.
_DRAW_MOVES = 10


@torch.no_grad()
def drawn(density: EnergyDensity, population: Population, generator: Generator, sample_shape: Size) -> Tensor:
    """Values of walkers, by their weights, and moved on: draws that are as good as the walkers.

    Returns:
        `(*sample, *batch, *event)`.
    """
    weights = population.all_log_weights().exp()
    count, batch = sample_shape.numel(), weights.shape[1:]
    index = torch.multinomial(weights.reshape(len(weights), -1).mT, count, True, generator=generator)
    index = index.mT.reshape(count, *batch, *[1] * len(density.event_shape))
    value, move = population.value.take_along_dim(index, 0), move_for(density)
    steps = _DRAW_MOVES * move.usual_steps
    moved = move(density.unnormalized_log_prob, value, population.tuning, generator, num_steps=steps)
    return moved.value.reshape(sample_shape + population.value.shape[1:])
