"""Families of energies over noise levels: their algebra, the network's, and denoising of them at random levels."""

import copy
import math
import pickle

import pytest
import torch
from cases import LevelNet, harmonic, quartic, randn, seeded
from family_cases import gaussian, two_modes
from torch import Tensor, nn
from torch.distributions import Distribution, LogNormal, Normal, constraints

from pyro_ebm import (
    DenoisingScoreMatching,
    DistributionEnergy,
    Energy,
    EnergyDistribution,
    EnergyShapeError,
    EnergySupportError,
    NeuralTimeConditional,
    QuadraticEnergy,
    TimeConditional,
    energy,
    log_uniform,
    mixture,
    noise_levels,
    time_conditional,
    time_mixture,
)

DOUBLE = torch.float64
X = randn(3, 6, 2)
LEVELS = torch.tensor([0.1, 1.0, 7.0], dtype=DOUBLE)
FIRST = gaussian(torch.tensor([1.0, 0.0], dtype=DOUBLE), torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=DOUBLE))
SECOND = gaussian(torch.tensor([0.0, -2.0], dtype=DOUBLE), torch.eye(2, dtype=DOUBLE))


def network(seed: int = 0, dtype: torch.dtype = DOUBLE) -> NeuralTimeConditional:
    return NeuralTimeConditional(seeded(LevelNet, dtype, seed), (2,), data_scale=1.5)


# The algebra


@pytest.mark.parametrize("sigma", [*LEVELS, LEVELS, LEVELS[:, None]])
def test_the_algebra_is_that_of_the_energies(sigma: Tensor) -> None:
    a, b, both = FIRST.at(sigma), SECOND.at(sigma), energy(harmonic, (2,))
    weights = torch.tensor([0.3, 0.7], dtype=DOUBLE)
    x = X.reshape(6, *[1] * sigma.dim(), 2)
    for family, expected in (
        (FIRST + SECOND, a + b),
        (FIRST - SECOND, a - b),
        (-FIRST, -a),
        (2.0 * FIRST, 2.0 * a),
        (FIRST * 2, 2.0 * a),
        (FIRST / 4.0, a / 4.0),
        (sum([FIRST, SECOND, FIRST]), a + b + a),
        (FIRST + both, a + both),
        (both + FIRST, both + a),
        (FIRST - both, a - both),
        (both - FIRST, both - a),
        (time_mixture([FIRST, SECOND]), mixture([a, b])),
        (time_mixture([FIRST, SECOND], weights), mixture([a, b], weights)),
    ):
        assert isinstance(family, TimeConditional)
        found = family.at(sigma)
        assert found.batch_shape == sigma.shape
        assert found.event_shape == (2,)
        torch.testing.assert_close(found(x), expected(x))
        torch.testing.assert_close(family(sigma)(x), found(x))


def test_a_batch_of_levels_is_a_stack() -> None:
    for family in (FIRST + SECOND, network(), time_mixture([network(), network(1)])):
        together = family.at(LEVELS)(X.unsqueeze(-2))
        torch.testing.assert_close(together, torch.stack([family.at(level)(X) for level in LEVELS], -1))
        torch.testing.assert_close(family.at(0.1)(X), together[:, 0], rtol=1e-6, atol=1e-6)


def test_sums_flatten_and_what_is_learned_is_found() -> None:
    weight = nn.Parameter(torch.tensor(2.0, dtype=DOUBLE))
    total = (network() + network(1)) + weight * (network(2) + FIRST)
    assert len(total.terms) == 3  # type: ignore[arg-type]
    names = dict(total.named_parameters())
    assert any(parameter is weight for parameter in names.values())
    assert len(names) == 1 + 3 * len(list(network().parameters()))
    total.at(LEVELS)(X.unsqueeze(-2)).sum().backward()
    assert all(parameter.grad is not None for parameter in names.values())


def test_mixtures_of_smoothed_densities_are_smoothed_mixtures() -> None:
    parts = [
        time_conditional(lambda s, c=c: DistributionEnergy(Normal(c, (0.16 + s.square()).sqrt())), ())
        for c in (-4.0, 4.0)
    ]
    mixed = time_mixture(parts, torch.tensor([0.25, 0.75], dtype=DOUBLE))
    x = torch.linspace(-6, 6, 50, dtype=DOUBLE)
    for sigma in LEVELS:
        torch.testing.assert_close(mixed.at(sigma)(x), two_modes().at(sigma)(x))


def test_copies_answer_alike() -> None:
    family = network() + 2.0 * network(1) + energy(quartic, (2,))
    expected = family.at(LEVELS)(X.unsqueeze(-2))
    for other in (copy.deepcopy(family), pickle.loads(pickle.dumps(family))):
        torch.testing.assert_close(other.at(LEVELS)(X.unsqueeze(-2)), expected)
    fresh = network(5) + 2.0 * network(6) + energy(quartic, (2,))
    fresh.load_state_dict(family.state_dict())
    torch.testing.assert_close(fresh.at(LEVELS)(X.unsqueeze(-2)), expected)
    single = copy.deepcopy(family).float()
    assert single.at(0.5)(X.float()).dtype == torch.float32


def test_wrong_families() -> None:
    with pytest.raises(EnergyShapeError, match="one for all"):
        FIRST + two_modes()
    with pytest.raises(EnergyShapeError, match="one for all"):
        time_mixture([])
    with pytest.raises(EnergySupportError, match="one support"):
        FIRST + energy(harmonic, (2,), support=constraints.positive)
    with pytest.raises(EnergyShapeError, match="the family's"):
        time_conditional(FIRST, (3,)).at(1.0)
    with pytest.raises(TypeError):
        FIRST + "noise"  # type: ignore[operator]
    with pytest.raises(TypeError):
        FIRST * "noise"  # type: ignore[operator]
    with pytest.raises(ValueError, match="data_scale"):
        NeuralTimeConditional(LevelNet(), (2,), data_scale=0.0)
    with pytest.raises(EnergyShapeError, match=r"Flatten\(0\)"):
        NeuralTimeConditional(Wide(), (2,)).at(1.0)(X.float())


class Wide(nn.Module):
    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return x[:, :1]


# The network


def test_the_formula_of_the_network() -> None:
    family = network()
    sigma = torch.tensor(0.3, dtype=DOUBLE)
    scale = math.sqrt(0.3**2 + 1.5**2)
    seen = []
    family.net.register_forward_hook(lambda _, given, output: seen.append((*given, output)))
    value = family.at(sigma)(X)
    inputs, features, output = seen[0]
    torch.testing.assert_close(inputs, X / scale)
    assert features.shape == (6, NeuralTimeConditional.num_features)
    torch.testing.assert_close(value, 0.5 * (X / scale).square().sum(-1) + 1.5 / 0.3 * output)


def test_the_network_starts_at_a_gaussian_that_is_right_for_one() -> None:
    net = LevelNet().double()
    nn.init.zeros_(net.last.weight)
    nn.init.zeros_(net.last.bias)
    family = NeuralTimeConditional(net, (2,), data_scale=0.7)
    right = gaussian(torch.zeros(2, dtype=DOUBLE), 0.49 * torch.eye(2, dtype=DOUBLE))
    for sigma in LEVELS:
        torch.testing.assert_close(family.at(sigma)(X), right.at(sigma)(X))


def test_the_network_sees_images_and_covariates() -> None:
    class Image(nn.Module):
        def forward(self, x: Tensor, level: Tensor, context: Tensor) -> Tensor:
            assert x.shape[1:] == (1, 4, 4)
            assert context.shape[1:] == (3,)
            return x.square().sum((1, 2, 3)) * level.sum(-1) + context.sum(-1)

    family = NeuralTimeConditional(Image(), (1, 4, 4), context=randn(0, 5, 3))
    assert family.at(0.1).batch_shape == (5,)
    assert family.at(LEVELS[:, None])(randn(1, 7, 3, 5, 1, 4, 4)).shape == (7, 3, 5)
    objective = DenoisingScoreMatching(log_uniform(0.1, 1.0))
    assert objective(family, randn(2, 5, 1, 4, 4))[0].isfinite()


# Levels


def test_noise_levels() -> None:
    for rho in (1.0, 7.0, math.inf):
        levels = noise_levels(0.02, 50.0, 30, rho=rho)
        assert float(levels[0]) == 50.0
        assert float(levels[-1]) == pytest.approx(0.02)
        assert bool((levels.diff() < 0).all())
    equal = noise_levels(0.02, 50.0, 30, rho=math.inf)
    torch.testing.assert_close(equal[1:] / equal[:-1], torch.full((29,), (0.02 / 50) ** (1 / 29)))
    torch.testing.assert_close(noise_levels(1.0, 5.0, 3, rho=1.0), torch.tensor([5.0, 3.0, 1.0]))
    middle = ((5.0 ** (1 / 7) + 1.0) / 2) ** 7
    assert float(noise_levels(1.0, 5.0, 3)[1]) == pytest.approx(middle)
    for wrong in ((1.0, 0.5, 3), (0.0, 1.0, 3), (0.1, 1.0, 1)):
        with pytest.raises(ValueError, match="noise_levels"):
            noise_levels(*wrong)
    with pytest.raises(ValueError, match="log_uniform"):
        log_uniform(2.0, 1.0)


# Denoising at random levels


class Isotropic(TimeConditional):
    """`½ |x|² / (σ² + v(σ))`, with a variance `v(σ) = exp(a + b log σ)` that is to be the data's at every level."""

    def __init__(self, variance: float) -> None:
        super().__init__((2,))
        self.log_variance = nn.Parameter(torch.tensor([math.log(variance), 0.0], dtype=DOUBLE))

    def _at(self, sigma: Tensor) -> Energy:
        variance = (self.log_variance[0] + self.log_variance[1] * sigma.log()).exp()
        precision = torch.eye(2, dtype=DOUBLE) / (sigma.square() + variance)[..., None, None]
        return QuadraticEnergy(precision)


@pytest.mark.parametrize("levels", [log_uniform(0.1, 10.0), LogNormal(-0.5, 1.0)], ids=["log_uniform", "log_normal"])
def test_denoising_at_random_levels_is_the_mean_of_its_losses(levels: Distribution) -> None:
    """For Gaussian data of variance v the least loss at σ is `d/2 · v/(v + σ²)`, and the gradient there is zero."""
    v, family = 1.7, Isotropic(1.7)
    data = math.sqrt(v) * randn(0, 20_000, 2)
    objective = DenoisingScoreMatching(levels)
    losses, gradients = [], []
    for seed in range(12):
        family.zero_grad()
        loss, _ = objective(family, data[seed::12], generator=torch.Generator().manual_seed(seed))
        loss.backward()
        losses.append(loss.detach())
        gradients.append(family.log_variance.grad)
    quantiles = (torch.arange(100_000, dtype=DOUBLE) + 0.5) / 100_000
    sigma = levels.icdf(quantiles)
    expected = (v / (v + sigma.square())).mean()
    for values, right in ((torch.stack(losses), expected), (torch.stack(gradients), torch.zeros(2, dtype=DOUBLE))):
        error = values.std(0) / math.sqrt(12)
        assert bool(((values.mean(0) - right).abs() < 5.5 * error).all())  # Student's t of 11
        assert float(error.max()) < 0.01


def test_denoising_at_random_levels_learns_every_level() -> None:
    """Started elsewhere, the variance becomes the data's, at the lowest level and at the highest."""
    family = Isotropic(0.3)
    uniform = torch.quasirandom.SobolEngine(2, scramble=True, seed=1).draw(4096).double().clamp(1e-6, 1 - 1e-6)
    data = math.sqrt(1.7) * torch.special.ndtri(uniform[:1024])
    optimizer = torch.optim.LBFGS(family.parameters(), max_iter=30, line_search_fn="strong_wolfe")
    objective = DenoisingScoreMatching(log_uniform(0.3, 5.0))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss, _ = objective(family, data.repeat(8, 1), generator=torch.Generator().manual_seed(1))
        loss.backward()
        return loss

    optimizer.step(closure)
    for sigma in (0.3, 5.0):
        variance = 1 / float(family.at(sigma).precision[0, 0].detach()) - sigma**2  # type: ignore[union-attr]
        assert variance == pytest.approx(1.7, rel=0.05 if sigma < 1 else 0.15)


def test_a_callable_of_distributions_is_a_family_too() -> None:
    family, data = Isotropic(1.0), randn(0, 50, 2)
    objective = DenoisingScoreMatching(log_uniform(0.1, 10.0))
    expected, _ = objective(family, data, generator=torch.Generator().manual_seed(0))
    found, _ = objective(
        lambda sigma: EnergyDistribution(family.at(sigma)), data, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(found, expected)


def test_levels_of_a_batch_are_spread_evenly() -> None:
    seen: list[Tensor] = []

    def family(sigma: Tensor) -> Energy:
        seen.append(sigma)
        return Isotropic(1.0).at(sigma)

    DenoisingScoreMatching(log_uniform(0.1, 10.0))(family, randn(0, 500, 2))
    ranks = (seen[-1].log().sort().values - math.log(0.1)) / math.log(100)
    assert float((ranks - (torch.arange(500) + 0.5) / 500).abs().max()) <= 0.5 / 500 + 1e-6
