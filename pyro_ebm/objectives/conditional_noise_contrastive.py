"""Conditional noise-contrastive estimation."""

from __future__ import annotations

from typing import ClassVar

from torch import Generator, Tensor
from torch.nn.functional import softplus

from pyro_ebm.objectives.checks import at_least, positive
from pyro_ebm.objectives.data import Domain, log_density
from pyro_ebm.objectives.fitted import DataScale
from pyro_ebm.objectives.objective import Objective, Report, Trained
from pyro_ebm.objectives.perturbations import mirrored_normal


class ConditionalNoiseContrastive(Objective):
    """Tell each datum from noise made of it: `x' = x + ε s ξ`, with ξ standard normal and s the data's spread (CNCE).

    Which of the two is the datum has the log odds `G(x, x') = log p̃(x) - log p̃(x')`, for the noise is symmetric, and
    log Z cancels: `loss = E[softplus(-G(x, x'))]` nats, log 2 for a flat density. For small ε it is score matching, up
    to a scale; a larger one sees across valleys.

    Use it for densities of few dims with several modes: it needs no noise model and no gradients in x, and one
    evaluation for each noise draw. Not for discrete data, where it is far less accurate than `PseudoLikelihood`. It
    tells nothing of log Z.

    Args:
        scale: ε, in units of the standard deviation that each element has in the data of the first call.
        num_noise: the noise draws for each datum, in opposite pairs `±ξ`: an even number has less variance.

    References:
        Ceylan and Gutmann 2018, Conditional noise-contrastive estimation of unnormalised models.

    >>> import torch
    >>> from pyro_ebm import EnergyDistribution, Ring
    >>> ring = Ring(2.0, 0.3)
    >>> loss, report = ConditionalNoiseContrastive()(EnergyDistribution(ring), ring.sample((100,)))
    >>> bool(loss < torch.tensor(2.0).log())
    True
    """

    domain: ClassVar[Domain] = Domain.REAL

    def __init__(self, scale: float = 0.5, num_noise: int = 10) -> None:
        super().__init__()
        self.scale = positive(scale, "ConditionalNoiseContrastive", "scale")
        self.num_noise = at_least(1, num_noise, "ConditionalNoiseContrastive", "num_noise")
        self.data_scale = DataScale()

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        density = self._reference(distribution)
        unit = self.data_scale(data, len(density.event_shape), "ConditionalNoiseContrastive")
        noise = data + self.scale * unit * mirrored_normal(self.num_noise, data.shape, data, generator)
        at_data = log_density(density, data, "data")
        log_odds = at_data - log_density(density, noise, "noise", may_be_forbidden=True)
        loss = softplus(-log_odds).mean()
        return loss, {"accuracy": (log_odds > 0).to(loss).mean()}
