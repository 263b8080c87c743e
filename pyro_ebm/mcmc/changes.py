"""What a log density gains when single discrete elements change: what locally balanced proposals are made of.

Every element has the alternatives that `num_alternatives` says: one, the flip, where all have two states; else all
states, its own among them.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm.mcmc.metric import Whitened


class Changes(LogDensity, Protocol):
    """A log density over discrete elements, with the gains of single changes."""

    low: Tensor
    """The lowest value of each element, `(dim,)`."""
    spacing: Tensor
    """The distance between its values, `(dim,)`."""
    num_states: Tensor
    """How many it has, `(dim,)`."""
    num_alternatives: int
    """How many alternatives each element has: 1 for a flip, else the largest number of states."""

    def changes(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """The log density `(chains,)` at `(chains, dim)`, and what it gains, `(chains, dim, alternatives)`.

        The gains need not be exact; that of an element's own state is zero.
        """
        ...


class State(NamedTuple):
    """The present draw `(chains, dim)`, `log_density` `(chains,)`, and `gains` `(chains, dim, alternatives)`."""

    position: Tensor
    log_density: Tensor
    gains: Tensor


class Info(NamedTuple):
    """Diagnostics, each `(chains,)`: every step is a transition. Named as in ArviZ.

    `non_finite` is a proposal whose log density is NaN or infinitely high; one of density zero is merely rejected.
    """

    done: Tensor
    lp: Tensor
    acceptance_rate: Tensor
    step_size: Tensor
    diverging: Tensor
    non_finite: Tensor


def changes_of(density: Whitened) -> Changes:
    """The structured density that a run was given."""
    return cast(Changes, density.log_density)


def init(density: Whitened, position: Tensor, parameters: object, randomness: object) -> State:
    """Chains at `position`, `(chains, dim)`."""
    return State(position, *changes_of(density).changes(position))


def state_numbers(target: Changes, position: Tensor) -> Tensor:
    """The states of elements as numbers, `(chains, dim)`."""
    return ((position - target.low) / target.spacing).round()


def distances(target: Changes, position: Tensor) -> Tensor:
    """How far each alternative is from the present value, `(chains, dim, alternatives)`."""
    if target.num_alternatives == 1:
        return (2 * (target.low - position) + target.spacing).unsqueeze(-1)
    numbers = torch.arange(target.num_alternatives, device=position.device)
    values = target.low.unsqueeze(-1) + target.spacing.unsqueeze(-1) * numbers
    return values - position.unsqueeze(-1)


def metropolis(
    state: State, proposed: State, log_ratio: Tensor, uniform: Tensor, step_size: Tensor
) -> tuple[State, Info]:
    """Accept or reject.

    Args:
        state: the present one.
        proposed: the new one.
        log_ratio: `log q(x | x') - log q(x' | x)`, `(chains,)`.
        uniform: `(chains,)`.
        step_size: to be recorded, `(chains,)`.
    """
    ratio = proposed.log_density - state.log_density + log_ratio
    acceptance = torch.where(ratio.isnan(), 0, ratio.clamp(max=0).exp())
    non_finite = proposed.log_density.isnan() | (proposed.log_density == torch.inf)
    accepted = (uniform < acceptance) & ~non_finite
    new = State(
        torch.where(accepted.unsqueeze(-1), proposed.position, state.position),
        torch.where(accepted, proposed.log_density, state.log_density),
        torch.where(accepted[:, None, None], proposed.gains, state.gains),
    )
    done = torch.ones_like(accepted)
    return new, Info(done, new.log_density, acceptance, step_size, non_finite, non_finite)
