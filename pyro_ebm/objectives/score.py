"""Scores `s(x) = ∇ log p̃(x)` with a graph to the energy's parameters, and their derivatives."""

from __future__ import annotations

import torch
from torch import Generator, Size, Tensor

from pyro_ebm._core.errors import NonFiniteError
from pyro_ebm._core.protocols import Density
from pyro_ebm._core.randomness import normal
from pyro_ebm.objectives.data import log_density


class Score:
    """The score of a density at values, differentiable in the parameters.

    Args:
        density: the density.
        value: `(*sample, *batch, *event)`.
        where: what to call it in errors.

    Attributes:
        value: the score, `(*sample, *batch, n)` with events raveled.

    Raises:
        NonFiniteError: if it is not finite.
    """

    def __init__(self, density: Density, value: Tensor, where: str) -> None:
        self._event_dim = len(density.event_shape)
        self._at = value.detach().requires_grad_()
        with torch.enable_grad():
            total = log_density(density, self._at, where).sum()
            self.value = self._flat(_gradient(total, self._at))
        if not bool(self.value.isfinite().all()):
            raise NonFiniteError(
                f"the gradient of the energy at {where}: got elements that are not finite, though the energy is. "
                "Look for square roots and norms at zero in it."
            )

    def derivative(self, direction: Tensor) -> Tensor:
        """The product of the score's Jacobian, a symmetric matrix, and a direction, both `(*sample, *batch, n)`."""
        with torch.enable_grad():
            return self._flat(_gradient((self.value * direction).sum(), self._at))

    def divergence(self) -> Tensor:
        """The trace of the Jacobian, the Laplacian of log p̃, `(*sample, *batch)`: one derivative for each dim."""
        size = self.value.shape[-1]
        rows = torch.eye(size, dtype=self.value.dtype, device=self.value.device)
        parts = [self.derivative(row.expand(self.value.shape))[..., number] for number, row in enumerate(rows)]
        return torch.stack(parts).sum(0)

    def _flat(self, gradient: Tensor) -> Tensor:
        return gradient.reshape(*gradient.shape[: gradient.dim() - self._event_dim], -1)


def _gradient(total: Tensor, at: Tensor) -> Tensor:
    if not total.requires_grad:  # it depends on nothing
        return torch.zeros_like(at)
    (gradient,) = torch.autograd.grad(total, at, create_graph=True, allow_unused=True, materialize_grads=True)
    return gradient


def signs(shape: Size, like: Tensor, generator: Generator | None) -> Tensor:
    """Independent signs, -1 or +1: directions `v` with `E[v vᵀ] = 1` and the least variance of `vᵀ H v`."""
    drawn = normal(shape, like, generator).sign()
    return torch.where(drawn == 0, 1, drawn)
