"""`fit_prior`: a prior fitted to latent values that another one gave."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Distribution
from torch.nn.functional import softplus
from torch.nn.utils import clip_grad_norm_

from pyro_ebm._core.errors import EnergyShapeError, NonFiniteError
from pyro_ebm._core.randomness import seeded, seeded_generator
from pyro_ebm.distributions import EnergyDistribution
from pyro_ebm.energies import Energy

_CLIP = 10.0
# The draws of the base that log Z is taken from.
_LOG_Z_DRAWS, _LOG_Z_BATCH = 100_000, 10_000


def fit_prior(
    latents: Tensor | Callable[[int], Tensor],
    base: Distribution,
    energy: Energy,
    *,
    num_steps: int = 2000,
    batch_size: int = 256,
    num_noise: int = 4,
    learning_rate: float = 2e-3,
    generator: Generator | None = None,
) -> EnergyDistribution:
    """Fit an energy prior to the aggregate posterior of a model that was trained with another prior.

    A trained variational autoencoder leaves a gap between its prior `base` and the latent values `z ~ q(z | x)` over
    all data. Noise-contrastive estimation closes it after the fact: with `G(z) = -E(z) - c`, the log ratio of the two
    densities, it minimises

        E_q[softplus(log ν - G(z))] + ν E_base[softplus(G(z) - log ν)]    nats,

    by Adam, whose rate falls to zero. Nothing else of the model changes, and no Markov chain is needed. Log Z is then
    `log E_base[exp(-E(z))]`, by 100,000 draws of the base, which is sharper than c, the one that is learned.

    Args:
        latents: draws from the aggregate posterior, `(N, *event)`; or a function of a number n, that returns n draws
            `(n, *event)` of it, new ones each time: an encoder's, at random data.
        base: the prior that the model was trained with; it can be sampled, and has no batch dims.
        energy: what is fitted, in place; a network should start near zero.
        num_steps: of Adam.
        batch_size: draws of the aggregate posterior in each step.
        num_noise: ν, the draws of the base for each of them.
        learning_rate: Adam's first one.
        generator: of all random numbers, but for those of a function `latents`; by default one of its own, seeded
            from torch's.

    Returns:
        `EnergyDistribution(energy, base, log_normalizer=log_z)`, with all parameters of the energy frozen, to take the
        base's place in the model.

    Raises:
        EnergyShapeError: if latent values do not have the event shape of energy and base.
        NonFiniteError: if the loss, or log Z, is not finite.
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
    >>> prior = fit_prior(z, base, energy, num_steps=100, learning_rate=0.1)
    >>> prior.is_normalized, bool(prior.log_prob(z).mean() > base.log_prob(z).mean())
    (True, True)
    """
    for name, value in (("num_steps", num_steps), ("batch_size", batch_size), ("num_noise", num_noise)):
        if value < 1:
            raise ValueError(f"fit_prior: got {name} {value}, expected at least 1.")
    if base.batch_shape:
        raise EnergyShapeError(
            f"fit_prior: got a base with batch shape {tuple(base.batch_shape)}, expected none. Turn batch dims into "
            "event dims with base.to_event(n)."
        )
    EnergyDistribution(energy, base)  # checks that they fit
    if generator is None:
        generator = seeded_generator(base.sample().device)
    log_partition = torch.nn.Parameter(base.sample().new_zeros(()))
    energy.requires_grad_(True)
    parameters = [*energy.parameters(), log_partition]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for step in range(num_steps):
        data = _batch(latents, batch_size, generator)
        if data.shape[1:] != base.event_shape:
            raise EnergyShapeError(
                f"fit_prior: got latent values of shape {tuple(data.shape)}, expected (N, *event) with the event "
                f"shape {tuple(base.event_shape)} of the base."
            )
        with seeded(generator, generator.device), torch.no_grad():
            noise = base.sample(Size([num_noise * batch_size]))
        log_ratio = -energy(torch.cat([data, noise])) - log_partition - math.log(num_noise)
        at_data, at_noise = log_ratio[: len(data)], log_ratio[len(data) :]
        loss = softplus(-at_data).mean() + num_noise * softplus(at_noise).mean()
        if not bool(loss.isfinite()):
            raise NonFiniteError(
                f"fit_prior: got a loss of {loss.item()} at step {step}, expected a finite one. Lower the learning "
                "rate, or look for latent values that are not finite."
            )
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(parameters, _CLIP)
        optimizer.step()
        schedule.step()
    energy.requires_grad_(False)
    return EnergyDistribution(energy, base, log_normalizer=_log_normalizer(energy, base, generator))


def _batch(latents: Tensor | Callable[[int], Tensor], count: int, generator: Generator) -> Tensor:
    if not isinstance(latents, Tensor):
        return latents(count).detach()
    return latents[torch.randint(len(latents), (count,), generator=generator, device=latents.device)].detach()


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
