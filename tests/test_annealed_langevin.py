"""Annealed Langevin dynamics against closed forms: moments, masses of far modes, and products of families."""

import math
import warnings

import pytest
import torch
from family_cases import CENTERS, MASSES, SPREAD, gaussian, mixture_at, two_modes
from torch import Tensor, nn

from pyro_ebm import (
    DistributionEnergy,
    EnergySupportError,
    NeuralTimeConditional,
    ProbabilityFlow,
    QuadraticEnergy,
    SamplingWarning,
    TimeConditional,
    energy,
    noise_levels,
    sample_annealed,
    sample_recovery,
    time_conditional,
)
from pyro_ebm.mcmc.annealed_langevin import first_log_step, visit

DOUBLE = torch.float64
LOWEST = 0.05
COUNT = 5000


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def levels(count: int, highest: float = 30.0, lowest: float = LOWEST) -> Tensor:
    return noise_levels(lowest, highest, count).double()


def check_moments(x: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Mean and covariance within 4 standard errors, of Gaussian draws."""
    count = len(x)
    assert bool(((x.mean(0) - mean).abs() < 4 * (covariance.diagonal() / count).sqrt()).all())
    variances = covariance.diagonal()
    errors = ((variances[:, None] * variances + covariance.square()) / count).sqrt()
    assert bool(((torch.cov(x.mT) - covariance).abs() < 4 * errors).all())


# A visit to a level


@pytest.mark.parametrize("anchored", [False, True])
def test_a_visit_leaves_its_density_as_it_is(anchored: bool) -> None:
    precision = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=DOUBLE)
    target = QuadraticEnergy(precision, torch.tensor([0.5, 0.0], dtype=DOUBLE))
    noisy = torch.tensor([1.0, -1.0], dtype=DOUBLE)
    exact = QuadraticEnergy(precision + 4 * torch.eye(2), target.linear + 4 * noisy) if anchored else target
    start = exact.sample((COUNT,), generator=seeded(0))
    found = visit(
        lambda x: -target(x),
        start,
        torch.tensor(0.2 if anchored else 0.5, dtype=DOUBLE),
        first_log_step(start, 1, metropolis=True),
        event_dim=1,
        num_steps=10,
        anchor=(noisy.expand_as(start), torch.tensor(0.25, dtype=DOUBLE)) if anchored else None,
        generator=seeded(1),
    )
    check_moments(found.value, exact.mean, exact.covariance)
    assert 0.4 < float(found.acceptance_rate) < 0.8
    assert float((found.value != start).all(-1).double().mean()) > 0.99


def test_steps_without_correction_are_biased_by_half_a_step() -> None:
    """ULA of a unit Gaussian has variance `1 / (1 - ε/2)`: its temperature is 1, up to the step's bias."""
    step, start = 0.4, torch.randn(COUNT, 1, dtype=DOUBLE, generator=seeded(0))
    found = visit(
        lambda x: -0.5 * x.square().sum(-1),
        start,
        torch.ones((), dtype=DOUBLE),
        torch.tensor(step, dtype=DOUBLE).log(),
        event_dim=1,
        num_steps=20,
        metropolis=False,
        generator=seeded(1),
    )
    expected = 1 / (1 - step / 2)
    assert abs(float(found.value.var()) - expected) < 4 * expected * math.sqrt(2 / COUNT)
    assert float(found.log_step) == pytest.approx(math.log(step))


# Whole runs


def test_a_gaussian() -> None:
    mean = torch.tensor([1.0, -2.0, 0.0], dtype=DOUBLE)
    covariance = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 0.5]], dtype=DOUBLE)
    x = sample_annealed(gaussian(mean, covariance), levels(15), COUNT, generator=seeded(2), disable_progbar=True)
    check_moments(x, mean, covariance + LOWEST**2 * torch.eye(3))


@pytest.mark.parametrize("sampler", [sample_annealed, sample_recovery])
def test_masses_of_far_modes(sampler: object) -> None:
    """Modes ten spreads from the middle have masses .25 and .75, and each its own mean and variance."""
    x = sampler(two_modes(), levels(20), COUNT, generator=seeded(3), disable_progbar=True)  # type: ignore[operator]
    right = x > 0
    assert abs(float(right.double().mean()) - MASSES[1]) < 4 * math.sqrt(MASSES[0] * MASSES[1] / COUNT)
    variance = SPREAD**2 + LOWEST**2
    for mode, center in ((x[~right], CENTERS[0]), (x[right], CENTERS[1])):
        assert abs(float(mode.mean()) - center) < 4 * math.sqrt(variance / len(mode))
        assert abs(float(mode.var()) / variance - 1) < 4 * math.sqrt(2 / len(mode))


def test_a_product_is_the_product_with_correction_alone() -> None:
    """Two Gaussian families sum to the product of the two, but for what the flow, a reverse diffusion, makes of it."""
    means = torch.tensor([1.0, 0.0], dtype=DOUBLE), torch.tensor([0.0, -2.0], dtype=DOUBLE)
    covariances = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=DOUBLE), 0.5 * torch.eye(2, dtype=DOUBLE)
    both = gaussian(means[0], covariances[0]) + gaussian(means[1], covariances[1])
    precisions = [torch.linalg.inv(covariance + LOWEST**2 * torch.eye(2)) for covariance in covariances]
    covariance = torch.linalg.inv(precisions[0] + precisions[1])
    mean = covariance @ (precisions[0] @ means[0] + precisions[1] @ means[1])
    x = sample_annealed(both, levels(15), COUNT, generator=seeded(4), disable_progbar=True)
    check_moments(x, mean, covariance)
    flowed = ProbabilityFlow(both, levels(50)).sample((COUNT,), generator=seeded(4))
    shares = torch.cov(flowed.mT).diagonal() / covariance.diagonal()
    assert bool((shares < 0.1).all())  # far too narrow, for it contracts twice as fast


def test_covariates_have_chains_of_their_own() -> None:
    centers = torch.tensor([-3.0, 0.0, 5.0], dtype=DOUBLE)

    def at(sigma: Tensor) -> DistributionEnergy:
        return DistributionEnergy(torch.distributions.Normal(centers, (1 + sigma.square()).sqrt()))

    x = sample_annealed(time_conditional(at, ()), levels(15), 4000, generator=seeded(5), disable_progbar=True)
    assert x.shape == (4000, 3)
    assert bool(((x.mean(0) - centers).abs() < 4 / math.sqrt(4000)).all())


@pytest.mark.parametrize("sampler", [sample_annealed, sample_recovery])
def test_seeds_repeat_and_dtypes_stay(sampler: object) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, level: Tensor) -> Tensor:
            return self.weight * x.flatten(1).sum(-1)

    def run(family: TimeConditional, seed: int) -> Tensor:
        before = torch.random.get_rng_state()
        x = sampler(family, noise_levels(0.1, 5.0, 4), 7, num_steps=3, generator=seeded(seed), disable_progbar=True)  # type: ignore[operator]
        assert torch.equal(before, torch.random.get_rng_state())
        assert not x.requires_grad
        return x

    for dtype in (torch.float32, DOUBLE):
        family = NeuralTimeConditional(Flat().to(dtype), (2, 3))
        assert run(family, 0).shape == (7, 2, 3)
        assert run(family, 0).dtype == dtype
        assert torch.equal(run(family, 0), run(family, 0))
        assert not torch.equal(run(family, 0), run(family, 1))


def test_too_sharp_an_energy_warns() -> None:
    wall = time_conditional(lambda _: energy(lambda x: 1e6 * x.abs().sum(-1), (2,)), (2,))
    with pytest.warns(SamplingWarning, match="mean acceptance below"):
        sample_annealed(wall, levels(3), 20, num_steps=3, disable_progbar=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SamplingWarning)
        sample_annealed(two_modes(), levels(3), 200, num_steps=3, disable_progbar=True)


@pytest.mark.parametrize("sampler", [sample_annealed, sample_recovery])
def test_wrong_arguments(sampler: object) -> None:
    for wrong in (levels(3).flip(0), levels(3)[:1], levels(3) - 1, levels(3)[None]):
        with pytest.raises(ValueError, match="falling"):
            sampler(two_modes(), wrong, 5)  # type: ignore[operator]
    with pytest.raises(ValueError, match="num_samples=0"):
        sampler(two_modes(), levels(3), 0)  # type: ignore[operator]
    with pytest.raises(ValueError, match="num_steps=0"):
        sampler(two_modes(), levels(3), 5, num_steps=0)  # type: ignore[operator]
    positive = time_conditional(
        lambda _: energy(lambda x: x, (), support=torch.distributions.constraints.positive),
        (),
        support=torch.distributions.constraints.positive,
    )
    with pytest.raises(EnergySupportError, match="real numbers"):
        sampler(positive, levels(3), 5)  # type: ignore[operator]


def test_the_oracle_is_the_smoothed_mixture() -> None:
    """What the cases call smoothed is the convolution with noise."""
    sigma, x = torch.tensor(1.3, dtype=DOUBLE), torch.linspace(-6, 6, 9, dtype=DOUBLE)
    grid = torch.linspace(-20, 20, 20_001, dtype=DOUBLE)
    clean = mixture_at(torch.zeros((), dtype=DOUBLE)).log_prob(grid).exp()
    noise = torch.distributions.Normal(grid, sigma).log_prob(x[:, None]).exp()
    torch.testing.assert_close(torch.trapezoid(clean * noise, grid), mixture_at(sigma).log_prob(x).exp())
