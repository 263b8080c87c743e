"""The mass matrix, as a linear change of variables.

Sampling `x = L q` with unit masses is the same chain as sampling `x` with mass matrix `(L Lᵀ)⁻¹` (Neal 2011, section
5.4.1). So the samplers know of no masses: they see the density of `q`, and one rule covers all kinds of matrices.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_ebm._core.protocols import LogDensity


class Metric(Protocol):
    """The map `x = L q`, with `L Lᵀ` the inverse mass matrix; a `NamedTuple` of tensors."""

    def to_position(self, whitened: Tensor) -> Tensor:
        """`q` to `x = L q`, both `(*lead, dim)`."""
        ...

    def to_whitened(self, position: Tensor) -> Tensor:
        """`x` to `q = L⁻¹ x`, both `(*lead, dim)`."""
        ...

    def whiten_gradient(self, gradient: Tensor) -> Tensor:
        """A gradient in `x` to the gradient `Lᵀ g` in `q`, both `(*lead, dim)`."""
        ...

    @property
    def variances(self) -> Tensor:
        """The diagonal of the inverse mass matrix, `(dim,)`."""
        ...

    @property
    def inverse_mass_matrix(self) -> Tensor:
        """The inverse mass matrix: its diagonal `(dim,)`, or whole `(dim, dim)`."""
        ...


class DiagonalMetric(NamedTuple):
    """A diagonal L.

    Attributes:
        scale: its diagonal, `(dim,)`.
    """

    scale: Tensor

    def to_position(self, whitened: Tensor) -> Tensor:
        """See `Metric`."""
        return whitened * self.scale

    def to_whitened(self, position: Tensor) -> Tensor:
        """See `Metric`."""
        return position / self.scale

    def whiten_gradient(self, gradient: Tensor) -> Tensor:
        """See `Metric`."""
        return gradient * self.scale

    @property
    def variances(self) -> Tensor:
        """See `Metric`."""
        return self.scale.square()

    @property
    def inverse_mass_matrix(self) -> Tensor:
        """The diagonal of the inverse mass matrix, `(dim,)`."""
        return self.variances


class DenseMetric(NamedTuple):
    """A triangular L, of a full or block-diagonal matrix.

    Attributes:
        factor: L, lower-triangular, `(dim, dim)`.
    """

    factor: Tensor

    def to_position(self, whitened: Tensor) -> Tensor:
        """See `Metric`."""
        return whitened @ self.factor.mT

    def to_whitened(self, position: Tensor) -> Tensor:
        """See `Metric`."""
        rows = position.reshape(-1, position.shape[-1])
        whitened: Tensor = torch.linalg.solve_triangular(self.factor.mT, rows, upper=True, left=False)
        return whitened.reshape(position.shape)

    def whiten_gradient(self, gradient: Tensor) -> Tensor:
        """See `Metric`."""
        return gradient @ self.factor

    @property
    def variances(self) -> Tensor:
        """See `Metric`."""
        return self.factor.square().sum(-1)

    @property
    def inverse_mass_matrix(self) -> Tensor:
        """The inverse mass matrix, `(dim, dim)`."""
        return self.factor @ self.factor.mT


class LowRankMetric(NamedTuple):
    """A diagonal times a stretch along a few directions: `L = diag(scale) (I + U diag(stretch - 1) Uᵀ)`.

    It costs `O(dim rank)`, where a dense metric costs `O(dim²)`.

    Attributes:
        scale: `(dim,)`.
        directions: U, orthonormal columns, `(dim, rank)`.
        stretch: `(rank,)`.
    """

    scale: Tensor
    directions: Tensor
    stretch: Tensor

    def _stretched(self, x: Tensor, stretch: Tensor) -> Tensor:
        return x + ((x @ self.directions) * (stretch - 1)) @ self.directions.mT

    def to_position(self, whitened: Tensor) -> Tensor:
        """See `Metric`."""
        return self._stretched(whitened, self.stretch) * self.scale

    def to_whitened(self, position: Tensor) -> Tensor:
        """See `Metric`."""
        return self._stretched(position / self.scale, 1 / self.stretch)

    def whiten_gradient(self, gradient: Tensor) -> Tensor:
        """See `Metric`."""
        return self._stretched(gradient * self.scale, self.stretch)

    @property
    def variances(self) -> Tensor:
        """See `Metric`."""
        return self.scale.square() * (1 + self.directions.square() @ (self.stretch.square() - 1))

    @property
    def inverse_mass_matrix(self) -> Tensor:
        """The inverse mass matrix, `(dim, dim)`."""
        identity = torch.eye(len(self.scale), dtype=self.scale.dtype, device=self.scale.device)
        factor = self.to_position(identity)
        return factor.mT @ factor


METRICS = {kind.__name__: kind for kind in (DiagonalMetric, DenseMetric, LowRankMetric)}


@dataclass(frozen=True)
class Whitened:
    """The log density of `q`, up to the constant `log |det L|`, with its gradient.

    Attributes:
        metric: the change of variables.
        log_density: that of `x`: samplers of structured densities ask it for more than its gradient.
    """

    metric: Metric
    log_density: LogDensity

    def __call__(self, whitened: Tensor, /) -> tuple[Tensor, Tensor]:
        """`(chains, dim)` to `(chains,)` and `(chains, dim)`."""
        value, gradient = self.log_density(self.metric.to_position(whitened))
        return value, self.metric.whiten_gradient(gradient)


def whiten(metric: Metric, log_density: LogDensity) -> Whitened:
    """The log density of `q`, up to the constant `log |det L|`, with its gradient."""
    return Whitened(metric, log_density)


def metric_of(inverse_mass_matrix: Tensor) -> DiagonalMetric | DenseMetric:
    """The metric of an inverse mass matrix, given by its diagonal `(dim,)`, or whole `(dim, dim)`.

    Raises:
        ValueError: if it is not positive definite.
    """
    if inverse_mass_matrix.dim() == 1:
        if not bool((inverse_mass_matrix > 0).all()):
            raise ValueError(
                "inverse_mass_matrix: got a diagonal with entries that are not positive, expected variances."
            )
        return DiagonalMetric(inverse_mass_matrix.sqrt())
    factor, info = torch.linalg.cholesky_ex(inverse_mass_matrix)
    if bool(info != 0):
        raise ValueError("inverse_mass_matrix: got a matrix that is not positive definite, expected a covariance.")
    return DenseMetric(factor)
