"""Noise-contrastive estimation whose noise is learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Size, Tensor, nn
from torch.distributions import Distribution

from pyro_ebm._core.randomness import seeded
from pyro_ebm.objectives.checks import at_least
from pyro_ebm.objectives.data import lead_of
from pyro_ebm.objectives.noise import Noise, noise_at_data
from pyro_ebm.objectives.noise_contrastive import classification
from pyro_ebm.objectives.objective import Objective, Report, Trained


class AdaptiveNoiseContrastive(Objective):
    """Noise-contrastive estimation by noise that draws near to the data while the energy is learned.

    The loss of `NoiseContrastive`, whose gradient goes to the energy and to c alone, plus a loss of the noise `q_φ`,
    whose gradient goes to φ alone: its negative log-likelihood `-E_data[log q_φ(x)]`, or, adversarially, what makes the
    classifier's loss rise, `-L_NCE(φ)` by draws that are differentiable in φ. The value of the loss is that of NCE (and
    what is added for the noise counts zero), so that it can be watched. At the optimum `p̃ e^{-c} = p_data` whatever
    the noise, and the nearer the noise the smaller the error.

    Use it where no fixed noise is near enough to the data: a normalising flow of Pyro learns to be. Not for plain
    problems, for two things are then tuned at once, and log Z settles late: tails are seen only where noise falls.

    Args:
        noise: a distribution with `nn.Parameter`s: a Pyro flow, `TransformedDistribution(base, [spline(...), ...])`, or
            a `Normal(nn.Parameter(...), ...)`. They become parameters of the objective.
        num_noise: ν, the noise draws for each datum.
        adversarial: whether the noise is trained against the classifier; it then must have `rsample`.
        batch_shape: the shape of log Z: the distribution's batch shape, for a batch of densities.

    Attributes:
        log_partition: c, `(*batch_shape)`, in nats.

    Raises:
        ValueError: if the noise has nothing to learn, or cannot be trained adversarially.

    References:
        Gao, Nijkamp, Kingma, Xu, Dai and Wu 2020, Flow contrastive estimation of energy-based models.

    >>> from torch.distributions import Independent, Normal
    >>> from pyro_ebm import EnergyDistribution, QuadraticEnergy
    >>> location = torch.nn.Parameter(torch.zeros(2))
    >>> nce = AdaptiveNoiseContrastive(Independent(Normal(location, 1.0), 1))
    >>> loss, report = nce(EnergyDistribution(QuadraticEnergy(torch.eye(2))), torch.randn(100, 2) + 1)
    >>> loss.backward()
    >>> (location.grad < 0).all()
    tensor(True)
    """

    log_partition: nn.Parameter

    def __init__(
        self,
        noise: Distribution,
        num_noise: int = 10,
        *,
        adversarial: bool = False,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.noise = Noise(noise)
        self.num_noise = at_least(1, num_noise, "AdaptiveNoiseContrastive", "num_noise")
        self.adversarial = adversarial
        self.log_partition = nn.Parameter(torch.zeros(tuple(batch_shape)))
        if not any(parameter.requires_grad for parameter in self.noise.parameters()):
            raise ValueError(
                "AdaptiveNoiseContrastive: got noise without an nn.Parameter, expected one to learn. Build it from "
                "Parameters or flows, or use NoiseContrastive, whose noise is fixed."
            )
        if adversarial and not noise.has_rsample:
            raise ValueError(
                f"AdaptiveNoiseContrastive: got noise {type(noise).__name__} without rsample, expected draws that are "
                "differentiable in its parameters. Use adversarial=False."
            )

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        density = self._reference(distribution)
        self.noise.fit(density, data, "AdaptiveNoiseContrastive")
        shape = Size((self.num_noise, *lead_of(density, data)))
        if not self.adversarial:
            draws = self.noise.sample(density, data, shape, generator)
            at_data, at_noise = noise_at_data(self.noise, density, data), self.noise.log_prob(density, draws)
            held = at_data.detach(), at_noise.detach()
            loss, report = classification(density, data, draws, held, self.log_partition)
            noise_loss = -at_data.mean()
            return loss + noise_loss - noise_loss.detach(), {**report, "noise_loss": noise_loss}
        with torch.enable_grad():
            with seeded(generator, data.device):
                moving = self.noise.differentiable_sample(shape)
            log_noise = noise_at_data(self.noise, density, data), self.noise.log_prob(density, moving)
            against, _ = classification(density, data, moving, log_noise, self.log_partition)
            learned = [parameter for parameter in self.noise.parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(against, learned, allow_unused=True, materialize_grads=True)
        held = log_noise[0].detach(), log_noise[1].detach()
        loss, report = classification(density, data, moving.detach(), held, self.log_partition)
        # Zero, with the gradient of a loss that falls as the classifier's rises, in the noise's parameters alone.
        for parameter, gradient in zip(learned, gradients, strict=True):
            loss = loss - ((parameter - parameter.detach()) * gradient).sum()
        return loss, {**report, "noise_loss": -log_noise[0].mean()}
