"""Stochastic-gradient Langevin dynamics: `x ← x + ε_t P g_t + √(2 ε_t P) ξ`, where the gradient `g_t` is noisy.

The log density is an unbiased estimate, from a minibatch say, made anew whenever it is called. There is no Metropolis
correction. Steps `ε_t = a (b + t)^-γ` with `1/2 < γ ≤ 1` make the bias vanish as they shrink; `γ = 0` keeps one step,
and a bias of order ε. (Welling and Teh write ε for `2 ε_t`.)

The preconditioner, if wanted, is `P = 1 / (λ + √V)` with the running mean `V ← α V + (1 - α) g²` in each coordinate.
Since P depends on where the chain has been, exact dynamics would have one more drift, Γ, the divergence of P. It is
dropped, as Li et al. do in practice: a bias that no step size removes, and small while α is near one. Their g is a mean
over N data, here it is the gradient of the whole log density: λ counts for less, and a step is N times as short.

References:
    Welling and Teh 2011, Bayesian learning via stochastic gradient Langevin dynamics.
    Li, Chen, Carlson and Carin 2016, Preconditioned stochastic gradient Langevin dynamics for deep neural networks.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm._core.randomness import normal
from pyro_ebm.mcmc.integrator import choose


class Parameters(NamedTuple):
    """What the user sets.

    Attributes:
        step_size: a, `()`.
        offset: b, `()`, positive.
        decay: γ, `()`.
        preconditioned: whether steps are scaled by P.
        smoothing: α.
        damping: λ.
    """

    step_size: Tensor
    offset: Tensor
    decay: Tensor
    preconditioned: bool = False
    smoothing: float = 0.99
    damping: float = 1e-5


class Randomness(NamedTuple):
    """The random numbers of one step: `noise` ξ `(chains, dim)`."""

    noise: Tensor


class State(NamedTuple):
    """The present draw and what scales its next step.

    Attributes:
        position: the present draw, `(chains, dim)`, with the estimates of its `log_density` `(chains,)` and `gradient`
            `(chains, dim)`.
        second_moment: V, `(chains, dim)`.
        num_steps: t, the number of steps so far, `(chains,)`.
    """

    position: Tensor
    log_density: Tensor
    gradient: Tensor
    second_moment: Tensor
    num_steps: Tensor


class Info(NamedTuple):
    """Diagnostics, each `(chains,)`.

    Every step is a transition, so all are `done`, and made: `acceptance_rate` is one, but for a step to or from where
    the estimates are not finite. That is not made, and is `diverging` and `non_finite`. `lp` is an estimate, `energy`
    minus it, and `energy_error` its change, which is mostly noise. Named as in ArviZ (see `nuts.Info`).
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
    """Chains at `position`, `(chains, dim)`, at the beginning of the schedule."""
    value, gradient = log_density(position)
    return State(position, value, gradient, gradient.square(), torch.zeros_like(value, dtype=torch.long))


def step(log_density: LogDensity, state: State, randomness: Randomness, parameters: Parameters) -> tuple[State, Info]:
    """One step of every chain."""
    time = parameters.offset + state.num_steps.to(state.position.dtype)
    step_size = parameters.step_size * time**-parameters.decay
    scaled = step_size.unsqueeze(-1)
    if parameters.preconditioned:
        scaled = scaled / (parameters.damping + state.second_moment.sqrt())
    position = state.position + scaled * state.gradient + (2 * scaled).sqrt() * randomness.noise
    value, gradient = log_density(position)
    made = torch.isfinite(state.log_density) & torch.isfinite(value) & torch.isfinite(gradient).all(-1)
    second_moment = parameters.smoothing * state.second_moment + (1 - parameters.smoothing) * gradient.square()
    lp = choose(made, value, state.log_density)
    info = Info(
        done=torch.ones_like(made),
        lp=lp,
        energy=-lp,
        energy_error=(state.log_density - lp).masked_fill(~made, 0),
        acceptance_rate=made.to(lp.dtype),
        step_size=step_size,
        diverging=~made,
        non_finite=~made,
    )
    return State(
        position=choose(made, position, state.position),
        log_density=lp,
        gradient=choose(made, gradient, state.gradient),
        second_moment=choose(made, second_moment, state.second_moment),
        num_steps=state.num_steps + 1,
    ), info
