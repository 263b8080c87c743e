"""The exchange algorithm: random-walk Metropolis over parameters of a density whose log Z is unknown.

The density of parameters θ given data x is `π(θ) f(x; θ) / Z(θ)`. A proposal θ' comes with data y of its own, drawn
from `f(y; θ') / Z(θ')`, and is accepted with probability

    min(1, [π(θ') f(x; θ') f(y; θ)] / [π(θ) f(x; θ) f(y; θ')]),

in which both Z have cancelled. It is exact if y is.

References:
    Murray, Ghahramani and MacKay 2006, MCMC for doubly-intractable distributions.
    Liang 2010, A double Metropolis-Hastings sampler for spatial models with intractable normalizing constants.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, cast

import torch
from torch import Generator, Tensor

from pyro_ebm._core.randomness import normal, uniform
from pyro_ebm.mcmc.integrator import choose, column
from pyro_ebm.mcmc.metric import Whitened
from pyro_ebm.mcmc.random_walk import Info, Parameters, State, decided


class Exchangeable(Protocol):
    """A log density of parameters without log Z, that can draw data."""

    def __call__(self, position: Tensor, /) -> tuple[Tensor, Tensor]:
        """`log π(θ) f(x; θ)` `(chains,)` at `(chains, dim)`, and zeros."""
        ...

    def exchanged(self, position: Tensor, proposal: Tensor, seed: Tensor) -> Tensor:
        """`log f(y; θ) - log f(y; θ')` for y drawn at the proposal θ', of a seed for each chain: `(chains,)`."""
        ...


class Randomness(NamedTuple):
    """The random numbers of one step.

    Attributes:
        noise: `(chains, dim)`.
        uniform: for acceptance, `(chains,)`.
        seed: of the data drawn, `(chains,)`.
    """

    noise: Tensor
    uniform: Tensor
    seed: Tensor


def draw_randomness(position: Tensor, generator: Generator) -> Randomness:
    """Draw the random numbers of a step for chains at `position`, `(*steps, chains, dim)`."""
    lead = position.shape[:-1]
    seed = torch.randint(2**62, lead, generator=generator, device=position.device)
    return Randomness(normal(position.shape, position, generator), uniform(lead, position, generator), seed)


def init(density: Whitened, position: Tensor, parameters: Parameters, randomness: Randomness) -> State:
    """Chains at `position`, `(chains, dim)`."""
    value, _ = density(position)
    return State(position, value)


def step(density: Whitened, state: State, randomness: Randomness, parameters: Parameters) -> tuple[State, Info]:
    """One step of every chain. What it says of the log density is without log Z."""
    proposal = state.position + column(parameters.step_size) * randomness.noise
    value, _ = density(proposal)
    target, to_position = cast(Exchangeable, density.log_density), density.metric.to_position
    # Where the prior is zero, there may be no density to draw data from.
    possible = value > -torch.inf
    safe = choose(possible, proposal, state.position)
    exchanged = target.exchanged(to_position(state.position), to_position(safe), randomness.seed)
    gain = value - state.log_density + torch.where(possible, exchanged, 0)
    return decided(state, State(proposal, value), gain, randomness.uniform, parameters)
