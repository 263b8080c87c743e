"""Swendsen and Wang's cluster sampler: bonds between equal neighbors, and a new state for each cluster.

For `p(x) ∝ exp(Σ_e J_e [x_i = x_j])` with all `J_e ≥ 0`: every edge between equal states becomes a bond with
probability `1 - exp(-J_e)`, and every cluster of bonds takes a state of its own, uniformly. Near a critical point,
where single elements take ages, the whole pattern changes in a few steps. It is not one static program, since the
clusters take as many rounds to find as they are tangled.

References:
    Swendsen and Wang 1987, Nonuniversal critical dynamics in Monte Carlo simulations.
    Edwards and Sokal 1988, Generalization of the Fortuin-Kasteleyn-Swendsen-Wang representation.
"""

from typing import NamedTuple, Protocol, cast

import torch
from torch import Generator, Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm._core.randomness import random_bits, uniform_of_bits
from pyro_ebm.mcmc.gibbs import Info, Parameters, info_of
from pyro_ebm.mcmc.metric import Whitened


class Ferromagnet(LogDensity, Protocol):
    """A log density `Σ_e J_e [x_i = x_j] + constant`, over elements with the same states."""

    low: Tensor
    """The lowest value of each element, `(dim,)`."""
    spacing: Tensor
    """The distance between its values, `(dim,)`."""
    num_alternatives: int
    """How many states each element has."""
    edges: Tensor
    """The pairs, `(E, 2)`."""
    coupling: Tensor
    """J of each, `(E,)`."""


class Randomness(NamedTuple):
    """A `seed` `()` for the random numbers of a step, whose number depends on the graph."""

    seed: Tensor


class State(NamedTuple):
    """The present draw, `(chains, dim)`, its `log_density` and that of no equal neighbors, `constant`, `(chains,)`."""

    position: Tensor
    log_density: Tensor
    constant: Tensor


def draw_randomness(position: Tensor, generator: Generator) -> Randomness:
    """Draw the seeds of steps for chains at `position`, `(*steps, chains, dim)`."""
    return Randomness(torch.randint(2**62, position.shape[:-2], generator=generator, device=position.device))


def _ferromagnet(density: Whitened) -> Ferromagnet:
    return cast(Ferromagnet, density.log_density)


def _interaction(target: Ferromagnet, position: Tensor) -> Tensor:
    """`Σ_e J_e [x_i = x_j]`, `(chains,)`."""
    return torch.where(_equal(target, position), target.coupling.double(), 0).sum(-1)


def _equal(target: Ferromagnet, position: Tensor) -> Tensor:
    return position[:, target.edges[:, 0]] == position[:, target.edges[:, 1]]


def init(density: Whitened, position: Tensor, parameters: Parameters, randomness: Randomness) -> State:
    """Chains at `position`, `(chains, dim)`."""
    target = _ferromagnet(density)
    value = target(position)[0].double()
    return State(position, value, value - _interaction(target, position))


def step(density: Whitened, state: State, randomness: Randomness, parameters: Parameters) -> tuple[State, Info]:
    """New states for all clusters of every chain."""
    target, dtype = _ferromagnet(density), state.position.dtype
    chains, device = len(state.position), state.position.device
    generator = Generator(device).manual_seed(int(randomness.seed))
    noise = uniform_of_bits(random_bits((chains, len(target.edges)), device, generator), dtype)
    bonds = noise < -torch.expm1(-target.coupling)
    roots = clusters(bonds & _equal(target, state.position), target.edges, state.position.shape[1])
    noise = uniform_of_bits(random_bits(state.position.shape, device, generator), dtype)
    states = (noise * target.num_alternatives).floor().gather(1, roots)
    position = target.low + target.spacing * states
    log_density = state.constant + _interaction(target, position)
    return State(position, log_density, state.constant), info_of(log_density)


def clusters(bonds: Tensor, edges: Tensor, num_elements: int) -> Tensor:
    """The smallest element of the cluster of each element.

    Roots of clusters that a bond joins are hooked to the smaller one, and pointers to pointers become pointers to
    roots, for all clusters of all chains at once; the number of rounds grows with the logarithm of the clusters' sizes.

    Args:
        bonds: which edges join their ends, `(chains, E)`.
        edges: the pairs, `(E, 2)`.
        num_elements: the number N of elements.

    Returns:
        `(chains, N)`.

    References:
        Shiloach and Vishkin 1982, An O(log n) parallel connectivity algorithm.
    """
    chain, edge = bonds.nonzero(as_tuple=True)
    first, second = (chain * num_elements + edges[edge, end] for end in (0, 1))
    root = torch.arange(len(bonds) * num_elements, device=bonds.device)
    while True:
        ends = root[first], root[second]
        apart = (ends[0] != ends[1]).nonzero().flatten()
        if not len(apart):
            return root.reshape(len(bonds), num_elements) % num_elements
        first, second = first[apart], second[apart]
        low, high = torch.minimum(*ends)[apart], torch.maximum(*ends)[apart]
        root.scatter_reduce_(0, high, low, "amin")
        while True:
            further = root[root]
            if torch.equal(further, root):
                break
            root = further
