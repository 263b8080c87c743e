"""The mass matrix, as a linear change of variables.

Sampling `x = L q` with unit masses is the same chain as sampling `x` with mass matrix `(L Lᵀ)⁻¹` (Neal 2011, section
5.4.1). So the samplers know of no masses: they see the density of `q`, and one rule covers diagonal and dense matrices.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ebm._core.protocols import LogDensity


class Metric(NamedTuple):
    """The map `x = L q`, with `L Lᵀ` the inverse mass matrix.

    Attributes:
        scale: the diagonal of L, `(dim,)`, or the lower-triangular L, `(dim, dim)`.
    """

    scale: Tensor

    def to_position(self, whitened: Tensor) -> Tensor:
        """`q` to `x`, both `(*lead, dim)`."""
        return whitened * self.scale if self.scale.dim() == 1 else whitened @ self.scale.mT

    def to_whitened(self, position: Tensor) -> Tensor:
        """`x` to `q`, both `(*lead, dim)`."""
        if self.scale.dim() == 1:
            return position / self.scale
        rows = position.reshape(-1, position.shape[-1])
        whitened: Tensor = torch.linalg.solve_triangular(self.scale.mT, rows, upper=True, left=False)
        return whitened.reshape(position.shape)

    def whiten(self, log_density: LogDensity) -> LogDensity:
        """The log density of `q`, up to the constant `log |det L|`, with its gradient."""

        def whitened_density(whitened: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = log_density(self.to_position(whitened))
            return value, gradient * self.scale if self.scale.dim() == 1 else gradient @ self.scale

        return whitened_density

    @property
    def inverse_mass_matrix(self) -> Tensor:
        """The inverse mass matrix: its diagonal `(dim,)`, or whole `(dim, dim)`."""
        return self.scale.square() if self.scale.dim() == 1 else self.scale @ self.scale.mT


def unit_metric(dim: int, *, dense: bool, like: Tensor) -> Metric:
    """The identity."""
    ones = torch.ones(dim, dtype=like.dtype, device=like.device)
    return Metric(ones.diag() if dense else ones)
