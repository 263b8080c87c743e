"""Block Gibbs sampling: a sweep gives every discrete element a new state from its conditional distribution.

The elements of a block do not interact given the others, so a block is one step, for all of them and all chains:
`x_i ~ p(x_i | x_rest)`. What the log density gains is added up on the way, in double precision, so it costs no pass of
its own.

References:
    Geman and Geman 1984, Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of images.
    Gonzalez, Low, Gretton and Guestrin 2011, Parallel Gibbs sampling: from colored fields to thin junction trees.
"""

from typing import NamedTuple, cast

import torch
from torch import Generator, Tensor

from pyro_ebm._core.heat_bath import Conditionals, Layout, resample_one, sweep
from pyro_ebm._core.randomness import random_bits, uniform
from pyro_ebm.mcmc.metric import Whitened


class Parameters(NamedTuple):
    """There are none."""


class Randomness(NamedTuple):
    """Random `bits` of one sweep, `(elements, chains)`, and `uniform` `(chains,)` to choose a block by."""

    bits: Tensor
    uniform: Tensor


class State(NamedTuple):
    """The present draw as states.

    Attributes:
        states: of each block, `(elements, chains)`.
        log_density: `(chains,)`, in double precision.
        layout: how they make a position.
    """

    states: tuple[Tensor, ...]
    log_density: Tensor
    layout: Layout

    @property
    def position(self) -> Tensor:
        """The values of all elements, `(chains, dim)`."""
        return self.layout.position(self.states)


class Info(NamedTuple):
    """Diagnostics, each `(chains,)`: every sweep is a transition, nothing is rejected, and there is no step size."""

    done: Tensor
    lp: Tensor
    acceptance_rate: Tensor
    step_size: Tensor
    diverging: Tensor
    non_finite: Tensor


def conditionals(density: Whitened) -> Conditionals:
    """The structured density that a run was given."""
    return cast(Conditionals, density.log_density)


def draw_randomness(position: Tensor, generator: Generator) -> Randomness:
    """Draw the random numbers of a tick for chains at `position`, `(*ticks, chains, dim)`."""
    *ticks, chains, dim = position.shape
    bits = random_bits((*ticks, dim, chains), position.device, generator)
    return Randomness(bits, uniform((*ticks, chains), position, generator))


def init(density: Whitened, position: Tensor, parameters: Parameters, randomness: object) -> State:
    """Chains at `position`, `(chains, dim)`."""
    target = conditionals(density)
    value, _ = target(position)
    return State(target.states(position), value.double(), target.layout)


def step(density: Whitened, state: State, randomness: Randomness, parameters: Parameters) -> tuple[State, Info]:
    """One sweep of every chain."""
    target = conditionals(density)
    states, gain = sweep(target.blocks, state.states, (), randomness.bits)
    new = State(states, state.log_density + gain, state.layout)
    return new, info_of(new.log_density)


def random_scan_step(
    density: Whitened, state: State, randomness: Randomness, parameters: Parameters
) -> tuple[State, Info]:
    """One block of every chain, chosen at random: a reversible transition, as a sweep is not."""
    target = conditionals(density)
    chosen = (randomness.uniform * len(target.blocks)).floor()
    states, gain = resample_one(target.blocks, state.states, randomness.bits, chosen)
    new = State(states, state.log_density + gain, state.layout)
    return new, info_of(new.log_density)


def info_of(lp: Tensor) -> Info:
    """What is to say of a transition that rejects nothing."""
    never = torch.zeros_like(lp, dtype=torch.bool)
    return Info(~never, lp, torch.ones_like(lp), torch.full_like(lp, torch.nan), never, never)
