"""Quadratic energies: Gaussians, with an exact log Z."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_ebm._core.errors import EnergyShapeError
from pyro_ebm._core.shapes import broadcast, leading_shape
from pyro_ebm._core.validation import validation_enabled
from pyro_ebm.energies.energy import Energy


class QuadraticEnergy(Energy):
    """The quadratic form `E(x) = ½ xᵀ Λ x - bᵀ x`, a Gaussian with mean `Λ⁻¹ b` and covariance `Λ⁻¹`.

    `log Z = ½ bᵀ Λ⁻¹ b + (d/2) log 2π - ½ log det Λ` nats.

    Args:
        precision: the matrix Λ, `(*batch, d, d)`, of which only the symmetric part `(Λ + Λᵀ) / 2` counts. It need be
            positive definite only for `log_partition`, `mean`, `covariance` and `sample`: as a factor beside others,
            any matrix has a meaning.
        linear: the vector b, `(*batch, d)`; zero if not given.

    Raises:
        EnergyShapeError: if the shapes do not fit.

    >>> e = QuadraticEnergy(torch.eye(2), torch.ones(2))
    >>> e(torch.ones(2)), e.log_partition()
    (tensor(-1.), tensor(2.8379))
    """

    precision: Tensor
    linear: Tensor

    def __init__(self, precision: Tensor, linear: Tensor | None = None) -> None:
        if precision.dim() < 2 or precision.shape[-1] != precision.shape[-2]:
            raise EnergyShapeError(
                f"QuadraticEnergy: got precision of shape {tuple(precision.shape)}, expected (*batch, d, d). "
                "For a diagonal, pass torch.diag_embed(diagonal)."
            )
        if linear is None:
            linear = precision.new_zeros(precision.shape[-1])
        if linear.dim() < 1 or linear.shape[-1] != precision.shape[-1]:
            raise EnergyShapeError(
                f"QuadraticEnergy: got linear of shape {tuple(linear.shape)}, expected (*batch, {precision.shape[-1]})."
            )
        super().__init__(
            (precision.shape[-1],), batch_shape=broadcast([precision.shape[:-2], linear.shape[:-1]], "QuadraticEnergy")
        )
        self._hold(precision=precision, linear=linear)

    @classmethod
    def from_moments(cls, mean: Tensor, covariance: Tensor) -> QuadraticEnergy:
        """The energy of a Gaussian with this mean `(*batch, d)` and covariance `(*batch, d, d)`."""
        precision = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
        return cls(precision, (precision @ mean.unsqueeze(-1)).squeeze(-1))

    def forward(self, x: Tensor) -> Tensor:
        """The energy at `(*sample, *batch, d)`, `(*sample, *batch)`."""
        leading_shape(x, self.event_shapes[0], "QuadraticEnergy")
        x = x.to(torch.promote_types(x.dtype, self.precision.dtype))  # of spins and labels as well
        if self.precision.dim() == 2:  # one matrix for all: a plain product, which is several times faster
            product = x @ self.precision
        else:
            product = (self.precision @ x.unsqueeze(-1)).squeeze(-1)
        return (x * (0.5 * product - self.linear)).sum(-1)

    def _cholesky(self) -> Tensor:
        factor, info = torch.linalg.cholesky_ex((self.precision + self.precision.mT) / 2)
        if validation_enabled() and bool((info != 0).any()):
            raise ValueError(
                "QuadraticEnergy: got a precision that is not positive definite, so exp(-E) has no finite integral. "
                "Add a confining term, or give the EnergyDistribution a base."
            )
        return torch.where((info == 0)[..., None, None], factor, torch.nan)

    def log_partition(self) -> Tensor:
        """Log Z in nats, `(*batch,)`, differentiable.

        Raises:
            ValueError: if the precision is not positive definite.
        """
        factor = self._cholesky()
        mean = torch.cholesky_solve(self.linear.unsqueeze(-1), factor).squeeze(-1)
        half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        dim = self.precision.shape[-1]
        return 0.5 * (self.linear * mean).sum(-1) + 0.5 * dim * math.log(2 * math.pi) - half_log_det

    @property
    def mean(self) -> Tensor:
        """The mean `Λ⁻¹ b`, `(*batch, d)`."""
        return torch.cholesky_solve(self.linear.unsqueeze(-1), self._cholesky()).squeeze(-1)

    @property
    def covariance(self) -> Tensor:
        """The covariance `Λ⁻¹`, `(*batch, d, d)`."""
        inverse = torch.cholesky_inverse(self._cholesky())
        return inverse.expand(*self.batch_shape, *inverse.shape[-2:])

    @property
    def variance(self) -> Tensor:
        """The marginal variances, `(*batch, d)`."""
        return self.covariance.diagonal(dim1=-2, dim2=-1)

    def sample(self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Exact draws, `(*sample, *batch, d)`."""
        factor = self._cholesky()
        noise = torch.randn(
            *sample_shape,
            *self.batch_shape,
            self.precision.shape[-1],
            1,
            generator=generator,
            dtype=factor.dtype,
            device=factor.device,
        )
        deviation: Tensor = torch.linalg.solve_triangular(factor.mT, noise, upper=True)
        return self.mean + deviation.squeeze(-1)
