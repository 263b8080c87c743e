"""Objectives over real numbers against closed forms and quadrature."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import softplus

from pyro_ebm import (
    AdaptiveNoiseContrastive,
    ConditionalNoiseContrastive,
    DenoisingScoreMatching,
    EnergyDiscrepancy,
    EnergyDistribution,
    KernelStein,
    NoiseContrastive,
    QuadraticEnergy,
    RankingNoiseContrastive,
    ScoreMatching,
    SlicedScoreMatching,
    energy,
)

PRECISION = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 1.5]], dtype=torch.float64)
LINEAR = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def quadratic() -> EnergyDistribution:
    return EnergyDistribution(QuadraticEnergy(nn.Parameter(PRECISION.clone()), nn.Parameter(LINEAR.clone())))


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def mean_and_error(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    stacked = torch.stack(values)
    return stacked.mean(), stacked.std() / math.sqrt(len(values))


# Score matching


def test_score_matching_of_a_gaussian() -> None:
    data = draws(50, 3)
    score = LINEAR - data @ PRECISION
    loss, report = ScoreMatching()(quadratic(), data)
    half_square = 0.5 * score.square().sum(-1).mean()
    torch.testing.assert_close(loss.detach(), half_square - PRECISION.trace())
    torch.testing.assert_close(report["trace"], -PRECISION.trace())
    torch.testing.assert_close(report["half_square"], half_square)


def wiggly() -> EnergyDistribution:
    weight = draws(3, 8, seed=4)
    return EnergyDistribution(energy(lambda x: (x @ weight).sin().sum(-1) + 0.5 * x.square().sum(-1), (3,)))


@pytest.mark.parametrize(
    "objective",
    [ScoreMatching(num_probes=2), SlicedScoreMatching(), SlicedScoreMatching(2, variance_reduced=False)],
    ids=["probes", "sliced", "plain"],
)
def test_random_directions_are_unbiased(objective: ScoreMatching | SlicedScoreMatching) -> None:
    data, trained = draws(20, 3), wiggly()
    exact, _ = ScoreMatching()(trained, data)
    mean, error = mean_and_error([objective(trained, data, generator=seeded(n))[0].detach() for n in range(400)])
    assert abs(mean - exact) < 4 * error


def test_events_of_any_shape() -> None:
    matrix = EnergyDistribution(energy(lambda x: (x**4).sum((-1, -2)), (2, 3)))
    data = draws(20, 2, 3)
    loss, _ = ScoreMatching()(matrix, data)
    torch.testing.assert_close(loss, (0.5 * (4 * data**3).square() - 12 * data**2).sum((-1, -2)).mean())


def test_denoising_matches_the_smoothed_density() -> None:
    """Its gradient vanishes at the smoothed density, `E[½ |σ s + ξ|²] = d/2 · (1 - σ²/(1 + σ²))` for a Gaussian."""
    sigma, data = 0.7, draws(200_000, 2)
    weight = nn.Parameter(torch.tensor(1 / (1 + sigma**2), dtype=torch.float64))
    smoothed = EnergyDistribution(energy(lambda x: 0.5 * weight * x.square().sum(-1), (2,)))
    loss, _ = DenoisingScoreMatching(sigma)(smoothed, data, generator=seeded(1))
    loss.backward()
    assert abs(float(loss.detach()) - 1 / (1 + sigma**2)) < 4 / math.sqrt(len(data))  # a sd of at most 1 each
    assert weight.grad is not None
    assert abs(weight.grad) < 4 * 2 / math.sqrt(len(data))


def test_denoising_at_many_levels_is_the_mean() -> None:
    levels, data = [0.1, 0.5, 2.0], draws(100, 2)

    def smoothed(sigma: Tensor) -> EnergyDistribution:
        return EnergyDistribution(QuadraticEnergy(torch.eye(2).double() / (1 + sigma**2)))

    loss, report = DenoisingScoreMatching(levels)(smoothed, data, generator=seeded(0))
    torch.testing.assert_close(loss, torch.stack([report[f"loss_at_{level:g}"] for level in levels]).mean())
    first, _ = DenoisingScoreMatching(levels[0])(smoothed, data, generator=seeded(0))
    torch.testing.assert_close(first, report["loss_at_0.1"])


# Noise-contrastive estimation


def test_nce_finds_log_z() -> None:
    """At the true density c is log Z, within its standard error `sqrt((1 + 1/ν) (1/E[P] - 1) / N)`, P the posterior."""
    wide = Normal(torch.tensor(0.3, dtype=torch.float64), torch.tensor(1.6, dtype=torch.float64))
    truth = EnergyDistribution(energy(lambda x: 0.5 * x**2 + 0.25 * x**4, ()))
    grid = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    log_p = truth.log_prob(grid)
    log_z = torch.trapezoid(log_p.exp(), grid).log()
    probabilities = (log_p - log_z).exp()
    cumulative = torch.cumulative_trapezoid(probabilities, grid)
    count, nu = 20_000, 5
    data = grid[torch.searchsorted(cumulative, torch.rand(count, dtype=torch.float64, generator=seeded(2)))]
    objective = NoiseContrastive(wide, num_noise=nu).double()
    optimizer = torch.optim.LBFGS(objective.parameters(), line_search_fn="strong_wolfe", max_iter=30)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss, _ = objective(truth, data, generator=seeded(3))
        loss.backward()
        return loss

    optimizer.step(closure)
    noise = nu * wide.log_prob(grid).exp()
    information = torch.trapezoid(probabilities * noise / (probabilities + noise), grid)
    error = ((1 / information - 1 - 1 / nu) / count).sqrt()
    assert abs(objective.log_partition.detach() - log_z) < 4 * error
    assert error < 0.01


def test_nce_formula() -> None:
    data, trained = draws(30, 3), quadratic()
    noise = torch.distributions.MultivariateNormal(torch.zeros(3).double(), 2 * torch.eye(3).double())
    objective = NoiseContrastive(noise, num_noise=4).double()
    with torch.no_grad():
        objective.log_partition.fill_(1.3)
    many = [objective(trained, data, generator=seeded(n))[0].detach() for n in range(200)]
    samples = noise.sample((100_000,))

    def logit(x: Tensor) -> Tensor:
        return (trained.log_prob(x) - 1.3 - noise.log_prob(x) - math.log(4)).detach()

    at_noise = 4 * softplus(logit(samples))
    mean, error = mean_and_error(many)
    expected = softplus(-logit(data)).mean() + at_noise.mean()
    assert abs(mean - expected) < 4 * (error + at_noise.std() / math.sqrt(len(samples)))


def test_ranking_of_what_is_alike() -> None:
    plain = Normal(torch.zeros(2).double(), 1.0)
    trained = EnergyDistribution(energy(lambda x: 0.5 * x**2 + 7.0, ()))
    loss, _ = RankingNoiseContrastive(Normal(torch.tensor(0.0).double(), 1.0), 9)(trained, plain.sample((5,)).flatten())
    torch.testing.assert_close(loss, torch.tensor(math.log(10), dtype=torch.float64))


def test_ranking_needs_no_log_z_of_covariates() -> None:
    """A free constant for each covariate changes nothing."""
    covariates, data = draws(50, 1, seed=1), draws(50, 1, seed=2)
    losses = []
    for constant in (0.0, 5.0):
        conditional = EnergyDistribution(
            energy(
                lambda x, k=constant: 0.5 * (x - covariates).square().sum(-1) + k * covariates[:, 0],
                (1,),
                batch_shape=(50,),
            )
        )
        losses.append(RankingNoiseContrastive()(conditional, data, generator=seeded(0))[0])
    torch.testing.assert_close(*losses)


def test_cnce_is_score_matching_for_small_noise() -> None:
    """`E softplus(-G) = log 2 + E[G² / 8 - G / 2] = log 2 + ε² / 4 · E[½ |s|² + ∇·s]`, to the second order."""
    data, trained = draws(500, 3), quadratic()
    objective = ConditionalNoiseContrastive(0.05, num_noise=2000)
    objective.data_scale.value = torch.ones(3, dtype=torch.float64)
    loss, _ = objective(trained, data, generator=seeded(0))
    matching, _ = ScoreMatching()(trained, data)
    scaled = 4 * (loss - math.log(2)) / 0.05**2
    assert abs(scaled - matching).detach() < 0.05


@pytest.mark.parametrize("adversarial", [False, True])
def test_adaptive_noise(adversarial: bool) -> None:
    """The energy's gradient is that of plain NCE; the noise moves to where the data are."""
    data = draws(400, 2) + torch.tensor([1.0, -1.0], dtype=torch.float64)
    location = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    noise = torch.distributions.Independent(Normal(location, 1.5), 1)
    objective = AdaptiveNoiseContrastive(noise, adversarial=adversarial).double()
    energy_ = QuadraticEnergy(nn.Parameter(torch.eye(2).double()), nn.Parameter(torch.zeros(2).double()))
    loss, report = objective(EnergyDistribution(energy_), data, generator=seeded(0))
    loss.backward()
    gradients = [p.grad.clone() for p in energy_.parameters() if p.grad is not None]
    held = NoiseContrastive(torch.distributions.Independent(Normal(location.detach(), 1.5), 1)).double()
    energy_.zero_grad()
    plain, plain_report = held(EnergyDistribution(energy_), data, generator=seeded(0))
    plain.backward()
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(gradients, [p.grad for p in energy_.parameters()])
    torch.testing.assert_close(report["accuracy"], plain_report["accuracy"])
    torch.testing.assert_close(objective.log_partition.grad, held.log_partition.grad)
    parameters = [*energy_.parameters(), *objective.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for step in range(300):
        optimizer.zero_grad()
        objective(EnergyDistribution(energy_), data, generator=seeded(step))[0].backward()
        optimizer.step()
    assert (location - data.mean(0)).detach().abs().max() < 0.2
    assert abs(objective.log_partition.detach() - energy_.log_partition().detach()) < 0.1


def test_adaptive_noise_of_a_given_kind_needs_draws_with_gradients() -> None:
    with pytest.raises(ValueError, match="rsample"):
        AdaptiveNoiseContrastive(torch.distributions.Poisson(nn.Parameter(torch.tensor(2.0))), adversarial=True)


# Energy discrepancies


def bump(shift: float) -> EnergyDistribution:
    return EnergyDistribution(energy(lambda x: 0.5 * (x - shift) ** 2 + 0.3 * torch.sin(2 * x), ()))


def discrepancy_by_quadrature(trained: EnergyDistribution, data: Tensor, variance: float) -> Tensor:
    """`E(x) + E_y log ∫ exp(-E(x')) N(x'; y, t) dx'` at each datum."""
    reach = 8 * math.sqrt(2 * variance) + 12
    grid = torch.linspace(-reach, reach, 4001, dtype=torch.float64)
    scale = math.sqrt(variance)
    kernel = Normal(0.0, scale).log_prob(grid[:, None] - grid).exp()
    inner = torch.trapezoid(kernel * (trained.log_prob(grid)).exp(), grid).log()
    outer = Normal(0.0, scale).log_prob(grid - data[:, None]).exp()
    return -trained.log_prob(data) + torch.trapezoid(outer * inner, grid)


@pytest.mark.parametrize("t", [0.05, 0.5, 4.0])
def test_energy_discrepancy_is_what_quadrature_says(t: float) -> None:
    data, trained = draws(2), bump(0.3)
    objective = EnergyDiscrepancy(t, num_perturbations=4000, w=0.0)
    objective.data_scale.value = torch.tensor(1.0, dtype=torch.float64)
    many = [objective(trained, data, generator=seeded(n))[0].detach() for n in range(400)]
    mean, error = mean_and_error(many)
    exact = discrepancy_by_quadrature(trained, data, t).mean()
    bias = 5 * math.sqrt(1 + t) / 2000  # of a logarithm of a mean of M, at most
    assert abs(mean - exact) < 4 * error + bias


def test_energy_discrepancy_over_small_t_is_score_matching() -> None:
    data, trained, t = draws(200), bump(0.3), 1e-4
    exact = discrepancy_by_quadrature_of_small(trained, data, t)
    matching, _ = ScoreMatching()(trained, data)
    objective = EnergyDiscrepancy(t, num_perturbations=100_000, w=0.0)
    objective.data_scale.value = torch.tensor(1.0, dtype=torch.float64)
    loss, _ = objective(trained, data, generator=seeded(0))
    torch.testing.assert_close(exact / t, matching, atol=0.01, rtol=0.01)
    assert abs(loss / t - matching) < 0.15


def discrepancy_by_quadrature_of_small(trained: EnergyDistribution, data: Tensor, variance: float) -> Tensor:
    """The same by Gauss and Hermite's rule of nine points, twice."""
    nodes, weights = (torch.as_tensor(each) for each in np.polynomial.hermite_e.hermegauss(9))
    weights = weights / weights.sum()
    once = data[:, None] + math.sqrt(variance) * nodes
    twice = once[..., None] + math.sqrt(variance) * nodes
    inner = (trained.log_prob(twice).exp() * weights).sum(-1).log()
    return (-trained.log_prob(data) + (inner * weights).sum(-1)).mean()


def test_energy_discrepancy_for_large_t_is_the_likelihood() -> None:
    """Up to a constant: the difference of two densities' losses is that of their likelihoods."""
    data, grid = draws(40), torch.linspace(-20, 20, 20_001, dtype=torch.float64)
    objective = EnergyDiscrepancy(400.0, num_perturbations=20_000, w=0.0)
    objective.data_scale.value = torch.tensor(1.0, dtype=torch.float64)
    trained = [bump(0.0), bump(1.0)]
    differences = []
    for number in range(8):
        losses = [objective(each, data, generator=seeded(number))[0].detach() for each in trained]
        differences.append(losses[1] - losses[0])
    log_z = [torch.trapezoid(each.log_prob(grid).exp(), grid).log() for each in trained]
    likelihoods = [z - each.log_prob(data).mean() for z, each in zip(log_z, trained, strict=True)]
    mean, error = mean_and_error(differences)
    assert error < 0.02
    assert abs(mean - (likelihoods[1] - likelihoods[0])) < 4 * error + 0.01


# Stein discrepancies


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_stein_by_automatic_differentiation(kernel: str) -> None:
    data, width = draws(6, 2), 1.3
    precision = torch.tensor([[1.5, 0.4], [0.4, 0.8]], dtype=torch.float64)
    trained = EnergyDistribution(QuadraticEnergy(precision))

    def k(x: Tensor, y: Tensor) -> Tensor:
        u = (x - y).square().sum() / width**2
        return (1 + u).rsqrt() if kernel == "imq" else torch.exp(-u / 2)

    total = torch.zeros(()).double()
    for i, x in enumerate(data):
        for j, y in enumerate(data):
            if i != j:
                s, z = -precision @ x, -precision @ y
                by_x, by_y = (torch.func.grad(k, argnums=n)(x, y) for n in (0, 1))
                mixed = torch.func.jacfwd(torch.func.grad(k, argnums=0), argnums=1)(x, y).trace()
                total = total + (s @ z) * k(x, y) + s @ by_y + by_x @ z + mixed
    loss, _ = KernelStein(kernel, width)(trained, data)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, total / 30)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_stein_is_zero_at_the_truth(kernel: str) -> None:
    truth = quadratic()
    losses = []
    for number in range(60):
        data = truth.energy.sample((60,), generator=seeded(number)).detach()
        losses.append(KernelStein(kernel, 1.5)(truth, data)[0].detach())  # type: ignore[arg-type]
    mean, error = mean_and_error(losses)
    assert abs(mean) < 4 * error
    wrong, _ = KernelStein(kernel, 1.5)(truth, data + 0.5)  # type: ignore[arg-type]
    assert wrong > 10 * error
