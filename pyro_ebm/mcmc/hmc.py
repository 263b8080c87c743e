"""Hamiltonian Monte Carlo with jittered trajectory lengths: a tick is one leapfrog for every chain, and no chain waits.

References:
    Neal 2011, MCMC using Hamiltonian dynamics.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm._core.randomness import normal, uniform
from pyro_ebm.mcmc.integrator import MAX_ENERGY_ERROR, choose, energy_error, hamiltonian, leapfrog

# A step size that adaptation has let collapse must not make one transition endless.
MAX_NUM_STEPS = 1024


class Parameters(NamedTuple):
    """What adaptation and the user set.

    Attributes:
        step_size: the leapfrog step ε, `()` or `(chains,)`.
        trajectory_length: mean integration time t, `()` or `(chains,)`; a trajectory has `⌈2 u t / ε⌉` steps, u uniform
            on (0, 1).
        num_steps: the exact number of steps instead, `()`, where positive.
    """

    step_size: Tensor
    trajectory_length: Tensor
    num_steps: Tensor


class Randomness(NamedTuple):
    """The random numbers of one tick.

    `momentum` `(chains, dim)`, and `uniform` `(2, chains)` for acceptance and length.
    """

    momentum: Tensor
    uniform: Tensor


class State(NamedTuple):
    """Where every chain is in its trajectory.

    Attributes:
        position: the present draw, `(chains, dim)`, with its `log_density` `(chains,)` and `gradient` `(chains, dim)`.
        initial_energy: H at the start of the trajectory, `(chains,)`.
        step_size: of this trajectory, `(chains,)`.
        moving_position: the end of the trajectory, `(chains, dim)`, with its momentum and gradient.
        remaining: leapfrog steps still to do, `(chains,)`.
        n_steps: leapfrog steps done, `(chains,)`.
    """

    position: Tensor
    log_density: Tensor
    gradient: Tensor
    initial_energy: Tensor
    step_size: Tensor
    moving_position: Tensor
    moving_momentum: Tensor
    moving_gradient: Tensor
    remaining: Tensor
    n_steps: Tensor


class Info(NamedTuple):
    """Diagnostics, each `(chains,)`, valid where `done`; named as in ArviZ (see `nuts.Info`)."""

    done: Tensor
    lp: Tensor
    energy: Tensor
    energy_error: Tensor
    acceptance_rate: Tensor
    step_size: Tensor
    n_steps: Tensor
    diverging: Tensor
    non_finite: Tensor


def draw_randomness(position: Tensor, generator: Generator) -> Randomness:
    """Draw the random numbers of a tick for chains at `position`, `(*ticks, chains, dim)`."""
    shape = position.shape
    return Randomness(normal(shape, position, generator), uniform((*shape[:-2], 2, shape[-2]), position, generator))


def jittered_steps(jitter: Tensor, parameters: Parameters) -> Tensor:
    """The number of steps of each trajectory, `(chains,)`, of uniform numbers `(chains,)`."""
    jittered = (2 * jitter * parameters.trajectory_length / parameters.step_size).ceil()
    jittered = torch.where(torch.isfinite(jittered), jittered, 1).clamp(1, MAX_NUM_STEPS).long()
    return torch.where(parameters.num_steps > 0, parameters.num_steps, jittered)


def init(log_density: LogDensity, position: Tensor, parameters: Parameters, randomness: Randomness) -> State:
    """Start a trajectory of every chain at `position`, `(chains, dim)`."""
    value, gradient = log_density(position)
    return State(
        position=position,
        log_density=value,
        gradient=gradient,
        initial_energy=hamiltonian(value, randomness.momentum),
        step_size=parameters.step_size.expand(value.shape),
        moving_position=position,
        moving_momentum=randomness.momentum,
        moving_gradient=gradient,
        remaining=jittered_steps(randomness.uniform[1], parameters),
        n_steps=torch.zeros(value.shape, dtype=torch.long, device=position.device),
    )


def step(log_density: LogDensity, state: State, randomness: Randomness, parameters: Parameters) -> tuple[State, Info]:
    """One leapfrog of every chain; those at the end of their trajectory accept or reject, and start the next."""
    position, momentum, value, gradient = leapfrog(
        log_density,
        state.moving_position,
        state.moving_momentum,
        state.moving_gradient,
        state.step_size.unsqueeze(-1),
    )
    energy = hamiltonian(value, momentum)
    error = energy_error(energy, state.initial_energy, gradient)
    diverging = error > MAX_ENERGY_ERROR
    remaining, n_steps = state.remaining - 1, state.n_steps + 1
    done = diverging | (remaining == 0)
    accepted = done & ~diverging & (randomness.uniform[0].log() < -error)
    draw = choose(accepted, position, state.position)
    draw_gradient = choose(accepted, gradient, state.gradient)
    lp = choose(accepted, value, state.log_density)
    draw_energy = choose(accepted, energy, state.initial_energy)
    info = Info(
        done=done,
        lp=lp,
        energy=draw_energy,
        energy_error=draw_energy - state.initial_energy,
        acceptance_rate=(-error).clamp(max=0).exp(),
        step_size=state.step_size,
        n_steps=n_steps,
        diverging=diverging,
        non_finite=torch.isinf(error),
    )
    return State(
        position=draw,
        log_density=lp,
        gradient=draw_gradient,
        initial_energy=choose(done, hamiltonian(lp, randomness.momentum), state.initial_energy),
        step_size=choose(done, parameters.step_size, state.step_size),
        moving_position=choose(done, draw, position),
        moving_momentum=choose(done, randomness.momentum, momentum),
        moving_gradient=choose(done, draw_gradient, gradient),
        remaining=choose(done, jittered_steps(randomness.uniform[1], parameters), remaining),
        n_steps=n_steps.masked_fill(done, 0),
    ), info
