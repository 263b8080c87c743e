"""The kernel Stein discrepancy as a loss."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from pyro_ebm._core.errors import EnergyShapeError
from pyro_ebm.objectives.checks import positive
from pyro_ebm.objectives.data import Domain
from pyro_ebm.objectives.objective import Objective, Report, Trained
from pyro_ebm.objectives.score import Score


class KernelStein(Objective):
    """The kernel Stein discrepancy of the data from the density: zero only where they are the same.

    With the score `s = ∇ log p̃` and a kernel `k(x, x') = φ(|x - x'|² / h²)`,
    `loss = KSD² = mean over pairs i ≠ j of u(x_i, x_j)`, where
    `u(x, x') = s(x)ᵀ k s(x') + s(x)ᵀ ∇_x' k + ∇_x kᵀ s(x') + tr ∇_x ∇_x' k`: the U-statistic, unbiased, so that it may
    be slightly negative. The inverse multiquadric `φ(u) = (1 + u)^-½` sees all moments converge; `rbf` is
    `φ(u) = exp(-u / 2)`.

    Use it for some hundred data in few dims, and to test a fit: no noise and no second derivatives. Its cost is that of
    all pairs; it is less efficient than score matching, and as blind to the masses of separated modes.

    Args:
        kernel: "imq" or "rbf".
        bandwidth: h, in the data's units; by default the median distance of the data that are given.

    References:
        Liu, Lee and Jordan 2016, A kernelized Stein discrepancy for goodness-of-fit tests.
        Gorham and Mackey 2017, Measuring sample quality with kernels.

    >>> from pyro_ebm import EnergyDistribution, QuadraticEnergy
    >>> energy = QuadraticEnergy(torch.nn.Parameter(torch.eye(2)))
    >>> loss, report = KernelStein()(EnergyDistribution(energy), torch.randn(100, 2))
    >>> loss.backward()
    >>> sorted(report)
    ['bandwidth', 'loss']
    """

    domain: ClassVar[Domain] = Domain.REAL

    def __init__(self, kernel: Literal["imq", "rbf"] = "imq", bandwidth: float | None = None) -> None:
        super().__init__()
        if kernel not in ("imq", "rbf"):
            raise ValueError(f'KernelStein: got kernel="{kernel}", expected "imq" or "rbf".')
        self.kernel = kernel
        self.bandwidth = None if bandwidth is None else positive(bandwidth, "KernelStein", "bandwidth")

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        density = self._reference(distribution)
        batch = density.batch_shape
        sample_dims = data.dim() - len(batch) - len(density.event_shape)
        if sample_dims < 1 or data.shape[:sample_dims].numel() < 2:
            raise EnergyShapeError(
                f"KernelStein: got data of shape {tuple(data.shape)}, expected at least two for each of the batch "
                f"{tuple(batch)}: it compares pairs."
            )
        score = Score(density, data, "data").value
        values, scores = (each.reshape(-1, batch.numel(), score.shape[-1]).movedim(1, 0) for each in (data, score))
        square = torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist").square()
        width = self._width(square)
        loss = self._mean_over_pairs(values, scores, square / width.square(), width)
        return loss, {"bandwidth": width.mean()}

    def _width(self, square: Tensor) -> Tensor:
        """The bandwidth `(batch, 1, 1)`."""
        if self.bandwidth is not None:
            return square.new_tensor(self.bandwidth).expand(len(square), 1, 1)
        count = square.shape[-1]
        one, other = torch.triu_indices(count, count, 1, device=square.device)
        width = square[:, one, other].median(-1).values.sqrt()
        if not bool((width > 0).all()):
            raise ValueError(
                "KernelStein: got data of which most are equal, so that their median distance is 0, expected real "
                "data. Add noise to them, or give a bandwidth."
            )
        return width[:, None, None]

    def _mean_over_pairs(self, values: Tensor, scores: Tensor, u: Tensor, width: Tensor) -> Tensor:
        if self.kernel == "imq":
            k = (1 + u).rsqrt()
            first, second = -0.5 * k**3, 0.75 * k**5
        else:
            k = torch.exp(-0.5 * u)
            first, second = -0.5 * k, 0.25 * k
        count, size = values.shape[1:]
        own = (values * scores).sum(-1)
        # (x - x')ᵀ (s(x') - s(x)), without a tensor of all differences.
        cross = values @ scores.mT
        between = cross + cross.mT - own.unsqueeze(-1) - own.unsqueeze(-2)
        terms = k * (scores @ scores.mT) + (2 * first * between - 4 * second * u - 2 * size * first) / width.square()
        return (terms.sum((-1, -2)) - terms.diagonal(dim1=-2, dim2=-1).sum(-1)).mean() / (count * (count - 1))
