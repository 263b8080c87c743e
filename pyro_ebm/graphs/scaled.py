"""A multiple of a factor."""

from torch import Tensor

from pyro_ebm.energies import Energy, ScaledEnergy
from pyro_ebm.graphs.factor import Factor


class GroupScaledEnergy(Energy):
    """A group's energy at inverse temperatures of a batch, `(*batch,)`: the same for all of its factors.

    Args:
        weight: `(*batch,)`; a `Parameter` is learned.
        energy: with batch shape `(*batch, F)`, or one that broadcasts.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, energy: Energy) -> None:
        inner = ScaledEnergy(weight.detach().unsqueeze(-1), energy)  # checks the shapes
        super().__init__(energy.event_shapes, support=energy.supports, batch_shape=inner.batch_shape)
        self._hold(weight=weight)
        self.energy = energy

    def forward(self, *values: Tensor) -> Tensor:
        """The energy at `(*sample, *batch, F)`, `(*sample, *batch, F)`."""
        scaled: Tensor = ScaledEnergy.multiply(self.weight.unsqueeze(-1), self.energy(*values))
        return scaled


def scaled(weight: float | Tensor, factor: Factor) -> Factor:
    """A factor at inverse temperature `weight`, a number or `(*batch,)`."""
    many = isinstance(weight, Tensor) and weight.dim() > 0 and factor.grouped
    energy = GroupScaledEnergy(weight, factor.energy) if many else ScaledEnergy(weight, factor.energy)  # type: ignore[arg-type]
    return Factor(energy, factor.arguments, factor.index)
