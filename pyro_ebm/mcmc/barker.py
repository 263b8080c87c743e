"""The Barker proposal: every coordinate moves by a normal step, whose sign the gradient only *favours*.

`x_i ← x_i + b_i z_i`, `z_i ~ N(0, ε²)`, where `b_i = 1` with probability `σ(z_i ∂_i log π(x))`, and `-1` otherwise. So
no gradient, however steep, sends a chain far away: it scales with dimension as Langevin dynamics does, and forgives a
step too long, irregular densities and bad starts as a random walk does.

References:
    Livingstone and Zanella 2022, The Barker proposal: combining robustness and efficiency in gradient-based MCMC.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import softplus

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm._core.randomness import normal, uniform
from pyro_ebm.mcmc.integrator import MAX_ENERGY_ERROR, choose, column, energy_error


class Parameters(NamedTuple):
    """What adaptation sets: the `step_size` ε, `()` or `(chains,)`."""

    step_size: Tensor


class Randomness(NamedTuple):
    """The random numbers of one step.

    Attributes:
        noise: standard normal, `(chains, dim)`.
        sign: uniform, `(chains, dim)`, for the sign of the noise.
        uniform: `(chains,)`, for acceptance.
    """

    noise: Tensor
    sign: Tensor
    uniform: Tensor


class State(NamedTuple):
    """The present draw, `(chains, dim)`, with its `log_density` `(chains,)` and `gradient` `(chains, dim)`."""

    position: Tensor
    log_density: Tensor
    gradient: Tensor


class Info(NamedTuple):
    """Diagnostics, each `(chains,)`.

    Every step is a transition, so all are `done`. There is no momentum: `energy` is `-log π`, and `energy_error` minus
    the log of the Metropolis-Hastings ratio of the move made. Named as in ArviZ (see `nuts.Info`).
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
    return Randomness(
        noise=normal(position.shape, position, generator),
        sign=uniform(position.shape, position, generator),
        uniform=uniform(position.shape[:-1], position, generator),
    )


def init(log_density: LogDensity, position: Tensor, parameters: Parameters, randomness: Randomness) -> State:
    """Chains at `position`, `(chains, dim)`."""
    value, gradient = log_density(position)
    return State(position, value, gradient)


def step(log_density: LogDensity, state: State, randomness: Randomness, parameters: Parameters) -> tuple[State, Info]:
    """One step of every chain."""
    size = column(parameters.step_size) * randomness.noise
    move = torch.where(randomness.sign < torch.sigmoid(size * state.gradient), size, -size)
    position = state.position + move
    value, gradient = log_density(position)
    # The density of the move w is 2 φ(w) σ(w ∂log π), and -log σ(a) = softplus(-a).
    backward, forward = softplus(move * gradient), softplus(-move * state.gradient)
    error = energy_error((backward - forward).sum(-1) - value, -state.log_density, gradient)
    diverging = error > MAX_ENERGY_ERROR
    accepted = ~diverging & (randomness.uniform.log() < -error)
    lp = choose(accepted, value, state.log_density)
    info = Info(
        done=torch.ones_like(accepted),
        lp=lp,
        energy=-lp,
        energy_error=error.masked_fill(~accepted, 0),
        acceptance_rate=(-error).clamp(max=0).exp(),
        step_size=parameters.step_size.expand(lp.shape),
        diverging=diverging,
        non_finite=torch.isinf(error),
    )
    return State(choose(accepted, position, state.position), lp, choose(accepted, gradient, state.gradient)), info
