"""Microcanonical Hamiltonian Monte Carlo with a Metropolis correction, and jittered trajectory lengths.

A trajectory starts with a fresh velocity on the unit sphere, follows isokinetic dynamics, and is accepted with
probability `min(1, exp(-W))`, where W is the change of `-log π` and of kinetic energy over it. A tick is one leapfrog
for every chain, and no chain waits.

A chain of constant speed is slow on a long way down to the bulk, where one that obeys Newton would gain speed. So until
chains have arrived they may follow Hamiltonian dynamics, with the same step and the same mean speed.

References:
    Robnik, Cohn-Gordon and Seljak 2025, Metropolis adjusted microcanonical Hamiltonian Monte Carlo.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm._core.randomness import normal, uniform
from pyro_ebm.mcmc import hmc
from pyro_ebm.mcmc.integrator import MAX_ENERGY_ERROR, choose, energy_error
from pyro_ebm.mcmc.isokinetic import check_dimension, isokinetic_leapfrog, kick, unit


class Parameters(NamedTuple):
    """What adaptation and the user set: as for HMC, but that time is length: all is `√dim` times as long as there.

    Attributes:
        step_size: the leapfrog step ε, `()` or `(chains,)`.
        trajectory_length: mean length t, `()` or `(chains,)`; a trajectory has `⌈2 u t / ε⌉` steps, u uniform on
            (0, 1).
        num_steps: the exact number of steps instead, `()`, where positive.
        newtonian: whether chains follow Hamiltonian dynamics, `()`.
    """

    step_size: Tensor
    trajectory_length: Tensor
    num_steps: Tensor
    newtonian: Tensor


class Randomness(NamedTuple):
    """The random numbers of one tick.

    `noise` `(chains, dim)` for the velocity, and `uniform` `(2, chains)` for acceptance and length.
    """

    noise: Tensor
    uniform: Tensor


class State(NamedTuple):
    """Where every chain is in its trajectory.

    Attributes:
        position: the present draw, `(chains, dim)`, with its `log_density` `(chains,)` and `gradient` `(chains, dim)`.
        step_size: of this trajectory, `(chains,)`.
        moving_position: the end of the trajectory, `(chains, dim)`, with its velocity and gradient.
        kinetic_energy: its change since the start, `(chains,)`.
        remaining: leapfrog steps still to do, `(chains,)`.
        n_steps: leapfrog steps done, `(chains,)`.
    """

    position: Tensor
    log_density: Tensor
    gradient: Tensor
    step_size: Tensor
    moving_position: Tensor
    moving_velocity: Tensor
    moving_gradient: Tensor
    kinetic_energy: Tensor
    remaining: Tensor
    n_steps: Tensor


class Info(NamedTuple):
    """Diagnostics, each `(chains,)`, valid where `done`.

    `energy` is `-log π` and the change of kinetic energy since the start, `energy_error` the change of both to the
    draw. Named as in ArviZ (see `nuts.Info`).
    """

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


def init(log_density: LogDensity, position: Tensor, parameters: Parameters, randomness: Randomness) -> State:
    """Start a trajectory of every chain at `position`, `(chains, dim)`.

    Raises:
        ValueError: if `dim` is less than two.
    """
    check_dimension(position)
    value, gradient = log_density(position)
    return State(
        position=position,
        log_density=value,
        gradient=gradient,
        step_size=parameters.step_size.expand(value.shape),
        moving_position=position,
        moving_velocity=_velocity(randomness, parameters),
        moving_gradient=gradient,
        kinetic_energy=torch.zeros_like(value),
        remaining=_steps(randomness, parameters),
        n_steps=torch.zeros_like(value, dtype=torch.long),
    )


def _velocity(randomness: Randomness, parameters: Parameters) -> Tensor:
    """A fresh one, of length one, or on average for Hamiltonian dynamics."""
    noise = randomness.noise
    return torch.where(parameters.newtonian, noise * noise.shape[-1] ** -0.5, unit(noise))


def _steps(randomness: Randomness, parameters: Parameters) -> Tensor:
    theirs = hmc.Parameters(parameters.step_size, parameters.trajectory_length, parameters.num_steps)
    return hmc.jittered_steps(randomness.uniform[1], theirs)


def _kick(newtonian: Tensor, velocity: Tensor, gradient: Tensor, step_size: Tensor) -> tuple[Tensor, Tensor]:
    """See `isokinetic.kick`; or Newton's, of the momentum `√dim` times the velocity in `1 / √dim` of the time."""
    turned, kinetic = kick(velocity, gradient, step_size)
    dim = velocity.shape[-1]
    pushed = velocity + step_size * gradient / dim
    gained = 0.5 * dim * (pushed.square() - velocity.square()).sum(-1)
    return torch.where(newtonian, pushed, turned), torch.where(newtonian, gained, kinetic)


def step(log_density: LogDensity, state: State, randomness: Randomness, parameters: Parameters) -> tuple[State, Info]:
    """One leapfrog of every chain; those at the end of their trajectory accept or reject, and start the next."""
    position, velocity, value, gradient, kinetic = isokinetic_leapfrog(
        log_density,
        state.moving_position,
        state.moving_velocity,
        state.moving_gradient,
        state.step_size.unsqueeze(-1),
        kick=partial(_kick, parameters.newtonian),
    )
    kinetic = state.kinetic_energy + kinetic
    error = energy_error(kinetic - value, -state.log_density, gradient)
    diverging = error > MAX_ENERGY_ERROR
    remaining, n_steps = state.remaining - 1, state.n_steps + 1
    done = diverging | (remaining == 0)
    accepted = done & ~diverging & (randomness.uniform[0].log() < -error)
    draw = choose(accepted, position, state.position)
    draw_gradient = choose(accepted, gradient, state.gradient)
    lp, draw_error = choose(accepted, value, state.log_density), error.masked_fill(~accepted, 0)
    info = Info(
        done=done,
        lp=lp,
        energy=draw_error - state.log_density,
        energy_error=draw_error,
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
        step_size=choose(done, parameters.step_size, state.step_size),
        moving_position=choose(done, draw, position),
        moving_velocity=choose(done, _velocity(randomness, parameters), velocity),
        moving_gradient=choose(done, draw_gradient, gradient),
        kinetic_energy=kinetic.masked_fill(done, 0),
        remaining=choose(done, _steps(randomness, parameters), remaining),
        n_steps=n_steps.masked_fill(done, 0),
    ), info
