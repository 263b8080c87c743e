"""Recovery likelihood: the likelihood of data at a noise level given noisier data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Generator, Tensor

from pyro_ebm._core.protocols import Density
from pyro_ebm._core.randomness import normal
from pyro_ebm.energies.noise_levels import checked_levels
from pyro_ebm.mcmc.annealed_langevin import first_log_step, visit
from pyro_ebm.objectives.checks import at_least
from pyro_ebm.objectives.data import Domain, lead_of, log_density
from pyro_ebm.objectives.levels import density_at, spread_quantiles
from pyro_ebm.objectives.objective import Objective, Report, Trained


class RecoveryLikelihood(Objective):
    """Maximum likelihood of a `TimeConditional` family, one noise level at a time, each given the next higher one.

    A datum x at level σ and the same with more noise, `x̃ = x + s ξ`, with `s² = σ'² - σ²` and σ' the level above, have

        p(x | x̃) ∝ exp(-E(x, σ) - |x - x̃|² / 2 s²)

    which is next to Gaussian if the levels are close: MALA chains that start at x̃ sample it in a few steps, where the
    marginal density's would not get from mode to mode. The loss is `E[E(x, σ) - E(x⁻, σ)]`, x⁻ being the chain's end:
    its gradient is that of `-log p(x | x̃)`, and its value, the gap of energies, says nothing of the likelihood. Each
    datum has one level, drawn evenly spread.

    Like denoising it is blind, at a low level, to the masses of modes further apart than s: these are settled at higher
    levels, and brought down by `sample_recovery`, `sample_annealed` and `ProbabilityFlow`. It costs `num_steps`
    gradients, where denoising score matching of the same family costs one, of second order.

    Args:
        levels: falling, `(L,)`; see `noise_levels`. All but the highest are learned; that is noise alone, and is to be
            far above the data's spread. Ratios of 1.3 to 2 between neighbours are good. With two of them, a single
            density may be given in place of a family.
        num_steps: of each chain.

    Raises:
        ValueError: if the levels do not fall.

    References:
        Gao, Song, Poole, Wu and Kingma 2021, Learning energy-based models by diffusion recovery likelihood.

    >>> from pyro_ebm import QuadraticEnergy, noise_levels, time_conditional
    >>> family = time_conditional(lambda s: QuadraticEnergy(torch.eye(2) / (1 + s**2)[..., None, None]), (2,))
    >>> loss, report = RecoveryLikelihood(noise_levels(0.1, 10.0, 8))(family, torch.randn(100, 2))
    >>> list(report)
    ['loss', 'acceptance_rate']
    """

    domain: ClassVar[Domain] = Domain.REAL

    def __init__(self, levels: Tensor | Sequence[float], num_steps: int = 20) -> None:
        super().__init__()
        self.levels = tuple(checked_levels(torch.as_tensor(levels), "RecoveryLikelihood").tolist())
        self.num_steps = at_least(1, num_steps, "RecoveryLikelihood", "num_steps")

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        if isinstance(distribution, Density) and len(self.levels) > 2:
            raise ValueError(
                "RecoveryLikelihood: got one distribution for several noise levels, expected a TimeConditional, or a "
                "callable from a level to a distribution. One density can be learned at one level: levels=[σ', σ]."
            )
        lead = lead_of(self._reference(distribution), data)
        choice = (spread_quantiles(lead, data, generator) * (len(self.levels) - 1)).long()
        variances = data.new_tensor(self.levels).square()
        above, below = variances[choice], variances[choice + 1]
        between, sigma = above - below, below.sqrt()
        density = distribution if isinstance(distribution, Density) else density_at(distribution, sigma)
        event_dim = len(density.event_shape)
        noisy = data + _over_events(sigma, event_dim) * normal(data.shape, data, generator)
        noisier = noisy + _over_events(between.sqrt(), event_dim) * normal(data.shape, data, generator)
        at_data = log_density(density, noisy, "noise")
        found = visit(
            partial(log_density, density, where="the chains"),
            noisier,
            below * between / above,
            first_log_step(noisier, event_dim, metropolis=True),
            event_dim=event_dim,
            num_steps=self.num_steps,
            anchor=(noisier, between),
            generator=generator,
        )
        at_chains = log_density(density, found.value, "the chains")
        return (at_chains - at_data).mean(), {"acceptance_rate": found.acceptance_rate}


def _over_events(scale: Tensor, event_dim: int) -> Tensor:
    """`(*lead,)` with ones for the dims of an event."""
    return scale.reshape(scale.shape + (1,) * event_dim)
