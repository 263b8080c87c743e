"""Gaussian data, by every objective for real data: is what is learned what maximum likelihood says?

An energy `½ |Rᵀ x|² - bᵀ x` over 2 dims, with a full matrix R, or 20, with a diagonal one, is trained by Adam on all of
4,096 data (kernel Stein: on 512 of them, whose pairs it compares) with fresh random numbers at every step, and its
parameters averaged over the last third. The figures are the relative errors of the covariance, in the Frobenius norm,
against the data's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from learning_row import Figures, Goal, Row
from torch import Generator, Tensor, nn
from torch.distributions import Independent, Normal

from pyro_ebm import (
    ConditionalNoiseContrastive,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    Energy,
    EnergyDiscrepancy,
    EnergyDistribution,
    KernelStein,
    NegativeLogLikelihood,
    NoiseContrastive,
    Objective,
    PersistentContrastiveDivergence,
    PersistentWalkers,
    RankingNoiseContrastive,
    ScoreMatching,
    SlicedScoreMatching,
)

COUNT = 4096
# Steps of Adam, and its rate; more where log Z is learned, and starts tens of nats off, or where pairs of a few data
# are compared, and the loss is flat near its minimum.
STEPS, RATE = 1500, 0.02
STEPS_WITH_LOG_Z = 5000
STEPS_OF_PAIRS, RATE_OF_PAIRS, PAIRED = 5000, 0.05, 512
SIGMA = 0.1

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "likelihood by walkers": NegativeLogLikelihood,
    "cd": lambda: ContrastiveDivergence(5),
    "pcd": lambda: PersistentContrastiveDivergence(4000),
    "nce": NoiseContrastive,
    "ranking nce": RankingNoiseContrastive,
    "cnce": ConditionalNoiseContrastive,
    "score matching": ScoreMatching,
    "score matching, Hutchinson": lambda: ScoreMatching(num_probes=1),
    "sliced score matching": SlicedScoreMatching,
    "denoising score matching": lambda: DenoisingScoreMatching(SIGMA),
    "energy discrepancy": EnergyDiscrepancy,
    "kernel Stein": KernelStein,
}


class Gaussian(Energy):
    """`½ |Rᵀ x|² - bᵀ x`, with a matrix R, or a diagonal one."""

    def __init__(self, dim: int, *, diagonal: bool) -> None:
        super().__init__((dim,))
        self.root = nn.Parameter(torch.ones(dim) if diagonal else torch.eye(dim))
        self.linear = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """The energy at `(*sample, dim)`."""
        scaled = x * self.root if self.root.dim() == 1 else x @ self.root
        return 0.5 * scaled.square().sum(-1) - (x * self.linear).sum(-1)


class Tilt(Gaussian):
    """The same over a standard normal base, so that walkers have somewhere to start: `½ |x|²` is taken off."""

    def forward(self, x: Tensor) -> Tensor:
        """The energy at `(*sample, dim)`."""
        return super().forward(x) - 0.5 * x.square().sum(-1)


def gaussian_data(dim: int, seed: int) -> Tensor:
    """Data with a covariance that is full in 2 dims, and has standard deviations of 0.7 to 1.3 in 20."""
    generator = Generator().manual_seed(seed)
    scale = torch.diag(0.7 + 0.6 * torch.rand(dim, generator=generator))
    if dim == 2:
        scale = torch.eye(2) + 0.3 * torch.randn(2, 2, generator=generator)
    normal = torch.randn(COUNT, dim, generator=generator)
    return normal @ scale.mT + 0.5 * torch.randn(dim, generator=generator)


def error(name: str, dim: int, seed: int) -> float:
    """The relative error of the covariance that an objective learns."""
    data, generator = gaussian_data(dim, seed), Generator().manual_seed(seed)
    diagonal = dim > 2
    objective = OBJECTIVES[name]()
    if name in ("likelihood by walkers", "pcd"):
        base = Independent(Normal(torch.zeros(dim), 1.0), 1)
        energy: Gaussian = Tilt(dim, diagonal=diagonal)
        walkers = PersistentWalkers(generator=generator) if name == "likelihood by walkers" else None
        trained = EnergyDistribution(energy, base, log_normalizer=walkers)
    else:
        energy = Gaussian(dim, diagonal=diagonal)
        trained = EnergyDistribution(energy)
    log_z = {"params": list(objective.parameters()), "lr": 10 * RATE}  # has further to go
    groups = [{"params": list(energy.parameters())}, *([log_z] if log_z["params"] else [])]
    of_pairs = isinstance(objective, KernelStein)
    optimizer = torch.optim.Adam(groups, RATE_OF_PAIRS if of_pairs else RATE)
    steps = STEPS_OF_PAIRS if of_pairs else STEPS_WITH_LOG_Z if log_z["params"] else STEPS
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / steps)))
    roots = []
    for step in range(steps):
        optimizer.zero_grad()
        batch = data[torch.randint(COUNT, (PAIRED,), generator=generator)] if of_pairs else data
        loss, _ = objective(trained, batch, generator=generator)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step >= 2 * steps // 3:
            roots.append(energy.root.detach().clone())
    root = torch.stack(roots).mean(0)
    learned = torch.linalg.inv(root @ root.mT) if root.dim() == 2 else torch.diag(root**-2)
    if name == "denoising score matching":  # what it learns is the data, smoothed
        learned = learned - SIGMA**2 * torch.eye(dim)
    right = torch.cov(data.mT, correction=0)
    right = torch.diag(right.diagonal()) if diagonal else right
    return float((learned - right).norm() / right.norm())


def run(dim: int, seed: int) -> Figures:
    return {name: error(name, dim, seed) for name in OBJECTIVES}


GOALS = {name: Goal(high=0.02) for name in OBJECTIVES}
ROWS = tuple(Row(f"Gaussian, {dim}-D", partial(run, dim), GOALS) for dim in (2, 20))
