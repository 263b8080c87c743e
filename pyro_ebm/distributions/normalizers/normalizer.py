"""What an energy distribution asks of the object that supplies its log Z."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Size, Tensor

from pyro_ebm.mcmc.moves import EnergyDensity


class Normalizer(Protocol):
    """An object that supplies log Z, with the right gradient."""

    def log_normalizer(self, distribution: EnergyDensity, /) -> Tensor:
        """Log of `∫ base(x) exp(-E(x)) dx` in nats.

        Args:
            distribution: as it was constructed, before any plate expanded it.

        Returns:
            A tensor that broadcasts to its batch shape `(*batch,)`, differentiable in the parameters.
        """
        ...


@runtime_checkable
class HasDraws(Protocol):
    """A normaliser that can draw from the density."""

    def draw(self, distribution: EnergyDensity, sample_shape: Size) -> Tensor:
        """Draws `(*sample, *batch, *event)` of a distribution as it was constructed."""
        ...


@runtime_checkable
class CanFreeze(Protocol):
    """A normaliser that can hold its log Z as a fixed function of the parameters, which is right near where it does."""

    @property
    def is_frozen(self) -> bool:
        """Whether it does."""
        ...

    def check(self, distribution: EnergyDensity) -> None:
        """Raise `AnchorError` where a distribution, as it was constructed, is too far from there."""
        ...
