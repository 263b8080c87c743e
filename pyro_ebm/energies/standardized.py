"""An energy over standardised values."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_ebm._core.errors import EnergyShapeError
from pyro_ebm.energies.energy import Energy


class StandardizedEnergy(Energy):
    """An energy of values in units of their own: `E(x) = E₁((x - location) / scale)`.

    As a tilt of a base it needs no Jacobian, which is a constant. A network over standardised data learns at a rate
    that does not depend on the data's units.

    Args:
        energy: E₁, over one variable.
        location: `(*event,)`, or what broadcasts to it; a buffer.
        scale: likewise, positive.

    Raises:
        EnergyShapeError: if location or scale do not broadcast to the event shape.
        ValueError: if a scale is not positive.

    >>> from pyro_ebm import QuadraticEnergy
    >>> unit = QuadraticEnergy(torch.eye(2))
    >>> StandardizedEnergy(unit, torch.tensor([1.0, 1.0]), torch.tensor(2.0))(torch.tensor([1.0, 5.0]))  # ½ 2²
    tensor(2.)
    """

    location: Tensor
    scale: Tensor

    def __init__(self, energy: Energy, location: Tensor, scale: Tensor) -> None:
        event_shape = energy.event_shape
        for name, given in (("location", location), ("scale", scale)):
            if given.dim() > len(event_shape) or any(
                size not in (1, expected)
                for size, expected in zip(reversed(given.shape), reversed(event_shape), strict=False)
            ):
                raise EnergyShapeError(
                    f"StandardizedEnergy: got a {name} of shape {tuple(given.shape)}, expected one that broadcasts to "
                    f"the event's {tuple(event_shape)}. Take them from data (N, *event): data.mean(0), data.std(0)."
                )
        if not bool((scale > 0).all()):
            raise ValueError(
                "StandardizedEnergy: got a scale that is not positive, expected all > 0. Clamp the scale of elements "
                "that do not vary."
            )
        super().__init__(event_shape, support=energy.support, batch_shape=energy.batch_shape)
        self.energy = energy
        self._hold(location=location, scale=scale)

    def forward(self, x: Tensor) -> Tensor:
        """The energy at `(*sample, *batch, *event)`, `(*sample, *batch)`."""
        standardized = (x - self.location) / self.scale
        energy: Tensor = self.energy(standardized)
        return energy


def spread_of(data: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each element of data `(N, *event)`, each `(*event,)`, fit to standardise them.

    Elements that hardly vary, by less than a tenth of the root mean square over elements, get that tenth: they are not
    to be blown up.

    Raises:
        ValueError: if nothing varies.
    """
    mean = data.mean(0)
    scale = (data - mean).square().mean(0).sqrt()
    typical = scale.square().mean().sqrt()
    if not bool(typical > 0):
        raise ValueError(
            f"got {len(data)} data that are all alike, expected some spread to standardise by. Check the data."
        )
    return mean, torch.maximum(scale, 0.1 * typical)
