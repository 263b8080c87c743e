"""Recovery likelihood against the exact gradient of a Gaussian, and what it learns."""

import math

import pytest
import torch
from cases import randn
from torch import Tensor, nn

from pyro_ebm import (
    DistributionEnergy,
    Energy,
    EnergyDistribution,
    QuadraticEnergy,
    RecoveryLikelihood,
    TimeConditional,
    noise_levels,
    sample_recovery,
    time_conditional,
)

DOUBLE = torch.float64


class Gaussian(TimeConditional):
    """`½ a x² - b x` with a and b for each of the levels."""

    def __init__(self, levels: list[float], precision: list[float], linear: list[float]) -> None:
        super().__init__((1,))
        self.levels = torch.tensor(levels, dtype=DOUBLE)
        self.precision = nn.Parameter(torch.tensor(precision, dtype=DOUBLE))
        self.linear = nn.Parameter(torch.tensor(linear, dtype=DOUBLE))

    def _at(self, sigma: Tensor) -> Energy:
        index = (self.levels - sigma.unsqueeze(-1)).abs().argmin(-1)
        return QuadraticEnergy(self.precision[index][..., None, None], self.linear[index][..., None])


def exact_gradient(a: float, b: float, mean: float, variance: float, between: float) -> tuple[float, float]:
    """Of `E[-log p(x | x̃)]` in a and b, for x of a mean and variance and `x̃ = x + s ξ`: both are Gaussian given x̃."""
    precision = a + 1 / between
    center, spread = (b + mean / between) / precision, (variance + between) / (between * precision) ** 2
    recovered = center**2 + spread + 1 / precision  # E[x⁻²]
    return 0.5 * (mean**2 + variance - recovered), center - mean


@pytest.mark.parametrize("right", [True, False])
def test_the_gradient_is_exact_for_a_gaussian(right: bool) -> None:
    """At every level, zero at the smoothed data's own density, and the exact one elsewhere."""
    levels, mean, variance = [3.0, 1.0, 0.3], 0.7, 1.5
    smoothed = [variance + sigma**2 for sigma in levels[1:]]
    precision = [1 / v for v in smoothed] if right else [0.9, 0.4]
    linear = [mean / v for v in smoothed] if right else [-0.3, 0.5]
    family = Gaussian(levels[1:], precision, linear)
    objective = RecoveryLikelihood(levels, num_steps=25)
    gradients = []
    for seed in range(16):
        family.zero_grad()
        data = mean + math.sqrt(variance) * randn(seed, 4000, 1)
        loss, report = objective(family, data, generator=torch.Generator().manual_seed(seed))
        loss.backward()
        gradients.append(torch.stack([family.precision.grad, family.linear.grad]))  # type: ignore[list-item]
        assert 0.4 < float(report["acceptance_rate"]) < 0.95
    found, error = torch.stack(gradients).mean(0), torch.stack(gradients).std(0) / 4
    assert float(error.max()) < 0.01
    for number in range(2):
        between = levels[number] ** 2 - levels[number + 1] ** 2
        expected = exact_gradient(precision[number], linear[number], mean, smoothed[number], between)
        if right:
            assert max(map(abs, expected)) < 1e-12
        for part in range(2):
            difference = abs(float(found[part, number]) - 0.5 * expected[part])  # half of the data are at each level
            assert difference < 4.5 * float(error[part, number])  # Student's t of 15


def test_a_single_density_at_one_level() -> None:
    weight = nn.Parameter(torch.tensor([[0.8]], dtype=DOUBLE))
    objective = RecoveryLikelihood([1.0, 0.3], num_steps=10)
    data = randn(0, 50, 1)
    loss, _ = objective(EnergyDistribution(QuadraticEnergy(weight)), data, generator=torch.Generator().manual_seed(0))
    family = time_conditional(lambda s: QuadraticEnergy(weight.expand(*s.shape, 1, 1)), (1,))
    same, _ = objective(family, data, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, same)


def test_each_datum_has_one_level_and_all_are_met() -> None:
    seen: list[Tensor] = []
    levels = noise_levels(0.1, 10.0, 6).double()

    def at(sigma: Tensor) -> Energy:
        seen.append(sigma)
        return DistributionEnergy(torch.distributions.Normal(0.0, (1 + sigma.square()).sqrt()))

    RecoveryLikelihood(levels, num_steps=1)(time_conditional(at, ()), randn(0, 100))
    found, counts = seen[-1].unique(return_counts=True)
    torch.testing.assert_close(found, levels[1:].flip(0))
    assert counts.tolist() == [20] * 5


class Masses(TimeConditional):
    """Two far modes with a log odds to be learned, smoothed exactly."""

    def __init__(self) -> None:
        super().__init__(())
        self.log_odds = nn.Parameter(torch.zeros((), dtype=DOUBLE))

    def _at(self, sigma: Tensor) -> Energy:
        scale = (0.16 + sigma.square()).sqrt()
        left, right = (torch.distributions.Normal(c * torch.ones_like(scale), scale).log_prob for c in (-4.0, 4.0))
        shape = sigma.shape

        class Two(Energy):
            def forward(self, x: Tensor) -> Tensor:
                return -torch.logaddexp(left(x), right(x) + odds)

        odds = self.log_odds
        two = Two((), batch_shape=shape)
        two.log_odds = odds
        return two


def test_masses_of_far_modes_are_learned_and_sampled() -> None:
    """A quarter and three quarters, ten spreads from the middle, which contrastive divergence does not see."""
    family, generator = Masses(), torch.Generator().manual_seed(0)
    objective = RecoveryLikelihood(noise_levels(0.1, 20.0, 12), num_steps=8)
    optimizer = torch.optim.Adam(family.parameters(), lr=0.15)
    right = torch.rand(2000, generator=generator) < 0.75
    data = torch.where(right, 4.0, -4.0).double() + 0.4 * torch.randn(2000, dtype=DOUBLE, generator=generator)
    found = []
    for step in range(60):
        optimizer.zero_grad()
        objective(family, data, generator=generator)[0].backward()
        optimizer.step()
        if step >= 30:
            found.append(family.log_odds.detach().clone())
    share = right.double().mean()
    assert abs(float(torch.stack(found).mean().sigmoid() - share)) < 0.02
    x = sample_recovery(
        family, noise_levels(0.1, 20.0, 15).double(), 3000, num_steps=15, generator=generator, disable_progbar=True
    )
    learned = float(family.log_odds.detach().sigmoid())
    assert abs(float((x > 0).double().mean()) - learned) < 4 * math.sqrt(learned * (1 - learned) / 3000)
