"""Sliced score matching."""

from __future__ import annotations

from typing import ClassVar

from torch import Generator, Tensor

from pyro_ebm.objectives.checks import at_least
from pyro_ebm.objectives.data import Domain
from pyro_ebm.objectives.objective import Objective, Report, Trained
from pyro_ebm.objectives.score import Score, signs


class SlicedScoreMatching(Objective):
    """Score matching along random directions: a second derivative for each direction instead of one for each dim.

    With `v` of random signs, `loss = E[vᵀ (∂s(x)) v + ½ |s(x)|²]`, the variance-reduced form, whose expectation is the
    loss of `ScoreMatching`; or the plain form `E[vᵀ (∂s(x)) v + ½ (vᵀ s(x))²]`, with the same one.

    Use it for smooth energies in many dims; its limits are those of score matching. The variance-reduced form is
    Hutchinson's estimate, `ScoreMatching(num_probes=...)`; the plain one is for comparisons.

    Args:
        num_projections: directions for each datum.
        variance_reduced: whether `|s|²` is used as it is.

    References:
        Song, Garg, Shi and Ermon 2019, Sliced score matching: a scalable approach to density and score estimation.

    >>> import torch
    >>> from pyro_ebm import EnergyDistribution, QuadraticEnergy
    >>> energy = QuadraticEnergy(torch.nn.Parameter(torch.eye(2)))
    >>> loss, _ = SlicedScoreMatching()(EnergyDistribution(energy), torch.randn(5, 2))
    >>> loss.backward()
    """

    domain: ClassVar[Domain] = Domain.REAL

    def __init__(self, num_projections: int = 1, *, variance_reduced: bool = True) -> None:
        super().__init__()
        self.num_projections = at_least(1, num_projections, "SlicedScoreMatching", "num_projections")
        self.variance_reduced = variance_reduced

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        score = Score(self._reference(distribution), data, "data")
        loss = score.value.new_zeros(())
        for _ in range(self.num_projections):
            direction = signs(score.value.shape, score.value, generator)
            curvature = (direction * score.derivative(direction)).sum(-1)
            if self.variance_reduced:
                half_square = 0.5 * score.value.square().sum(-1)
            else:
                half_square = 0.5 * (direction * score.value).sum(-1).square()
            loss = loss + (curvature + half_square).mean() / self.num_projections
        return loss, {}
