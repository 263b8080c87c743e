"""`fit_prior`: a prior fitted to latent values that another one gave."""

from __future__ import annotations

import math

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Distribution

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.errors import EnergyShapeError, NonFiniteError
from pyro_ebm._core.randomness import seeded, seeded_generator
from pyro_ebm.distributions import EnergyDistribution
from pyro_ebm.energies import Energy
from pyro_ebm.objectives import NoiseContrastive, Training
from pyro_ebm.objectives.batches import Data

# The draws of the base that log Z is taken from.
_LOG_Z_DRAWS, _LOG_Z_BATCH = 100_000, 10_000


def fit_prior(
    latents: Data,
    base: Distribution,
    energy: Energy,
    *,
    num_steps: int = 2000,
    batch_size: int = 256,
    num_noise: int = 4,
    learning_rate: float = 2e-3,
    progress_bar: bool = True,
    generator: Generator | None = None,
) -> EnergyDistribution:
    """Fit an energy prior to the aggregate posterior of a model that was trained with another prior.

    A trained variational autoencoder leaves a gap between its prior `base` and the latent values `z ~ q(z | x)` over
    all data. Noise-contrastive estimation, with the base as its noise, closes it after the fact, in a `Training`: with
    `G(z) = -E(z) - c`, the log ratio of the two densities, it minimises

        E_q[softplus(log ν - G(z))] + ν E_base[softplus(G(z) - log ν)]    nats.

    Nothing else of the model changes, and no Markov chain is needed. Log Z is then `log E_base[exp(-E(z))]`, by 100,000
    draws of the base, which is sharper than c, the one that is learned.

    Args:
        latents: draws from the aggregate posterior, `(N, *event)`, several for each datum, say; or a torch `Dataset` or
            `DataLoader` of them, which may draw new ones each time.
        base: the prior that the model was trained with; it can be sampled, and has no batch dims.
        energy: what is fitted, in place; a network should start near zero.
        num_steps: of the training.
        batch_size: draws of the aggregate posterior in each step.
        num_noise: ν, the draws of the base for each of them.
        learning_rate: its highest value.
        progress_bar: whether to show one.
        generator: seeds all that is random; torch's global one by default.

    Returns:
        `EnergyDistribution(energy, base, log_normalizer=log_z)`, with all parameters of the energy frozen, to take the
        base's place in the model.

    Raises:
        EnergyShapeError: if latent values do not have the event shape of energy and base.
        NonFiniteError: if latent values, the loss, or log Z are not finite.
        ValueError: if a number is out of range.

    References:
        Aneja, Schwing, Kautz and Vahdat 2021, A contrastive learning approach for training variational autoencoder
            priors.
        Gutmann and Hyvärinen 2012, Noise-contrastive estimation of unnormalized statistical models.

    >>> import pyro.distributions as dist
    >>> from pyro_ebm import QuadraticEnergy
    >>> _ = torch.manual_seed(0)
    >>> z = 0.5 * torch.randn(1000, 2)
    >>> base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    >>> energy = QuadraticEnergy(torch.nn.Parameter(torch.zeros(2, 2)))
    >>> prior = fit_prior(z, base, energy, num_steps=100, learning_rate=0.1, progress_bar=False)
    >>> prior.is_normalized, bool(prior.log_prob(z).mean() > base.log_prob(z).mean())
    (True, True)
    """
    if base.batch_shape:
        raise EnergyShapeError(
            f"fit_prior: got a base with batch shape {tuple(base.batch_shape)}, expected none. Turn batch dims into "
            "event dims with base.to_event(n)."
        )
    like = like_of(energy)
    own = seeded_generator(like.device, generator)
    training = Training(
        EnergyDistribution(energy.requires_grad_(True), base),
        NoiseContrastive(base, num_noise).to(like),
        latents,
        num_steps=num_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        generator=own,
    )
    training.run(progress_bar=progress_bar)
    training.use_average()
    energy.requires_grad_(False)
    return EnergyDistribution(energy, base, log_normalizer=_log_normalizer(energy, base, own))


def _log_normalizer(energy: Energy, base: Distribution, generator: Generator) -> Tensor:
    """`log E_base[exp(-E(z))]`, in nats."""
    with torch.no_grad(), seeded(generator, generator.device):
        draws = base.sample(Size([_LOG_Z_DRAWS]))
        parts = [-energy(part) for part in draws.split(_LOG_Z_BATCH)]
    log_z = torch.logsumexp(torch.cat(parts), 0) - math.log(_LOG_Z_DRAWS)
    if not bool(log_z.isfinite()):
        raise NonFiniteError(
            f"fit_prior: got a log Z of {log_z.item()}, expected a finite one: the energy falls faster than the base "
            "confines. Give it less freedom, or a lower learning rate."
        )
    return log_z
