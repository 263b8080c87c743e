"""What a move is: some transitions of many walkers, at values of any shape, that leave a density invariant."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Generator, Size, Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from pyro_ebm.energies.energy import Energy

LogDensity = Callable[[Tensor], Tensor]


class EnergyDensity(Protocol):
    """An unnormalised density over one variable, `base(x) exp(-E(x))`."""

    @property
    def energy(self) -> Energy:
        """E."""
        ...

    @property
    def base(self) -> Distribution | None:
        """The base, or `None` for the flat one."""
        ...

    @property
    def support(self) -> Constraint:
        """Where it lives."""
        ...

    @property
    def batch_shape(self) -> Size:
        """One density for each element."""
        ...

    @property
    def event_shape(self) -> Size:
        """The shape of a value."""
        ...

    def unnormalized_log_prob(self, value: Tensor) -> Tensor:
        """The log density up to a constant, `(*sample, *batch, *event)` to `(*sample, *batch)`."""
        ...

    def log_prob(self, value: Tensor, /) -> Tensor:
        """The log density, with log Z if it is known, likewise."""
        ...


class Tuning(NamedTuple):
    """What moves adapt to a density.

    Attributes:
        log_step_size: `(*batch,)`.
        scale: the spread of each unconstrained coordinate, `(*batch, *event)`.
    """

    log_step_size: Tensor
    scale: Tensor


class Start(NamedTuple):
    """What is known where walkers are.

    Attributes:
        log_density: unnormalised, `(walkers, *batch)`.
        gradient: of it, `(walkers, *batch, *event)`.
    """

    log_density: Tensor
    gradient: Tensor


class Moved(NamedTuple):
    """Where walkers are after a move.

    Attributes:
        value: `(walkers, *batch, *event)`.
        log_density: unnormalised, `(walkers, *batch)`.
        acceptance_rate: of the walkers of each element, `(*batch,)`.
        tuning: adapted by one step.
    """

    value: Tensor
    log_density: Tensor
    acceptance_rate: Tensor
    tuning: Tuning


class Move(Protocol):
    """Transitions of all walkers."""

    @property
    def usual_steps(self) -> int:
        """How many steps make a move, where the user does not say."""
        ...

    @property
    def least_acceptance(self) -> float:
        """The share of its proposals of which less is accepted only where walkers stand still."""
        ...

    @property
    def needs_gradient(self) -> bool:
        """Whether it asks for the density's gradient, which is then to be given at the start."""
        ...

    def tune(self, value: Tensor) -> Tuning:
        """First tuning, from walkers `(walkers, *batch, *event)` spread like the density."""
        ...

    def __call__(
        self,
        log_density: LogDensity,
        value: Tensor,
        tuning: Tuning,
        generator: Generator,
        *,
        num_steps: int,
        start: Start | None = None,
    ) -> Moved:
        """Move walkers.

        Args:
            log_density: unnormalised, `(walkers, *batch, *event)` to `(walkers, *batch)`.
            value: where they are, `(walkers, *batch, *event)`.
            tuning: as it was adapted so far.
            generator: of the random numbers.
            num_steps: of the move.
            start: what is known there, which saves an evaluation.
        """
        ...
