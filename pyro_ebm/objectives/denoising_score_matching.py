"""Denoising score matching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Generator, Tensor

from pyro_ebm._core.protocols import Density
from pyro_ebm.objectives.checks import positive
from pyro_ebm.objectives.data import Domain
from pyro_ebm.objectives.objective import Objective, Report, Trained
from pyro_ebm.objectives.perturbations import mirrored_normal
from pyro_ebm.objectives.score import Score


class DenoisingScoreMatching(Objective):
    """Match the score of the data smoothed by Gaussian noise, by pointing from noisy data back at the data.

    With `ξ` standard normal, `loss = E[½ |σ s(x + σ ξ) + ξ|²]`, least where `s = ∇ log (p_data * N(0, σ²))`: **the
    density learned is the smoothed one**, whose covariance is larger by σ²; take it off to have that of the data. Each
    datum has an opposite pair of noises ±ξ, so that a small σ, which has little bias, has no more variance than sliced
    score matching.

    Use it where second derivatives cost too much, or for energies with kinks, or, with several levels, to learn a whole
    family of densities to go downhill along. Like all score matching it is blind to the masses of modes further apart
    than σ.

    Args:
        sigma: σ, in the data's units; or several, for a noise-conditional energy: in place of a distribution, the
            objective is then given a callable from a level σ, a scalar tensor, to a distribution. The loss is the mean
            over levels, each weighted by σ² (as above), so that all have losses of the same size.

    References:
        Vincent 2011, A connection between score matching and denoising autoencoders.
        Song and Ermon 2019, Generative modeling by estimating gradients of the data distribution.

    >>> from pyro_ebm import EnergyDistribution, QuadraticEnergy
    >>> smoothed = lambda sigma: EnergyDistribution(QuadraticEnergy(torch.eye(2) / (1 + sigma**2)))
    >>> loss, report = DenoisingScoreMatching([0.1, 1.0])(smoothed, torch.randn(100, 2))
    >>> list(report)
    ['loss', 'loss_at_0.1', 'loss_at_1']
    """

    domain: ClassVar[Domain] = Domain.REAL

    def __init__(self, sigma: float | Sequence[float] = 0.1) -> None:
        super().__init__()
        given = list(sigma) if isinstance(sigma, Sequence) else [sigma]
        if not given:
            raise ValueError("DenoisingScoreMatching: got no noise levels, expected at least one.")
        self.levels = tuple(positive(each, "DenoisingScoreMatching", "sigma") for each in given)

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        if isinstance(distribution, Density) and len(self.levels) > 1:
            raise ValueError(
                f"DenoisingScoreMatching: got one distribution for {len(self.levels)} noise levels, expected a "
                "callable from a level to a distribution: one density cannot be the data smoothed in several ways."
            )
        losses = {level: self._at_level(distribution, data, level, generator) for level in self.levels}
        loss = torch.stack(list(losses.values())).mean()
        if len(losses) == 1:
            return loss, {}
        return loss, {f"loss_at_{level:g}": value for level, value in losses.items()}

    def _at_level(self, distribution: Trained, data: Tensor, level: float, generator: Generator | None) -> Tensor:
        density = distribution if isinstance(distribution, Density) else distribution(data.new_tensor(level))
        noise = mirrored_normal(2, data.shape, data, generator)
        score = Score(density, data + level * noise, "noise")
        return 0.5 * (level * score.value + noise.reshape(score.value.shape)).square().sum(-1).mean()
