"""Underdamped Langevin dynamics, `dq = p dt`, `dp = ∇log π(q) dt - γ p dt + √(2γ) dW`, corrected and uncorrected.

A step is made of kicks B by the gradient, drifts A by the momentum, and the exact solution O of friction and noise,
`p ← c p + √(1 - c²) ξ` with `c = exp(-γε)`.

- Without the Metropolis correction a step is `B A O A B`, with half kicks and half drifts: of such splittings the one
  with the least bias of the position. On a Gaussian the position has none at all, and the momentum along a coordinate
  of frequency ω has the variance `1 - (εω)²/4`.
- With the correction it is generalised Hamiltonian Monte Carlo: O, then a leapfrog step `B A B` that is accepted or
  rejected. The momentum is *reversed* on rejection, or else the density would not be invariant. (Half an O before and
  after, "OBABO", is the same chain, seen at another moment.) A rejection sends the chain back on its way, so that small
  steps, with acceptance rates well above 0.9, pay.

Both report what a correction accepts; that of `B A O A B` is by its work, the change of energy less the heat that O
took in.

References:
    Horowitz 1991, A generalized guided Monte Carlo algorithm.
    Bussi and Parrinello 2007, Accurate sampling using Langevin dynamics.
    Leimkuhler and Matthews 2013, Rational construction of stochastic numerical methods for molecular sampling.
    Sivak, Chodera and Crooks 2013, Using nonequilibrium fluctuation theorems to understand and correct errors in
        equilibrium and nonequilibrium simulations of discrete Langevin dynamics.
    Monmarché 2021, High-dimensional MCMC with a standard splitting scheme for the underdamped Langevin diffusion.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm._core.randomness import normal, uniform
from pyro_ebm.mcmc.integrator import MAX_ENERGY_ERROR, choose, column, energy_error, hamiltonian


class Parameters(NamedTuple):
    """What adaptation and the user set.

    Attributes:
        step_size: ε, `()` or `(chains,)`.
        friction: γ, `()` or `(chains,)`: the momentum is forgotten in a time `1/γ`, that is, in `1/(γε)` steps.
        metropolis: whether moves are accepted or rejected, or always made; `()`, bool.
    """

    step_size: Tensor
    friction: Tensor
    metropolis: Tensor


class Randomness(NamedTuple):
    """The random numbers of one step: `noise` ξ `(chains, dim)`, and `uniform` `(chains,)` for acceptance."""

    noise: Tensor
    uniform: Tensor


class State(NamedTuple):
    """The present draw and its `momentum`, `(chains, dim)`; its `log_density` `(chains,)` and `gradient`."""

    position: Tensor
    momentum: Tensor
    log_density: Tensor
    gradient: Tensor


class Info(NamedTuple):
    """Diagnostics, each `(chains,)`.

    Every step is a transition, so all are `done`. `energy_error` is the work of the step, zero where it was not made.
    Named as in ArviZ (see `nuts.Info`).
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
    """Chains at `position`, `(chains, dim)`, with fresh momenta."""
    value, gradient = log_density(position)
    return State(position, randomness.noise, value, gradient)


def step(log_density: LogDensity, state: State, randomness: Randomness, parameters: Parameters) -> tuple[State, Info]:
    """One step of every chain. A step that diverges is never made, and marked; the chain turns round."""
    step_size, metropolis = column(parameters.step_size), parameters.metropolis
    friction = column(parameters.friction) * step_size
    decay, noise = (-friction).exp(), (-(-2 * friction).expm1()).sqrt() * randomness.noise
    start = torch.where(metropolis, decay * state.momentum + noise, state.momentum)
    cold = start + 0.5 * step_size * state.gradient
    warm = torch.where(metropolis, cold, decay * cold + noise)
    heat = 0.5 * (warm.square() - cold.square()).sum(-1)
    position = state.position + 0.5 * step_size * (cold + warm)
    value, gradient = log_density(position)
    momentum = warm + 0.5 * step_size * gradient
    initial_energy, energy = hamiltonian(state.log_density, start), hamiltonian(value, momentum)
    error = energy_error(energy - heat, initial_energy, gradient)
    diverging = error > MAX_ENERGY_ERROR
    accepted = ~diverging & ((randomness.uniform.log() < -error) | ~metropolis)
    lp = choose(accepted, value, state.log_density)
    info = Info(
        done=torch.ones_like(accepted),
        lp=lp,
        energy=choose(accepted, energy, initial_energy),
        energy_error=error.masked_fill(~accepted, 0),
        acceptance_rate=(-error).clamp(max=0).exp(),
        step_size=parameters.step_size.expand(lp.shape),
        diverging=diverging,
        non_finite=torch.isinf(error),
    )
    return State(
        position=choose(accepted, position, state.position),
        momentum=choose(accepted, momentum, -start),
        log_density=lp,
        gradient=choose(accepted, gradient, state.gradient),
    ), info
