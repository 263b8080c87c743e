"""The OR of energies: a mixture of their unnormalised densities."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_ebm._core.errors import EnergyShapeError
from pyro_ebm._core.log_space import logsumexp
from pyro_ebm._core.shapes import broadcast
from pyro_ebm._core.supports import join_supports
from pyro_ebm._core.validation import validation_enabled
from pyro_ebm.energies.energy import Energy, require_same_variables


class MixtureEnergy(Energy):
    """The mixture `E(x) = -log Σ_k w_k exp(-E_k(x))`.

    The weights multiply the *unnormalised* densities: component k has mass `w_k Z_k / Σ_j w_j Z_j`.

    Args:
        energies: K energies over the same variables, with one support.
        weights: positive weights `(*batch, K)`; all one if not given; a `Parameter` is learned.

    Raises:
        EnergyShapeError: if event shapes differ, or the weights do not fit.
        EnergySupportError: if supports differ.

    References:
        Du, Li and Mordatch 2020, Compositional visual generation with energy based models.
    """

    weights: Tensor

    def __init__(self, energies: Sequence[Energy], weights: Tensor | None = None) -> None:
        require_same_variables(energies, "MixtureEnergy")
        weights = torch.ones(len(energies)) if weights is None else torch.as_tensor(weights)
        if weights.dim() == 0 or weights.shape[-1] != len(energies):
            raise EnergyShapeError(
                f"MixtureEnergy: got weights of shape {tuple(weights.shape)}, expected (*batch, {len(energies)}): "
                "one for each energy."
            )
        if validation_enabled() and not bool((weights > 0).all()):
            raise ValueError("MixtureEnergy: got a weight that is not positive, expected all > 0. Drop that energy.")
        super().__init__(
            energies[0].event_shapes,
            support=[join_supports(s, "MixtureEnergy") for s in zip(*(e.supports for e in energies), strict=True)],
            batch_shape=broadcast([weights.shape[:-1], *(e.batch_shape for e in energies)], "MixtureEnergy"),
        )
        self.components = nn.ModuleList(energies)
        self._hold(weights=weights)

    def forward(self, *values: Tensor) -> Tensor:
        """The energy at `(*sample, *batch, *event)`, `(*sample, *batch)`."""
        negative = torch.stack(torch.broadcast_tensors(*[-e(*values) for e in self.components]), dim=-1)
        return -logsumexp(self.weights.log() + negative, dim=-1)


def mixture(energies: Sequence[Energy], weights: Tensor | None = None) -> MixtureEnergy:
    """The OR of energies, `-log Σ_k w_k exp(-E_k(x))`: see `MixtureEnergy`."""
    return MixtureEnergy(energies, weights)
