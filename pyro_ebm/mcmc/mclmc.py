"""Microcanonical Langevin Monte Carlo, uncorrected: isokinetic dynamics whose velocity is refreshed little by little.

A step refreshes the velocity, `u ← (c u + √((1 - c²)/d) ξ) / |...|` with `c = exp(-ε/L)`, and makes one isokinetic
leapfrog step ε. Its bias is of order ε²; `energy_error`, and the acceptance rate that a correction *would have had*,
measure it.

References:
    Robnik and Seljak 2023, Fluctuation without dissipation: microcanonical Langevin Monte Carlo.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm._core.randomness import normal
from pyro_ebm.mcmc.integrator import MAX_ENERGY_ERROR, choose, column, energy_error
from pyro_ebm.mcmc.isokinetic import check_dimension, isokinetic_leapfrog, unit


class Parameters(NamedTuple):
    """What adaptation and the user set.

    Attributes:
        step_size: the length ε of a step, `()` or `(chains,)`: a leapfrog step of Hamiltonian dynamics times `√dim`.
        decoherence_length: the length L after which the velocity is forgotten, `()`; the size of the density,
            `√(Σ Var x_i)`, is a good one.
    """

    step_size: Tensor
    decoherence_length: Tensor


class Randomness(NamedTuple):
    """The random numbers of one step: `noise` ξ `(chains, dim)`."""

    noise: Tensor


class State(NamedTuple):
    """The present draw and its `velocity`, `(chains, dim)`; its `log_density` `(chains,)` and `gradient`."""

    position: Tensor
    velocity: Tensor
    log_density: Tensor
    gradient: Tensor


class Info(NamedTuple):
    """Diagnostics, each `(chains,)`.

    Every step is a transition, so all are `done`. `energy` is `-log π` and the change of kinetic energy in the step,
    `energy_error` the change of both, zero where the step was not made. Named as in ArviZ (see `nuts.Info`).
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
    return Randomness(normal(position.shape, position, generator))


def init(log_density: LogDensity, position: Tensor, parameters: Parameters, randomness: Randomness) -> State:
    """Chains at `position`, `(chains, dim)`, with fresh velocities.

    Raises:
        ValueError: if `dim` is less than two.
    """
    check_dimension(position)
    value, gradient = log_density(position)
    return State(position, unit(randomness.noise), value, gradient)


def step(log_density: LogDensity, state: State, randomness: Randomness, parameters: Parameters) -> tuple[State, Info]:
    """One step of every chain. A step that diverges is never made, and marked; the chain turns round."""
    step_size = column(parameters.step_size)
    refreshed_length = step_size / parameters.decoherence_length
    fresh = (-(-2 * refreshed_length).expm1() / state.position.shape[-1]).sqrt() * randomness.noise
    start = unit((-refreshed_length).exp() * state.velocity + fresh)
    position, velocity, value, gradient, kinetic = isokinetic_leapfrog(
        log_density, state.position, start, state.gradient, step_size
    )
    error = energy_error(kinetic - value, -state.log_density, gradient)
    diverging = error > MAX_ENERGY_ERROR
    lp, made_error = choose(diverging, state.log_density, value), error.masked_fill(diverging, 0)
    info = Info(
        done=torch.ones_like(diverging),
        lp=lp,
        energy=made_error - state.log_density,
        energy_error=made_error,
        acceptance_rate=(-error).clamp(max=0).exp(),
        step_size=parameters.step_size.expand(lp.shape),
        diverging=diverging,
        non_finite=torch.isinf(error),
    )
    return State(
        position=choose(diverging, state.position, position),
        velocity=choose(diverging, -start, velocity),
        log_density=lp,
        gradient=choose(diverging, state.gradient, gradient),
    ), info
