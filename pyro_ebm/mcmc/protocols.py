"""What a run asks of a sampler's state and diagnostics, and of what adapts its parameters."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Stage(NamedTuple):
    """Where a run is, as far as a sampler's parameters depend on it.

    Attributes:
        warming_up: whether it is still in its warm-up, `()`.
        approaching: whether chains may still be on their way to the bulk, `()`.
        reach: how many times as far as usual a draw goes from the one before it, `()`.
    """

    warming_up: Tensor
    approaching: Tensor
    reach: Tensor


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


class Adaptation(Protocol):
    """What learns a sampler's parameters from its transitions, tick by tick: a `NamedTuple` of tensors."""

    @property
    def step_size(self) -> Tensor:
        """The present step size, `()`."""
        ...

    @property
    def step_sizes(self) -> Tensor:
        """That of each chain, `(chains,)`, shorter for those that do not move."""
        ...

    def adapt(self, info: Any, sound: Tensor, target: Tensor | float) -> Adaptation:
        """Take in the transitions of the chains that are `sound` `(chains,)`, towards a target acceptance."""
        ...

    def settled(self) -> Adaptation:
        """At its best estimate, to be used from now on."""
        ...

    def restarted(self, step_size: Tensor, *, same_scale: bool) -> Adaptation:
        """From a new first step size, `()`, after a change of the metric; `same_scale` if that was a small one."""
        ...
