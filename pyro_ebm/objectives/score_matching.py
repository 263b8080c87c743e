"""Score matching."""

from __future__ import annotations

from typing import ClassVar

from torch import Generator, Tensor

from pyro_ebm.objectives.checks import at_least
from pyro_ebm.objectives.data import Domain
from pyro_ebm.objectives.objective import Objective, Report, Trained
from pyro_ebm.objectives.score import Score, signs


class ScoreMatching(Objective):
    """Match the score `s(x) = ∇ log p̃(x)` of the data, without knowing it: log Z has no part in it.

    `loss = E_data[½ |s(x)|² + ∇·s(x)]`, which is `½ E_data |s(x) - ∇ log p_data(x)|²` up to a constant. For a Gaussian
    it is least at the maximum of the likelihood.

    Use it for smooth densities with one mode, where it is exact and has no options to choose. Not for separated modes:
    it is blind to their masses, for scores say nothing of them; nor for energies with kinks (Laplace, ReLU), whose
    second derivatives are missing at the kinks: use SiLU, or `DenoisingScoreMatching`.

    Args:
        num_probes: `None` for the exact trace, by as many second derivatives as dims; else a number of random signs
            `v` for the unbiased estimate `vᵀ (∂s) v` (Hutchinson 1989), by a second derivative for each.

    References:
        Hyvärinen 2005, Estimation of non-normalized statistical models by score matching.

    >>> import torch
    >>> from pyro_ebm import EnergyDistribution, QuadraticEnergy
    >>> loss, _ = ScoreMatching()(EnergyDistribution(QuadraticEnergy(torch.eye(2))), torch.ones(5, 2))
    >>> loss.detach()
    tensor(-1.)
    """

    domain: ClassVar[Domain] = Domain.REAL

    def __init__(self, num_probes: int | None = None) -> None:
        super().__init__()
        self.num_probes = None if num_probes is None else at_least(1, num_probes, "ScoreMatching", "num_probes")

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        score = Score(self._reference(distribution), data, "data")
        half_square = 0.5 * score.value.square().sum(-1).mean()
        if self.num_probes is None:
            trace = score.divergence().mean()
        else:
            trace = score.value.new_zeros(())
            for _ in range(self.num_probes):
                probe = signs(score.value.shape, score.value, generator)
                trace = trace + (probe * score.derivative(probe)).sum(-1).mean() / self.num_probes
        return half_square + trace, {"half_square": half_square, "trace": trace}
