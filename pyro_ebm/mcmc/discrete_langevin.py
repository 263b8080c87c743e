"""Discrete Langevin: all elements change at once, each by itself, and a Metropolis correction.

An element's new state is drawn from `q(k) ∝ exp(d(k) / 2 - D(k) / (2 α))`, with `d` what the log density would gain by
this change alone, or the gradient's estimate of it, and D the squared distance: 1 for any other state, or that of the
state numbers where these have an order. The step size here is `ε = exp(-1 / (2 α))`, in (0, 1]: the odds of a change
are proportional to it, which makes it easy to adapt.

References:
    Zhang, Liu and Liu 2022, A Langevin-like sampler for discrete distributions.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyro_ebm._core import randomness as random
from pyro_ebm.mcmc.changes import Changes, Info, State, changes_of, metropolis, state_numbers
from pyro_ebm.mcmc.metric import Whitened


class Parameters(NamedTuple):
    """The step size ε, `(chains,)`, and whether distances are those of state numbers, `()`."""

    step_size: Tensor
    ordinal: Tensor


class Randomness(NamedTuple):
    """Random `bits` for each element, `(chains, dim)`, and `uniform` `(chains,)` for acceptance."""

    bits: Tensor
    uniform: Tensor


def draw_randomness(position: Tensor, generator: Generator) -> Randomness:
    """Draw the random numbers of a step for chains at `position`, `(*steps, chains, dim)`."""
    bits = random.random_bits(position.shape, position.device, generator)
    return Randomness(bits, random.uniform(position.shape[:-1], position, generator))


def step(density: Whitened, state: State, randomness: Randomness, parameters: Parameters) -> tuple[State, Info]:
    """One proposal for every chain."""
    target = changes_of(density)
    noise = random.uniform_of_bits(randomness.bits, state.position.dtype)
    moves = _flips if target.num_alternatives == 1 else _choices
    proposed, log_ratio = moves(target, state, noise, parameters)
    return metropolis(state, proposed, log_ratio, randomness.uniform, parameters.step_size)


def _flips(target: Changes, state: State, noise: Tensor, parameters: Parameters) -> tuple[State, Tensor]:
    """Where every element has two states."""
    log_step = parameters.step_size.log().unsqueeze(-1)
    odds = state.gains[..., 0] / 2 + log_step
    flips = noise * (1 + (-odds).exp()) < 1
    position = torch.where(flips, 2 * target.low + target.spacing - state.position, state.position)
    proposed = State(position, *target.changes(position))
    back = proposed.gains[..., 0] / 2 + log_step
    softplus = torch.nn.functional.softplus
    log_ratio = torch.where(flips, back - odds, 0) - softplus(back) + softplus(odds)
    return proposed, log_ratio.sum(-1)


def _choices(target: Changes, state: State, noise: Tensor, parameters: Parameters) -> tuple[State, Tensor]:
    """Where elements have any numbers of states."""
    old = state_numbers(target, state.position)
    logits = _logits(target, state.gains, old, parameters)
    cumulative = logits.exp().cumsum(-1)
    new = (noise.unsqueeze(-1) * cumulative[..., -1:] >= cumulative[..., :-1]).sum(-1)
    position = target.low + target.spacing * new
    proposed = State(position, *target.changes(position))
    back = _logits(target, proposed.gains, new, parameters)
    backward = back.gather(-1, old.long().unsqueeze(-1))
    log_ratio = backward - logits.gather(-1, new.unsqueeze(-1))
    return proposed, log_ratio.flatten(1).sum(-1)


def _logits(target: Changes, gains: Tensor, own: Tensor, parameters: Parameters) -> Tensor:
    """The normalised log-probabilities of new states, `(chains, dim, states)`."""
    numbers = torch.arange(target.num_alternatives, device=gains.device)
    apart = (numbers - own.unsqueeze(-1)).abs()
    distance = torch.where(parameters.ordinal, apart.square(), apart.clamp(max=1))
    logits = gains / 2 + distance * parameters.step_size.log()[:, None, None]
    return logits.masked_fill(numbers >= target.num_states.unsqueeze(-1), -torch.inf).log_softmax(-1)
