"""What a sampler samples.

A batched density over named sites, made of a Pyro model, an energy distribution or an energy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from pyro_ebm._core.ravel import Raveler
from pyro_ebm.distributions import EnergyDistribution
from pyro_ebm.energies import Energy
from pyro_ebm.infer.energy_target import EnergyTarget
from pyro_ebm.infer.model_target import ModelTarget
from pyro_ebm.infer.structure import Structure
from pyro_ebm.mcmc.minibatch import Subsample


class Target(Protocol):
    """A batched density over named sites."""

    @property
    def raveler(self) -> Raveler:
        """Lays unconstrained sites side by side."""
        ...

    @property
    def structure(self) -> Structure:
        """The sites."""
        ...

    @property
    def concern(self) -> str | None:
        """Why it is run chain by chain, and cannot be compiled; nothing if it is one program of tensors."""
        ...

    @property
    def like(self) -> Tensor:
        """A vector `(dim,)` with the dtype and device."""
        ...

    @property
    def subsamples(self) -> tuple[Subsample, ...]:
        """What the log density is estimated from minibatches of, whose indices it takes after the position."""
        ...

    def log_density(self, position: Tensor, /) -> tuple[Tensor, Tensor]:
        """Log density and gradient in unconstrained coordinates, `(chains, dim)` to `(chains,)` and `(chains, dim)`."""
        ...

    def constrain(self, position: Tensor) -> dict[str, Tensor]:
        """Unconstrained `(*lead, dim)` to values by site, `(*lead, *shape)`."""
        ...

    def sample_discrete(self, position: Tensor) -> dict[str, Tensor]:
        """Exact draws of the sites that are summed out, at unconstrained `(*lead, dim)`, by site `(*lead, *shape)`."""
        ...

    def initial_points(self, strategy: Callable[..., Any], num_chains: int) -> Tensor:
        """A start for each chain, `(chains, dim)`."""
        ...

    def pointwise(self, values: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Deterministic sites and log likelihoods at values `(draws, *shape)`, each `(draws, ...)`."""
        ...


def build_target(
    model: object,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    of_distribution: Callable[[EnergyDistribution], Target] = EnergyTarget,
    of_model: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Target] = ModelTarget,
) -> Target:
    """The target of a Pyro model with its arguments, of an `EnergyDistribution` or of an `Energy` over one variable.

    Args:
        model: one of these.
        args: the model's arguments; `kwargs` likewise.
        kwargs: the model's keywords.
        of_distribution: makes the target of an energy distribution.
        of_model: makes that of a model.

    Raises:
        TypeError: if `model` is none of these, or if arguments come with an energy.
    """
    if isinstance(model, (Energy, EnergyDistribution)):
        if args or kwargs:
            raise TypeError(f"got arguments for a {type(model).__name__}, expected none: only a model takes arguments.")
        if isinstance(model, Energy) and model.num_variables != 1:
            raise TypeError(
                f"got an energy over {model.num_variables} variables, expected one: put it among the sites of a model "
                "with factor(name, energy, *values)."
            )
        return of_distribution(EnergyDistribution(model) if isinstance(model, Energy) else model)
    if not callable(model):
        raise TypeError(
            f"got a {type(model).__name__}, expected a Pyro model (a callable), an EnergyDistribution or an Energy."
        )
    return of_model(model, args, kwargs)
