"""Contrastive divergence, against exact gradients and known answers."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from pyro_ebm import (
    RBM,
    ContrastiveDivergence,
    EnergyDistribution,
    EnergyShapeError,
    PersistentContrastiveDivergence,
    QuadraticEnergy,
    ShortRun,
)


def gaussian(precision: Tensor, base: bool = False) -> EnergyDistribution:
    reference = Independent(Normal(torch.zeros(2, dtype=torch.double), 1.0), 1) if base else None
    return EnergyDistribution(QuadraticEnergy(nn.Parameter(precision)), reference)


def gradient(loss: Tensor, distribution: EnergyDistribution) -> Tensor:
    loss.backward()
    (parameter,) = distribution.energy.parameters()
    assert parameter.grad is not None
    return parameter.grad


@pytest.mark.parametrize(
    "objective", [ContrastiveDivergence(30), PersistentContrastiveDivergence(20_000, num_steps=30)]
)
def test_at_equilibrium_the_gradient_is_that_of_the_likelihood(
    objective: ContrastiveDivergence | PersistentContrastiveDivergence,
) -> None:
    generator = torch.Generator().manual_seed(0)
    precision = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.double)
    distribution, count = gaussian(precision), 20_000
    data = torch.randn(count, 2, generator=generator, dtype=torch.double)
    # ∂/∂A of ½ E_data[x xᵀ] - ½ E_model[x xᵀ], and chains of many steps have forgotten where they started.
    loss, _ = objective(distribution, data, generator=generator)
    exact = 0.5 * (data.mT @ data / count - torch.linalg.inv(precision))
    covariance = torch.linalg.inv(precision)
    error = 0.5 * (covariance.square() + covariance.diagonal().outer(covariance.diagonal())).div(count).sqrt()
    assert bool(((gradient(loss, distribution) - exact).abs() < 4.5 * error).all())


def test_with_one_step_nothing_is_learned_from_data_of_the_density() -> None:
    generator = torch.Generator().manual_seed(1)
    distribution, count = gaussian(torch.eye(2, dtype=torch.double)), 20_000
    data = torch.randn(count, 2, generator=generator, dtype=torch.double)
    loss, report = ContrastiveDivergence()(distribution, data, generator=generator)
    # The chains start at the data, so what moves is far less than two independent samples would differ.
    assert bool((gradient(loss, distribution).abs() < 4.5 * math.sqrt(2 / count)).all())
    assert 0.3 < float(report["acceptance_rate"]) < 0.9


def test_negatives_of_data_that_are_exactly_the_density_stay() -> None:
    rbm = RBM(4, 3).double()
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.double)] * 4)
    distribution = EnergyDistribution(rbm)
    probabilities = (distribution.unnormalized_log_prob(states) - rbm.log_partition()).exp().detach()
    generator = torch.Generator().manual_seed(2)
    index = torch.multinomial(probabilities, 40_000, replacement=True, generator=generator)
    loss, _ = ContrastiveDivergence(3)(distribution, states[index], generator=generator)
    loss.backward()
    for parameter in rbm.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) < 4.5 * math.sqrt(2 / 40_000)


def test_short_chains_from_the_base() -> None:
    distribution = gaussian(torch.zeros(2, 2, dtype=torch.double), base=True)
    objective = ContrastiveDivergence(5, start="base")
    data = 0.5 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    optimizer = torch.optim.Adam(distribution.energy.parameters(), 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss, _ = objective(distribution, data, generator=torch.Generator().manual_seed(3))
        loss.backward()
        optimizer.step()
    short = EnergyDistribution(distribution.energy, distribution.base, log_normalizer=ShortRun(5))
    drawn = short.sample((5000,))
    # What was matched are second moments of the draws of five steps, with chains whose step size was tuned.
    assert drawn.square().mean(0).sub(0.25).abs().max() < 0.08


def test_a_base_is_asked_for() -> None:
    with pytest.raises(ValueError, match="Give a base"):
        ContrastiveDivergence(start="base")(gaussian(torch.eye(2, dtype=torch.double)), torch.randn(10, 2).double())


def test_persistent_chains_belong_to_a_batch() -> None:
    objective = PersistentContrastiveDivergence(20)
    objective(gaussian(torch.eye(2, dtype=torch.double)), torch.randn(10, 2).double())
    with pytest.raises(EnergyShapeError, match="chains belong to a density"):
        objective(gaussian(torch.eye(2, dtype=torch.double).expand(3, 2, 2).clone()), torch.randn(10, 3, 2).double())


@pytest.mark.parametrize("options", [{"num_steps": 0}, {"start": "noise"}])
def test_options(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="ContrastiveDivergence"):
        ContrastiveDivergence(**options)  # type: ignore[arg-type]
