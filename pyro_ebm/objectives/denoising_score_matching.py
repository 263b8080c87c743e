"""Denoising score matching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution

from pyro_ebm._core.protocols import Density
from pyro_ebm.objectives.checks import positive
from pyro_ebm.objectives.data import Domain, lead_of
from pyro_ebm.objectives.levels import density_at, level_quantile, spread_quantiles
from pyro_ebm.objectives.objective import Objective, Report, Trained
from pyro_ebm.objectives.perturbations import mirrored_normal
from pyro_ebm.objectives.score import Score


class DenoisingScoreMatching(Objective):
    """Match the score of the data smoothed by Gaussian noise, by pointing from noisy data back at the data.

    With `ξ` standard normal, `loss = E[½ |σ s(x + σ ξ) + ξ|²]`, least where `s = ∇ log (p_data * N(0, σ²))`: **the
    density learned is the smoothed one**, whose covariance is larger by σ²; take it off to have that of the data. Each
    datum has an opposite pair of noises ±ξ, so that a small σ, which has little bias, has no more variance than sliced
    score matching.

    Use it where second derivatives cost too much, or for energies with kinks, or, over many levels, to learn a family
    of densities, `TimeConditional`: a diffusion model. Like all score matching it is blind, at each level, to the
    masses of modes further apart than σ. In a family that reaches as far as the data these are settled at higher
    levels, from where `sample_annealed` and `ProbabilityFlow` bring them down; **the energy of a low level by itself
    does not have them**.

    Args:
        sigma: σ, in the data's units. For a family of densities, given in place of a distribution (a
            `TimeConditional`, or a callable from levels to a distribution or energy), several levels, all of which
            every datum meets; or, far cheaper, a distribution of levels, of which each datum has one of its own, drawn
            evenly spread: `log_uniform(lowest, highest)`. Each level is weighted by σ² (as above), so that all have
            losses of the same size; with log-uniform levels that is also the weight of the likelihood: the loss above
            its least, times `2 log(highest / lowest)`, bounds the divergence of the learned diffusion from the data's,
            in nats.

    References:
        Vincent 2011, A connection between score matching and denoising autoencoders.
        Song and Ermon 2019, Generative modeling by estimating gradients of the data distribution.
        Song, Durkan, Murray and Ermon 2021, Maximum likelihood training of score-based diffusion models.

    >>> from pyro_ebm import QuadraticEnergy, log_uniform, time_conditional
    >>> family = time_conditional(lambda s: QuadraticEnergy(torch.eye(2) / (1 + s**2)[..., None, None]), (2,))
    >>> loss, report = DenoisingScoreMatching([0.1, 1.0])(family, torch.randn(100, 2))
    >>> list(report)
    ['loss', 'loss_at_0.1', 'loss_at_1']
    >>> loss, report = DenoisingScoreMatching(log_uniform(0.1, 1.0))(family, torch.randn(100, 2))
    """

    domain: ClassVar[Domain] = Domain.REAL

    def __init__(self, sigma: float | Sequence[float] | Distribution = 0.1) -> None:
        super().__init__()
        what = "DenoisingScoreMatching"
        self.random_levels = sigma if isinstance(sigma, Distribution) else None
        if isinstance(sigma, Distribution):
            self.levels = (float(level_quantile(sigma, torch.tensor(0.5), what)),)
            return
        given = list(sigma) if isinstance(sigma, Sequence) else [sigma]
        if not given:
            raise ValueError(f"{what}: got no noise levels, expected at least one.")
        self.levels = tuple(positive(each, what, "sigma") for each in given)

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        if isinstance(distribution, Density) and (self.random_levels is not None or len(self.levels) > 1):
            raise ValueError(
                "DenoisingScoreMatching: got one distribution for many noise levels, expected a TimeConditional, or a "
                "callable from a level to a distribution: one density cannot be the data smoothed in several ways."
            )
        if self.random_levels is not None:
            lead = lead_of(self._reference(distribution), data)
            quantiles = spread_quantiles(lead, data, generator)
            sigma = level_quantile(self.random_levels, quantiles, "DenoisingScoreMatching").to(data)
            return self._at_level(distribution, data, sigma, generator), {}
        losses = {level: self._at_level(distribution, data, data.new_tensor(level), generator) for level in self.levels}
        loss = torch.stack(list(losses.values())).mean()
        if len(losses) == 1:
            return loss, {}
        return loss, {f"loss_at_{level:g}": value for level, value in losses.items()}

    def _at_level(self, distribution: Trained, data: Tensor, sigma: Tensor, generator: Generator | None) -> Tensor:
        density = distribution if isinstance(distribution, Density) else density_at(distribution, sigma)
        noise = mirrored_normal(2, data.shape, data, generator)
        noisy = data + sigma.reshape(sigma.shape + (1,) * len(density.event_shape)) * noise
        score = Score(density, noisy, "noise")
        return 0.5 * (sigma.unsqueeze(-1) * score.value + noise.reshape(score.value.shape)).square().sum(-1).mean()
