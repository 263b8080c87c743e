"""What `EnergyDistribution.sample` draws, when and at what cost."""

import itertools
import math
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from cases import harmonic, randn
from scipy import stats
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_ebm import DoubleWell, Energy, EnergyDistribution, NeuralEnergy, QuadraticEnergy, energy
from pyro_ebm._core.errors import EnergyShapeError, EnergySupportError, InitializationError

STANDARD_ERRORS = 4.5
FAILURE = 1e-4
NUM_DRAWS = 1000


def assert_moments(draws: Tensor, mean: Tensor | float, variance: Tensor | float) -> None:
    """Mean and variance of independent draws `(n, ...)` lie within their standard errors."""
    draws, count = draws.double(), draws.shape[0]
    centred = (draws - draws.mean(0)).square()
    for values, expected in ((draws, mean), (centred, variance)):
        error = values.std(0) / math.sqrt(count)
        score = (values.mean(0) - torch.as_tensor(expected)).abs() / error
        assert float(score.max()) < STANDARD_ERRORS, (values.mean(0), expected, score)


def double_well(x: Tensor) -> Tensor:
    return 4.0 * (x.square() - 1).square().sum(-1)


# A sampler of one's own


def test_the_sampler_given_is_called_with_the_distribution_and_the_sample_shape() -> None:
    calls: list[tuple[EnergyDistribution, torch.Size]] = []

    def sampler(d: EnergyDistribution, sample_shape: torch.Size) -> Tensor:
        calls.append((d, sample_shape))
        return torch.full(d.shape(sample_shape), 7.0, requires_grad=True)

    d = EnergyDistribution(DoubleWell(2), sampler=sampler)
    assert torch.equal(d.sample([5, 3]), torch.full((5, 3, 2), 7.0))
    expanded = d.expand((4,))
    draws = expanded.sample()
    assert draws.shape == (4, 2)
    assert not draws.requires_grad
    assert calls[0][0] is d
    assert calls[1][0] is expanded
    assert [shape for _, shape in calls] == [torch.Size([5, 3]), torch.Size([])]
    assert isinstance(calls[0][1], torch.Size)


def test_a_sampler_that_returns_another_shape_is_refused() -> None:
    d = EnergyDistribution(DoubleWell(2), sampler=lambda d, shape: torch.zeros(*shape, 2))
    assert d.sample((5,)).shape == (5, 2)
    with pytest.raises(EnergyShapeError, match=r"sampler returned shape \(5, 2\), expected .*= \(5, 3, 2\)"):
        d.expand((3,)).sample((5,))


# Exact draws


def test_quadratic_energies_are_drawn_exactly() -> None:
    root = randn(3, 2, 3, 3)
    e = QuadraticEnergy(root @ root.mT + torch.eye(3, dtype=torch.float64), randn(4, 2, 3))
    draws = EnergyDistribution(e).expand((4, 2)).sample((20_000,))
    assert_moments(draws, e.mean.expand(4, 2, 3), e.variance.expand(4, 2, 3))
    pair = draws[..., 0] * draws[..., 1]
    expected = e.covariance[..., 0, 1] + e.mean[..., 0] * e.mean[..., 1]
    assert_moments(pair, expected.expand(4, 2), pair.var(0))


def ising(coupling: Tensor, field: Tensor) -> Energy:
    """Three spins 0/1 on a triangle, with couplings and fields `(*batch,)`."""

    def fn(s: Tensor) -> Tensor:
        spins = 2 * s - 1
        bonds = (spins * spins.roll(1, -1)).sum(-1)
        return -coupling * bonds - field * spins.sum(-1)

    shape = torch.broadcast_shapes(coupling.shape, field.shape)
    return energy(fn, (3,), support=constraints.boolean, batch_shape=shape)


def test_small_discrete_energies_are_drawn_exactly() -> None:
    coupling, field = torch.tensor([[0.4], [-0.6]]), torch.tensor([0.0, 0.3, -1.0])
    d = EnergyDistribution(ising(coupling, field)).expand((2, 2, 3))
    count = 2000
    draws = d.sample((count, 2)).flatten(0, 1)
    assert draws.shape == (2 * count, 2, 2, 3, 3)
    codes = (draws @ torch.tensor([4.0, 2.0, 1.0])).long()
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
    for where in itertools.product(range(2), range(2), range(3)):
        _, i, j = where
        log_weights = [-ising(coupling[i, 0], field[j])(state) for state in states]
        probabilities = torch.stack(log_weights).double().softmax(0)
        observed = torch.bincount(codes[(slice(None), *where)], minlength=8)
        p_value = stats.chisquare(observed.numpy(), (2 * count * probabilities).numpy()).pvalue
        assert p_value > FAILURE / 12


def test_a_base_tilts_a_discrete_energy() -> None:
    base = dist.Categorical(logits=randn(6, 2, 4))
    d = EnergyDistribution(energy(lambda k: 0.7 * k, ()), base)
    expected = (base.logits - 0.7 * torch.arange(4.0)).softmax(-1)
    draws = d.sample((4000,)).long()
    for i in range(2):
        observed = torch.bincount(draws[:, i], minlength=4)
        assert stats.chisquare(observed.numpy(), (4000 * expected[i]).numpy()).pvalue > FAILURE / 2


# Draws by NUTS


def test_default_draws_of_a_double_well() -> None:
    d = EnergyDistribution(energy(double_well, (2,)))
    draws = d.sample((NUM_DRAWS,))
    known = DoubleWell(2, barrier=4.0)
    assert_moments(draws, known.mean, known.variance)


def test_default_draws_do_not_favour_places_where_trajectories_are_long() -> None:
    scale, count = torch.tensor([1.0, 4.0]), 1200
    d = EnergyDistribution(energy(lambda x: 0.5 * (x / scale).square(), (), batch_shape=(2,)))
    ratio = (d.sample((count,)) / scale).var(0)
    scores = (ratio - 1) * math.sqrt(count / 2)
    assert float(scores.square().sum()) < stats.chi2.isf(FAILURE, 2)


def test_default_draws_on_the_positive_reals() -> None:
    d = EnergyDistribution(energy(lambda x: 2 * x - 2 * x.log(), (), support=constraints.positive))
    assert_moments(d.sample((NUM_DRAWS,)), 1.5, 0.75)  # Gamma(3, 2)


def test_default_draws_on_the_simplex() -> None:
    concentration = torch.tensor([2.0, 1.0, 4.0])
    d = EnergyDistribution(
        energy(lambda x: -((concentration - 1) * x.log()).sum(-1), (3,), support=constraints.simplex)
    )
    draws = d.sample((NUM_DRAWS,))
    known = dist.Dirichlet(concentration)
    assert torch.allclose(draws.sum(-1), torch.ones(NUM_DRAWS))
    assert_moments(draws, known.mean, known.variance)


def test_draws_are_tilted_by_the_energy_and_never_those_of_the_base() -> None:
    loc = torch.tensor([3.0, -2.0])
    d = EnergyDistribution(energy(lambda x: 4.5 * (x - loc).square(), (), batch_shape=(2,)), dist.Normal(0.0, 1.0))
    draws = d.sample((NUM_DRAWS,))
    assert draws.shape == (NUM_DRAWS, 2)
    assert_moments(draws, 0.9 * loc, torch.full((2,), 0.1))


# Modes of torch


def _network() -> Energy:
    net = nn.Sequential(nn.Linear(2, 1), nn.Softplus(), nn.Flatten(0))
    return NeuralEnergy(net, (2,), support=constraints.unit_interval)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_draws_are_detached_in_every_mode(mode: Callable[[], torch.no_grad]) -> None:
    e = _network()
    with mode():
        draws = EnergyDistribution(e).sample((3,))
    assert draws.shape == (3, 2)
    assert not draws.requires_grad
    assert not draws.is_inference()
    assert ((draws > 0) & (draws < 1)).all()
    assert all(parameter.grad is None for parameter in e.parameters())
    exact = EnergyDistribution(QuadraticEnergy(nn.Parameter(torch.eye(2))))
    with mode():
        assert not exact.sample().requires_grad


def test_a_seed_repeats_the_draws() -> None:
    d = EnergyDistribution(energy(harmonic, (2,)))
    draws = []
    for _ in range(2):
        torch.manual_seed(1)
        draws.append(d.sample((16,)))
    assert torch.equal(*draws)
    assert len(draws[0].unique()) == 32


# What it refuses


def test_a_large_discrete_support_needs_a_sampler() -> None:
    d = EnergyDistribution(energy(lambda s: s.sum(-1), (40,), support=constraints.boolean))
    with pytest.raises(EnergySupportError, match=r"too many states to enumerate\. Give a sampler: .*sampler=fn"):
        d.sample()


def test_a_start_without_density_is_named() -> None:
    e = energy(lambda x: torch.where(x > 50, 0.5 * x.square(), math.inf), ())
    with pytest.raises(InitializationError, match=r"not finite where the sampler starts.*Give a base"):
        EnergyDistribution(e).sample()


def test_a_support_without_a_bijection_is_named() -> None:
    d = EnergyDistribution(energy(lambda x: x.sum((-1, -2)), (2, 2), support=constraints.symmetric))
    with pytest.raises(EnergySupportError, match=r"no bijection from the reals to .*biject_to\.register"):
        d.sample()


def test_elements_of_very_different_scale_have_each_its_own() -> None:
    scale = torch.tensor([0.01, 1.0, 100.0])
    d = EnergyDistribution(scale**-2 * energy(lambda x: 0.5 * x.square(), event_shape=()))
    draws = d.sample((400,)) / scale
    assert draws.shape == (400, 3)
    variance = draws.var(0)
    assert ((variance - 1).abs() < 4.5 * (2 / 400) ** 0.5).all(), variance
    assert (draws.mean(0).abs() < 4.5 / 400**0.5).all()
