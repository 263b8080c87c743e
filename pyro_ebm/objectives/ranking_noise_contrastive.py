"""Ranking noise-contrastive estimation, for conditional energies."""

from __future__ import annotations

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Distribution

from pyro_ebm.objectives.checks import at_least
from pyro_ebm.objectives.data import lead_of, log_density
from pyro_ebm.objectives.noise import Noise, noise_at_data
from pyro_ebm.objectives.objective import Objective, Report, Trained


class RankingNoiseContrastive(Objective):
    """Tell which one of ν + 1 candidates is the datum: log Z cancels, whatever it depends on.

    With `G(x) = log p̃(x; c) - log q(x)` and ν noise draws `y_j ~ q` for each datum,
    `loss = E_data[log (e^{G(x)} + Σ_j e^{G(y_j)}) - G(x)]` nats, at most log (ν + 1) for the noise itself.

    Use it for conditional energies `E(x; c)`, whose covariates are bound in the batch: one datum for each. Binary
    NCE would need log Z of every covariate. It tells nothing of log Z.

    Args:
        noise: any normalised distribution that can be sampled, and covers the data; with the distribution's batch
            shape it depends on the covariates, too. By default as for `NoiseContrastive`.
        num_noise: ν, the noise draws for each datum.

    References:
        Ma and Collins 2018, Noise contrastive estimation and negative sampling for conditional models: consistency and
        statistical efficiency.

    >>> from pyro_ebm import EnergyDistribution, QuadraticEnergy
    >>> shift = torch.nn.Parameter(torch.zeros(1))
    >>> covariates = torch.randn(100, 1)
    >>> energy = QuadraticEnergy(torch.eye(1), shift * covariates)  # p(x; c) = N(shift c, 1)
    >>> loss, report = RankingNoiseContrastive()(EnergyDistribution(energy), 2 * covariates)
    >>> loss.backward()
    >>> bool(shift.grad < 0)
    True
    """

    def __init__(self, noise: Distribution | None = None, num_noise: int = 10) -> None:
        super().__init__()
        self.noise = Noise(noise)
        self.num_noise = at_least(1, num_noise, "RankingNoiseContrastive", "num_noise")

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        density = self._reference(distribution)
        self.noise.fit(density, data, "RankingNoiseContrastive")
        draws = self.noise.sample(density, data, Size((self.num_noise, *lead_of(density, data))), generator)
        with torch.no_grad():
            log_noise = noise_at_data(self.noise, density, data), self.noise.log_prob(density, draws)
        at_data = log_density(density, data, "data") - log_noise[0]
        at_noise = log_density(density, draws, "noise", may_be_forbidden=True) - log_noise[1]
        candidates = torch.cat([at_data.unsqueeze(0), at_noise])
        loss = (candidates.logsumexp(0) - at_data).mean()
        return loss, {"accuracy": (at_data > at_noise.amax(0)).to(loss).mean()}
