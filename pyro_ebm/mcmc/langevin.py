"""Langevin dynamics `x ← x - ε∇E(x) + √(2ε) ξ`, with the Metropolis correction (MALA) and without it (ULA).

A Langevin step is one leapfrog step of size `√(2ε)` from a fresh momentum ξ, and its Metropolis ratio is that of the
Hamiltonian: so both report a Hamiltonian, and ULA reports the acceptance rate that the correction *would have had*,
which measures its bias.

References:
    Roberts and Tweedie 1996, Exponential convergence of Langevin distributions and their discrete approximations.
    Roberts and Rosenthal 1998, Optimal scaling of discrete approximations to Langevin diffusions.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm._core.randomness import normal, uniform
from pyro_ebm.mcmc.integrator import MAX_ENERGY_ERROR, choose, column, energy_error, hamiltonian, leapfrog

# The acceptance that is best for many dims: Roberts and Rosenthal 1998.
TARGET_ACCEPTANCE = 0.574


def best_log_step_size(dim: int) -> float:
    """Log ε that is best for standard normal coordinates: `ε = ½ (1.65 d^(-1/6))²`."""
    return math.log(0.5 * 1.65**2 * max(1, dim) ** (-1 / 3))


class Parameters(NamedTuple):
    """What adaptation and the user set.

    Attributes:
        step_size: ε, `()` or `(chains,)`.
        metropolis: whether moves are accepted or rejected (MALA), or always made (ULA); `()`, bool.
    """

    step_size: Tensor
    metropolis: Tensor


class Randomness(NamedTuple):
    """The random numbers of one step: `noise` ξ `(chains, dim)`, and `uniform` `(chains,)` for acceptance."""

    noise: Tensor
    uniform: Tensor


class State(NamedTuple):
    """The present draw, `(chains, dim)`, with its `log_density` `(chains,)` and `gradient` `(chains, dim)`."""

    position: Tensor
    log_density: Tensor
    gradient: Tensor


class Info(NamedTuple):
    """Diagnostics, each `(chains,)`.

    Every step is a transition, so all are `done`. Named as in ArviZ (see `nuts.Info`).
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
    value, gradient = log_density(position)
    return State(position, value, gradient)


def step(log_density: LogDensity, state: State, randomness: Randomness, parameters: Parameters) -> tuple[State, Info]:
    """One Langevin step of every chain. A step that diverges is never made, and marked."""
    position, momentum, value, gradient = leapfrog(
        log_density, state.position, randomness.noise, state.gradient, column((2 * parameters.step_size).sqrt())
    )
    initial_energy, energy = hamiltonian(state.log_density, randomness.noise), hamiltonian(value, momentum)
    error = energy_error(energy, initial_energy, gradient)
    diverging = error > MAX_ENERGY_ERROR
    accepted = ~diverging & ((randomness.uniform.log() < -error) | ~parameters.metropolis)
    lp = choose(accepted, value, state.log_density)
    energy = choose(accepted, energy, initial_energy)
    info = Info(
        done=torch.ones_like(accepted),
        lp=lp,
        energy=energy,
        energy_error=energy - initial_energy,
        acceptance_rate=(-error).clamp(max=0).exp(),
        step_size=parameters.step_size.expand(lp.shape),
        diverging=diverging,
        non_finite=torch.isinf(error),
    )
    return State(choose(accepted, position, state.position), lp, choose(accepted, gradient, state.gradient)), info
