"""What a run asks of a sampler: its module's functions, bound to their settings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm.mcmc import hmc, langevin, nuts


class State(Protocol):
    """What every sampler's state carries: it is a `NamedTuple` of tensors."""

    @property
    def position(self) -> Tensor:
        """The present draw of each chain, `(chains, dim)`."""
        ...

    def _asdict(self) -> dict[str, Tensor]: ...


class Info(Protocol):
    """What every sampler says of a tick: a `NamedTuple` of tensors `(chains,)`, named as in ArviZ."""

    @property
    def done(self) -> Tensor:
        """Which chains ended a transition, `(chains,)`."""
        ...

    @property
    def lp(self) -> Tensor:
        """The log density of the draw, `(chains,)`."""
        ...

    @property
    def acceptance_rate(self) -> Tensor:
        """The acceptance probability of the transition, `(chains,)`."""
        ...

    @property
    def step_size(self) -> Tensor:
        """The step size of the transition, `(chains,)`."""
        ...

    @property
    def diverging(self) -> Tensor:
        """Whether the transition diverged, `(chains,)`."""
        ...

    def _asdict(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Algorithm:
    """A sampler with its settings.

    Attributes:
        name: what it is called in results.
        init: `(log_density, position, parameters, randomness) -> State`.
        draw_randomness: `(position, generator) -> Randomness`.
        step: `(log_density, state, randomness, parameters) -> (State, Info)`.
        restore: makes a state of its fields.
        parameters: makes parameters of a leapfrog step size, `()`, and of whether the run is warming up.
        target_accept_prob: what the step size adapts to.
    """

    name: str
    init: Callable[[LogDensity, Tensor, Any, Any], State]
    draw_randomness: Callable[[Tensor, Generator], Any]
    step: Callable[[LogDensity, Any, Any, Any], tuple[State, Info]]
    restore: Callable[..., State]
    parameters: Callable[[Tensor, bool], Any]
    target_accept_prob: float


def nuts_algorithm(*, max_tree_depth: int = 10, target_accept_prob: float = 0.8) -> Algorithm:
    """The no-U-turn sampler: see `nuts`."""
    return Algorithm(
        name="NUTS",
        init=nuts.init,
        draw_randomness=nuts.draw_randomness,
        step=nuts.step,
        restore=nuts.State,
        parameters=lambda step_size, _: nuts.Parameters(step_size, max_tree_depth),
        target_accept_prob=target_accept_prob,
    )


def hmc_algorithm(
    *, trajectory_length: float, num_steps: int | None = None, target_accept_prob: float = 0.8
) -> Algorithm:
    """Hamiltonian Monte Carlo: see `hmc`."""

    def parameters(step_size: Tensor, _: bool) -> hmc.Parameters:
        steps = torch.tensor(num_steps or 0, device=step_size.device)
        return hmc.Parameters(step_size, torch.full_like(step_size, trajectory_length), steps)

    return Algorithm(
        name="HMC",
        init=hmc.init,
        draw_randomness=hmc.draw_randomness,
        step=hmc.step,
        restore=hmc.State,
        parameters=parameters,
        target_accept_prob=target_accept_prob,
    )


def langevin_algorithm(*, metropolis: bool, target_accept_prob: float) -> Algorithm:
    """Langevin dynamics, with the Metropolis correction or without: see `langevin`.

    The warm-up is always corrected: it finds the bulk of the density safely, and the step size at which the correction
    would accept as often as the target says.
    """
    return Algorithm(
        name="MALA" if metropolis else "Langevin",
        init=langevin.init,
        draw_randomness=langevin.draw_randomness,
        step=langevin.step,
        restore=langevin.State,
        parameters=lambda leapfrog_step, warming_up: langevin.Parameters(
            0.5 * leapfrog_step.square(), metropolis or warming_up
        ),
        target_accept_prob=target_accept_prob,
    )
