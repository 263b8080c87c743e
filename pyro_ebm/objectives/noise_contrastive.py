"""Noise-contrastive estimation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Size, Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import softplus

from pyro_ebm._core.protocols import Density
from pyro_ebm.objectives.checks import at_least
from pyro_ebm.objectives.data import lead_of, log_density
from pyro_ebm.objectives.noise import Noise, noise_at_data
from pyro_ebm.objectives.objective import Objective, Report, Trained


class NoiseContrastive(Objective):
    """Tell data from noise by logistic regression, whose logit is the log ratio of the densities (NCE).

    With `G(x) = log p̃(x) - c - log q(x)` and ν noise draws `y ~ q` for each datum,
    `loss = E_data[softplus(log ν - G(x))] + ν E_q[softplus(G(y) - log ν)]` nats,
    least where `p̃ e^{-c} = p_data`: so c, a parameter of the objective, is log Z. Give the optimiser both:
    `[*energy.parameters(), *objective.parameters()]`.

    Use it where a noise close to the data is at hand, and to have log Z: the error falls as 1/N, and nears that of
    maximum likelihood as ν grows. Not where the noise is far from the data, as any simple noise is in many dims: the
    classifier is then perfect and learns nothing. For conditional energies, whose log Z is not one number, use
    `RankingNoiseContrastive`.

    Args:
        noise: any normalised distribution that can be sampled, and covers the data; it is held fixed. By default a
            Gaussian (or, over finite supports, independent frequencies) fitted to the data of the first call.
        num_noise: ν, the noise draws for each datum.
        batch_shape: the shape of log Z: the distribution's batch shape, for a batch of densities.

    Attributes:
        log_partition: c, `(*batch_shape)`, in nats.

    References:
        Gutmann and Hyvärinen 2012, Noise-contrastive estimation of unnormalized statistical models.

    >>> from pyro_ebm import EnergyDistribution, QuadraticEnergy
    >>> nce = NoiseContrastive(num_noise=4)
    >>> energy = QuadraticEnergy(torch.nn.Parameter(torch.eye(2)))
    >>> loss, report = nce(EnergyDistribution(energy), torch.randn(100, 2))
    >>> loss.backward()
    >>> sorted(report)
    ['accuracy', 'log_partition', 'loss']
    """

    log_partition: nn.Parameter

    def __init__(
        self, noise: Distribution | None = None, num_noise: int = 10, *, batch_shape: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.noise = Noise(noise)
        self.num_noise = at_least(1, num_noise, "NoiseContrastive", "num_noise")
        self.log_partition = nn.Parameter(torch.zeros(tuple(batch_shape)))

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        density = self._reference(distribution)
        self.noise.fit(density, data, "NoiseContrastive")
        draws = self.noise.sample(density, data, Size((self.num_noise, *lead_of(density, data))), generator)
        with torch.no_grad():
            log_noise = noise_at_data(self.noise, density, data), self.noise.log_prob(density, draws)
        return classification(density, data, draws, log_noise, self.log_partition)


def classification(
    density: Density, data: Tensor, draws: Tensor, log_noise: tuple[Tensor, Tensor], log_partition: Tensor
) -> tuple[Tensor, Report]:
    """The loss of telling data from noise, and the report.

    Args:
        density: the density.
        data: `(*sample, *batch, *event)`.
        draws: of the noise, `(num_noise, *sample, *batch, *event)`.
        log_noise: the log density of the noise at both.
        log_partition: c, which broadcasts to `(*batch,)`.
    """
    num_noise = len(draws)
    at_data = log_density(density, data, "data") - log_partition - log_noise[0]
    at_noise = log_density(density, draws, "noise", may_be_forbidden=True) - log_partition - log_noise[1]
    log_ratio = math.log(num_noise)
    loss = softplus(log_ratio - at_data).mean() + num_noise * softplus(at_noise - log_ratio).mean()
    accuracy = 0.5 * ((at_data > 0).to(loss).mean() + (at_noise < 0).to(loss).mean())
    return loss, {"log_partition": log_partition.mean(), "accuracy": accuracy}
