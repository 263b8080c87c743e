"""Data drawn from an energy at proposed parameters: exactly, or by moves that start at the data that were seen."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from pyro_ebm._core.errors import GraphError, TreewidthError
from pyro_ebm._core.randomness import seeded
from pyro_ebm.distributions import EnergyDistribution
from pyro_ebm.graphs import FactorGraph
from pyro_ebm.infer.conditional_target import ConditionalTarget
from pyro_ebm.mcmc import gibbs
from pyro_ebm.mcmc.metric import DiagonalMetric, Whitened
from pyro_ebm.mcmc.moves import move_for


def exact_data(distribution: EnergyDistribution, generator: Generator) -> Tensor | None:
    """Draws `(*batch, *event)` by the distribution's sampler, its energy or enumeration; `None` if it has none."""
    with seeded(generator, generator.device):
        return distribution.sample() if distribution.sampler is not None else distribution.exact_sample()


def moved_data(distribution: EnergyDistribution, value: Tensor, num_moves: int, generator: Generator) -> Tensor:
    """Where moves of the distribution take a value `(*batch, *event)`.

    A move is a sweep of block Gibbs for a discrete graph, and else of the usual length of `move_for`.
    """
    own = distribution.root
    extra = len(distribution.batch_shape) - len(own.batch_shape)
    if distribution.batch_shape[extra:] != own.batch_shape:
        own, extra = distribution, 0
    walkers = value.reshape(-1, *own.batch_shape, *own.event_shape)
    energy: object = own.energy
    if isinstance(energy, FactorGraph) and own.base is None and own.support.is_discrete and not own.batch_shape:
        swept = _swept(energy, walkers, num_moves, generator)
        if swept is not None:
            return swept.reshape(value.shape)
    move = move_for(own)
    tuning = move.tune(walkers)
    for _ in range(num_moves):
        moved = move(own.unnormalized_log_prob, walkers, tuning, generator, num_steps=move.usual_steps)
        walkers, tuning = moved.value, moved.tuning
    return walkers.reshape(value.shape)


def _swept(graph: FactorGraph, walkers: Tensor, num_sweeps: int, generator: Generator) -> Tensor | None:
    """Values after sweeps of block Gibbs; `None` where the graph's factors are not local."""
    try:
        target = ConditionalTarget(graph, "Exchange")
    except (GraphError, TreewidthError):
        return None
    position = walkers.reshape(len(walkers), -1)
    density = Whitened(DiagonalMetric(torch.ones_like(position[0])), target.log_density)
    parameters = gibbs.Parameters()
    state = gibbs.init(density, position, parameters, gibbs.draw_randomness(position, generator))
    for _ in range(num_sweeps):
        state, _ = gibbs.step(density, state, gibbs.draw_randomness(position, generator), parameters)
    return state.position.to(walkers).reshape(walkers.shape)
