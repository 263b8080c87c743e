"""How an `EnergyDistribution` samples when it is given no sampler.

Exactly where it can, by a short adapted run else.
"""

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Distribution

from pyro_ebm._core.errors import EnergySupportError, InitializationError
from pyro_ebm._core.gradients import with_gradient
from pyro_ebm._core.randomness import seeded_generator
from pyro_ebm._core.shapes import sum_rightmost
from pyro_ebm._core.supports import state_range, strip_independent, unconstraining
from pyro_ebm.mcmc.hamiltonian_algorithms import nuts_algorithm
from pyro_ebm.mcmc.run import Run
from pyro_ebm.mcmc.settings import RunSettings

# Each draw is the end of a chain of its own: 150 adapting transitions, then 50. Fewer chains than 16 would adapt badly.
_WARMUP_STEPS, _STEPS, _MIN_CHAINS = 150, 50, 16


def init_sample(distribution: TorchDistribution, base: Distribution | None, sample_shape: Size, like: Tensor) -> Tensor:
    """A point of the right shape inside the support, from the base or the middle of the support: not a draw."""
    shape = distribution.shape(sample_shape)
    if base is not None:
        expanded: Tensor = base.expand(distribution.batch_shape).sample(sample_shape)
        return expanded
    if distribution.support.is_discrete:
        found = state_range(distribution.support)
        lowest = getattr(strip_independent(distribution.support), "lower_bound", 0) if found is None else found[0]
        point = like.new_zeros(shape) + lowest
        if not bool(distribution.support.check(point).all()):
            raise EnergySupportError(
                f"EnergyDistribution: cannot find a point of {distribution.support}. Give a base, as a starting point."
            )
        return point
    transform = unconstraining(distribution.support, "EnergyDistribution")
    middle: Tensor = transform(like.new_zeros(transform.inverse_shape(shape)))
    return middle.contiguous()


def enumerated_sample(distribution: TorchDistribution, sample_shape: Size) -> Tensor:
    """Exact draws, by enumeration of all states."""
    states: Tensor = distribution.enumerate_support(expand=True)
    probabilities = torch.softmax(distribution.unnormalized_log_prob(states), dim=0).movedim(0, -1)
    index = torch.multinomial(probabilities.reshape(-1, len(states)), sample_shape.numel(), replacement=True)
    index = index.mT.reshape(sample_shape + distribution.batch_shape)
    flat = states.reshape(len(states), distribution.batch_shape.numel(), -1)[:, 0]  # the same for every batch element
    return flat[index].reshape(distribution.shape(sample_shape))


def run_sample(distribution: TorchDistribution, base: Distribution | None, sample_shape: Size, like: Tensor) -> Tensor:
    """Draws by NUTS: each is the last state of a chain of its own, 200 transitions from its start.

    Elements of the batch that differ (in parameters, covariates or base) are coordinates of one chain, so that each has
    its own scale in the metric; elements that are copies of one density are chains.

    Raises:
        EnergySupportError: if the support is discrete and too large to enumerate.
        InitializationError: if the density is not finite where the chains start.
    """
    if distribution.support.is_discrete:
        raise EnergySupportError(
            f"EnergyDistribution.sample: got the discrete support {distribution.support} over event shape "
            f"{tuple(distribution.event_shape)}, too many states to enumerate. Give a sampler: EnergyDistribution(..., "
            "sampler=fn), with fn(distribution, sample_shape) returning draws."
        )
    transform = unconstraining(distribution.support, "EnergyDistribution.sample")
    batch_shape = distribution.batch_shape
    different = max(len(distribution.energy.batch_shape), 0 if base is None else len(base.batch_shape))
    copies = batch_shape[: len(batch_shape) - different]
    repeats = math.ceil(_MIN_CHAINS / max(1, copies.numel() * sample_shape.numel()))
    lead = Size([repeats, *sample_shape, *copies])
    start = init_sample(distribution, base, Size([repeats, *sample_shape]), like)
    unconstrained = transform.inv(start)
    if base is None:
        unconstrained = unconstrained + torch.empty_like(unconstrained).uniform_(-2, 2)
    flat = unconstrained.reshape(lead.numel(), -1)

    def log_density(u: Tensor) -> Tensor:
        u = u.reshape(unconstrained.shape)
        value = transform(u)
        jacobian = transform.log_abs_det_jacobian(u, value)
        log_prob: Tensor = distribution.unnormalized_log_prob(value)
        densities, jacobians = (sum_rightmost(term, term.dim() - len(lead)) for term in (log_prob, jacobian))
        return (densities + jacobians).flatten()

    if not bool(torch.isfinite(log_density(flat)).all()):
        raise InitializationError(
            "EnergyDistribution.sample: got a density that is not finite where the sampler starts (the base's draws, "
            "or near the middle of the support). Give a base that overlaps with the energy, or a sampler."
        )
    run = Run(
        nuts_algorithm(),
        with_gradient(log_density),
        flat,
        seeded_generator(flat.device),
        RunSettings(num_samples=_STEPS, warmup_steps=_WARMUP_STEPS),
    )
    while not run.finished:
        run.advance()
    # Not run.position: where a chain is when the slowest one ends favours places with long trajectories.
    last = run.draws.draws()["position"][:, -1]
    draws: Tensor = transform(last.reshape(unconstrained.shape))
    return draws[0].detach()
