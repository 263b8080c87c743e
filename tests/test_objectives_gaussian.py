"""On Gaussian data every continuous objective, as it ships, recovers what maximum likelihood says, within 2 %.

The data are quasi-random, with a known mean and covariance. Score matching is least at them exactly; the others where
their own draws (or, for the Stein discrepancy, pairs) are infinitely many, so that data are repeated for fresh draws.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyro_ebm import (
    ConditionalNoiseContrastive,
    DenoisingScoreMatching,
    Energy,
    EnergyDiscrepancy,
    EnergyDistribution,
    KernelStein,
    NegativeLogLikelihood,
    NoiseContrastive,
    Objective,
    QuadraticEnergy,
    RankingNoiseContrastive,
    ScoreMatching,
    SlicedScoreMatching,
)


class Gaussian(Energy):
    """`½ |Rᵀ x|² - bᵀ x`, with a matrix R, or a diagonal one."""

    def __init__(self, dim: int, *, diagonal: bool) -> None:
        super().__init__((dim,))
        self.diagonal = diagonal
        self.root = nn.Parameter(torch.ones(dim).double() if diagonal else torch.eye(dim).double())
        self.linear = nn.Parameter(torch.zeros(dim).double())

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * self.root if self.diagonal else x @ self.root
        return 0.5 * scaled.square().sum(-1) - (x * self.linear).sum(-1)

    def moments(self) -> tuple[Tensor, Tensor]:
        root = torch.diag(self.root) if self.diagonal else self.root
        covariance = torch.linalg.inv(root @ root.mT).detach()
        return covariance @ self.linear.detach(), covariance

    def log_partition(self) -> Tensor:
        root = torch.diag(self.root) if self.diagonal else self.root
        return QuadraticEnergy(root @ root.mT, self.linear).log_partition()


def gaussian_data(dim: int, count: int, *, diagonal: bool) -> Tensor:
    """Quasi-random Gaussian data."""
    uniform = torch.quasirandom.SobolEngine(dim, scramble=True, seed=3).draw(count).double()
    normal = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))
    normal = normal - normal.mean(0)
    normal = torch.linalg.solve_triangular(torch.linalg.cholesky(normal.mT @ normal / count), normal.mT, upper=False).mT
    generator = torch.Generator().manual_seed(5)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    scale = torch.diag(0.7 + 0.6 * torch.rand(dim, generator=generator)) if diagonal else torch.eye(dim) + 0.3 * mixing
    return normal @ scale.double().mT + 0.5 * torch.randn(dim, generator=generator, dtype=torch.float64)


def fit(objective: Objective, data: Tensor, *, diagonal: bool) -> Gaussian:
    """Minimise the objective with the same random numbers at every call."""
    energy = Gaussian(data.shape[-1], diagonal=diagonal)
    trained = EnergyDistribution(energy)
    parameters = [*energy.parameters(), *objective.double().parameters()]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=40, line_search_fn="strong_wolfe", tolerance_grad=1e-6, tolerance_change=1e-9
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss, _ = objective(trained, data, generator=torch.Generator().manual_seed(1))
        loss.backward()
        return loss

    optimizer.step(closure)
    return energy


def check(energy: Gaussian, data: Tensor, tolerance: float, widened: float = 0.0) -> None:
    mean, covariance = energy.moments()
    right = torch.cov(data.mT, correction=0)
    covariance = covariance - widened * torch.eye(len(right))
    if energy.diagonal:
        right = torch.diag(right.diagonal())
    assert ((mean - data.mean(0)) / right.diagonal().sqrt()).abs().max() < tolerance
    assert (covariance - right).norm() / right.norm() < tolerance


EXACT = [ScoreMatching, NegativeLogLikelihood]
# How often the data are repeated, so that four standard errors are below 2 %; and what is added to the variances.
SAMPLED: list[tuple[str, Callable[[], Objective], int, float]] = [
    ("nce", NoiseContrastive, 1, 0.0),
    ("ranking", RankingNoiseContrastive, 1, 0.0),
    ("cnce", ConditionalNoiseContrastive, 8, 0.0),
    ("score_matching_probes", lambda: ScoreMatching(num_probes=1), 4, 0.0),
    ("sliced", SlicedScoreMatching, 4, 0.0),
    ("denoising", DenoisingScoreMatching, 16, 0.1**2),
    ("denoising_wide", lambda: DenoisingScoreMatching(0.5), 16, 0.5**2),
    ("energy_discrepancy", EnergyDiscrepancy, 8, 0.0),
]
sampled = pytest.mark.parametrize(("make", "copies", "widened"), [c[1:] for c in SAMPLED], ids=[c[0] for c in SAMPLED])


@pytest.mark.parametrize("make", EXACT)
@pytest.mark.parametrize(("dim", "diagonal"), [(2, False), (20, True)])
def test_exactly(make: Callable[[], Objective], dim: int, diagonal: bool) -> None:
    data = gaussian_data(dim, 256, diagonal=diagonal)
    check(fit(make(), data, diagonal=diagonal), data, 1e-4)


@sampled
def test_in_two_dims(make: Callable[[], Objective], copies: int, widened: float) -> None:
    data = gaussian_data(2, 4096, diagonal=False)
    check(fit(make(), data.repeat(copies, 1), diagonal=False), data, 0.02, widened)


def test_by_pairs() -> None:
    data = gaussian_data(2, 1024, diagonal=False)
    check(fit(KernelStein(), data, diagonal=False), data, 0.02)


TWENTY = [case for case in SAMPLED if case[0] in ("nce", "ranking", "score_matching_probes", "sliced", "denoising")]


@pytest.mark.parametrize(("make", "copies", "widened"), [c[1:] for c in TWENTY], ids=[c[0] for c in TWENTY])
def test_in_twenty_dims(make: Callable[[], Objective], copies: int, widened: float) -> None:
    data = gaussian_data(20, 4096, diagonal=True)
    check(fit(make(), data.repeat(copies, 1), diagonal=True), data, 0.02, widened)
