"""Elliptical slice sampling: for densities `N(x; 0, I) L(x)`, and without a step size.

A draw ν of the base and the present draw x span an ellipse, `x cos θ + ν sin θ`. Its θ is drawn from the slice
`L(x cos θ + ν sin θ) > u L(x)`, u uniform on (0, 1), by a bracket that shrinks towards θ = 0. A tick is one evaluation
for every chain; one whose point lies in the slice starts its next ellipse in the same tick.

The position must have the standard normal base *as it is*: whiten it by the base's own scale, and adapt no metric.

References:
    Murray, Adams and MacKay 2010, Elliptical slice sampling.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm._core.randomness import normal, uniform
from pyro_ebm.mcmc.integrator import choose

# By then the bracket has shrunk to nothing, and its point to the draw itself, unless rounding puts that off the slice.
MAX_NUM_STEPS = 128


class Parameters(NamedTuple):
    """There are none."""


class Randomness(NamedTuple):
    """The random numbers of one tick.

    `direction` ν `(chains, dim)`, standard normal, and `uniform` `(2, chains)` for the slice's height and the angle.
    """

    direction: Tensor
    uniform: Tensor


class State(NamedTuple):
    """Where every chain is on its ellipse.

    Attributes:
        position: the present draw x, `(chains, dim)`, with its `log_density` `(chains,)`, base and all.
        direction: ν, `(chains, dim)`.
        threshold: the log likelihood above which a point lies in the slice, `(chains,)`.
        angle: θ of the next point, `(chains,)`, in the bracket from `lower` to `upper`.
        non_finite: whether the ellipse has met a log density that is NaN or infinitely high, `(chains,)`.
        n_steps: points seen on this ellipse, `(chains,)`.
    """

    position: Tensor
    log_density: Tensor
    direction: Tensor
    threshold: Tensor
    angle: Tensor
    lower: Tensor
    upper: Tensor
    non_finite: Tensor
    n_steps: Tensor


class Info(NamedTuple):
    """Diagnostics, each `(chains,)`, valid where `done`.

    There is no momentum: `energy` is `-log π`, `energy_error` its change. `acceptance_rate` is one over the number of
    points that the transition took, and `step_size` its angle on the ellipse, in radians. Points of density zero lie
    outside of the slice and are nothing special. `diverging` is a transition that met what is `non_finite`, or whose
    bracket shrank to nothing. Named as in ArviZ (see `nuts.Info`).
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


def _log_likelihood(log_density: Tensor, position: Tensor) -> Tensor:
    return log_density + 0.5 * position.square().sum(-1)


def init(log_density: LogDensity, position: Tensor, parameters: Parameters, randomness: Randomness) -> State:
    """Start an ellipse of every chain at `position`, `(chains, dim)`."""
    value, _ = log_density(position)
    angle = 2 * math.pi * randomness.uniform[1]
    return State(
        position=position,
        log_density=value,
        direction=randomness.direction,
        threshold=_log_likelihood(value, position) + randomness.uniform[0].log(),
        angle=angle,
        lower=angle - 2 * math.pi,
        upper=angle,
        non_finite=torch.zeros_like(value, dtype=torch.bool),
        n_steps=torch.zeros_like(value, dtype=torch.long),
    )


def step(log_density: LogDensity, state: State, randomness: Randomness, parameters: Parameters) -> tuple[State, Info]:
    """One point of every chain's ellipse; those whose point lies in the slice take it, and start their next ellipse."""
    cosine, sine = state.angle.cos().unsqueeze(-1), state.angle.sin().unsqueeze(-1)
    position = cosine * state.position + sine * state.direction
    value, _ = log_density(position)
    n_steps = state.n_steps + 1
    lost = ~torch.isfinite(state.log_density)
    sound = ~lost & (value < torch.inf)
    non_finite = state.non_finite | ~sound
    accepted = sound & (_log_likelihood(value, position) > state.threshold)
    done = accepted | lost | (n_steps == MAX_NUM_STEPS)
    draw, lp = choose(accepted, position, state.position), choose(accepted, value, state.log_density)
    info = Info(
        done=done,
        lp=lp,
        energy=-lp,
        energy_error=(state.log_density - lp).masked_fill(~accepted, 0),
        acceptance_rate=(1 / n_steps.to(lp.dtype)).masked_fill(~accepted, 0),
        step_size=state.angle.abs().masked_fill(~accepted, 0),
        n_steps=n_steps,
        diverging=done & (non_finite | ~accepted),
        non_finite=non_finite,
    )
    lower = choose(state.angle < 0, state.angle, state.lower)
    upper = choose(state.angle < 0, state.upper, state.angle)
    angle = choose(done, 2 * math.pi * randomness.uniform[1], lower + randomness.uniform[1] * (upper - lower))
    threshold = _log_likelihood(lp, draw) + randomness.uniform[0].log()
    return State(
        position=draw,
        log_density=lp,
        direction=choose(done, randomness.direction, state.direction),
        threshold=choose(done, threshold, state.threshold),
        angle=angle,
        lower=choose(done, angle - 2 * math.pi, lower),
        upper=choose(done, angle, upper),
        non_finite=non_finite & ~done,
        n_steps=n_steps.masked_fill(done, 0),
    ), info
