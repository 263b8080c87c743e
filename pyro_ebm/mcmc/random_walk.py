"""Random-walk Metropolis: `x + ε ξ` is accepted with probability `min(1, π(x + ε ξ) / π(x))`.

It uses no gradient, which need not even exist, and a density may be zero where it likes.

References:
    Metropolis, Rosenbluth, Rosenbluth, Teller and Teller 1953, Equation of state calculations by fast computing
        machines.
    Roberts, Gelman and Gilks 1997, Weak convergence and optimal scaling of random walk Metropolis algorithms: the best
        acceptance rate is 0.234 in many dimensions, 0.44 in one.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm._core.randomness import normal, uniform
from pyro_ebm.mcmc.integrator import choose, column


class Parameters(NamedTuple):
    """What adaptation sets: the `step_size` ε, `()` or `(chains,)`."""

    step_size: Tensor


class Randomness(NamedTuple):
    """The random numbers of one step: `noise` ξ `(chains, dim)`, and `uniform` `(chains,)` for acceptance."""

    noise: Tensor
    uniform: Tensor


class State(NamedTuple):
    """The present draw, `(chains, dim)`, with its `log_density` `(chains,)`."""

    position: Tensor
    log_density: Tensor


class Info(NamedTuple):
    """Diagnostics, each `(chains,)`.

    Every step is a transition, so all are `done`. There is no momentum: `energy` is `-log π`, `energy_error` its
    change. A proposal of density zero is rejected as any other. One whose log density is NaN or infinitely high is
    `non_finite` and `diverging`, and so is every step of a chain whose own log density is not finite. Named as in
    ArviZ (see `nuts.Info`).
    """

    done: Tensor
    lp: Tensor
    energy: Tensor
    energy_error: Tensor
    acceptance_rate: Tensor
    step_size: Tensor
    diverging: Tensor
    non_finite: Tensor


def draw_randomness(position: Tensor, generator: Generator) -> Randomness:
    """Draw the random numbers of a step for chains at `position`, `(*steps, chains, dim)`."""
    return Randomness(normal(position.shape, position, generator), uniform(position.shape[:-1], position, generator))


def init(log_density: LogDensity, position: Tensor, parameters: Parameters, randomness: Randomness) -> State:
    """Chains at `position`, `(chains, dim)`."""
    value, _ = log_density(position)
    return State(position, value)


def step(log_density: LogDensity, state: State, randomness: Randomness, parameters: Parameters) -> tuple[State, Info]:
    """One step of every chain."""
    position = state.position + column(parameters.step_size) * randomness.noise
    value, _ = log_density(position)
    return decided(state, State(position, value), value - state.log_density, randomness.uniform, parameters)


def decided(state: State, proposal: State, gain: Tensor, uniform: Tensor, parameters: Parameters) -> tuple[State, Info]:
    """Accept or reject the proposals of all chains, by Metropolis.

    Args:
        state: where the chains are.
        proposal: where they may go.
        gain: the log of the acceptance ratio, `(chains,)`.
        uniform: random, `(chains,)`.
        parameters: of the walk.
    """
    sound = torch.isfinite(state.log_density) & (gain < torch.inf)
    log_ratio = torch.where(sound, gain, -torch.inf)
    accepted = uniform.log() < log_ratio
    lp = choose(accepted, proposal.log_density, state.log_density)
    info = Info(
        done=torch.ones_like(accepted),
        lp=lp,
        energy=-lp,
        energy_error=(-log_ratio).masked_fill(~accepted, 0),
        acceptance_rate=log_ratio.clamp(max=0).exp(),
        step_size=parameters.step_size.expand(lp.shape),
        diverging=~sound,
        non_finite=~sound,
    )
    return State(choose(accepted, proposal.position, state.position), lp), info
