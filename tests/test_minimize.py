"""Going downhill: known minima, inside the support, each start on its own."""

import pytest
import torch
import torch.distributions as dist
from cases import Coupling, harmonic, randn, spring
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_ebm import (
    Descent,
    DistributionEnergy,
    DoubleWell,
    Energy,
    FunctionEnergy,
    Funnel,
    GaussianMixture,
    NeuralEnergy,
    QuadraticEnergy,
    Ring,
    Rosenbrock,
    energy,
    minimize,
)
from pyro_ebm._core.errors import EnergyShapeError, EnergySupportError

TARGET = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def _relative_entropy(x: Tensor) -> Tensor:
    return (x * (x / TARGET.to(x)).log()).sum(-1)


def _distance_to_two(x: Tensor) -> Tensor:
    return (x - 2).square().sum(-1)


def _quadratic() -> QuadraticEnergy:
    precision = torch.tensor([[3.0, 0.5, 0.0], [0.5, 1.0, -0.2], [0.0, -0.2, 0.3]], dtype=torch.float64)
    return QuadraticEnergy(precision, torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64))


def _starts(*shape: int) -> Tensor:
    return 2 * randn(11, *shape)


def _never_rises(descent: Descent) -> bool:
    return bool((descent.energies.diff(dim=0) <= 0).all())


# Known minima


@pytest.mark.parametrize("lead", [(), (6,), (3, 2)], ids=str)
def test_quadratic(lead: tuple[int, ...]) -> None:
    e, x0 = _quadratic(), _starts(*lead, 3)
    descent = minimize(e, x0)
    assert descent.converged.shape == descent.energy.shape == descent.gradient_norm.shape == lead
    assert bool(descent.converged.all())
    # the error is at most the gradient's length over the smallest curvature
    assert float((descent.x - e.mean).norm(dim=-1).max()) < 3**0.5 * 1e-6 / float(torch.linalg.eigvalsh(e.precision)[0])
    torch.testing.assert_close(descent.energy, e(e.mean).expand(lead), rtol=0, atol=1e-10)
    torch.testing.assert_close(descent.energy, e(descent.x))
    assert _never_rises(descent)


def test_a_batch_of_quadratics() -> None:
    scale = torch.tensor([1.0, 10.0, 1000.0], dtype=torch.float64)
    e = QuadraticEnergy(scale[:, None, None] * torch.eye(2, dtype=torch.float64), scale[:, None] * randn(0, 3, 2))
    descent = minimize(e, _starts(5, 3, 2))
    assert descent.converged.shape == (5, 3)
    assert bool(descent.converged.all())
    torch.testing.assert_close(descent.x, e.mean.expand(5, 3, 2), rtol=0, atol=1e-6)


def test_double_wells_keep_their_sides() -> None:
    x0 = torch.tensor([[-2.0], [-0.9], [-0.1], [0.1], [0.9], [2.0]], dtype=torch.float64)
    descent = minimize(DoubleWell(1, barrier=3.0), x0)
    assert bool(descent.converged.all())
    torch.testing.assert_close(descent.x, torch.where(x0 > 0, 1.0, -1.0).double(), rtol=0, atol=1e-6)
    assert _never_rises(descent)


def test_each_start_reaches_its_own_mode() -> None:
    e = GaussianMixture(5, radius=4.0, scale=0.4).double()
    x0 = e.locs + 0.3 * randn(0, 5, 2)
    descent = minimize(e, x0)
    assert bool(descent.converged.all())
    torch.testing.assert_close(descent.x, e.locs, rtol=0, atol=1e-6)


def test_a_curved_valley() -> None:
    descent = minimize(Rosenbrock(1.0, 100.0).double(), _starts(10, 2), num_steps=5000)
    assert bool(descent.converged.all())
    torch.testing.assert_close(descent.x, torch.ones(10, 2, dtype=torch.float64), rtol=0, atol=1e-5)
    assert _never_rises(descent)


def test_a_network() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)).double()
    e = NeuralEnergy(net, (2,)) + 0.5 * energy(harmonic, (2,))
    descent = minimize(e, _starts(4, 3, 2))
    assert bool(descent.converged.all())
    assert _never_rises(descent)
    x = descent.x.requires_grad_()
    (gradient,) = torch.autograd.grad(e(x).sum(), x)
    torch.testing.assert_close(gradient.abs().amax(-1), descent.gradient_norm)
    assert all(p.grad is None for p in net.parameters())


def test_float32_by_default_to_a_looser_tolerance() -> None:
    descent = minimize(_quadratic().float(), _starts(6, 3).float())
    assert descent.x.dtype == torch.float32
    assert bool(descent.converged.all())
    assert float(descent.gradient_norm.max()) <= 1e-3


def test_a_scalar_event() -> None:
    descent = minimize(FunctionEnergy(torch.cos, ()), torch.tensor([1.0, 4.0, 6.0], dtype=torch.float64))
    torch.testing.assert_close(descent.x, torch.full((3,), torch.pi, dtype=torch.float64), rtol=0, atol=1e-6)


# Energies never rise


@pytest.mark.parametrize(
    "e",
    [DoubleWell(2), Ring(), GaussianMixture(), Rosenbrock(), Funnel(3, 1.0), _quadratic()],
    ids=lambda e: type(e).__name__,
)
def test_energies_never_rise(e: Energy) -> None:
    descent = minimize(e.double(), _starts(20, *e.event_shape), num_steps=100)
    assert _never_rises(descent)
    torch.testing.assert_close(descent.energies[-1], descent.energy)
    torch.testing.assert_close(descent.energies[0], e(_starts(20, *e.event_shape)))


# Supports


@pytest.mark.parametrize(
    ("support", "fn", "minimum"),
    [
        (constraints.positive, _relative_entropy, TARGET / torch.e),
        (constraints.interval(-1.0, 4.0), _distance_to_two, torch.full((3,), 2.0, dtype=torch.float64)),
        (constraints.greater_than(1.0), _distance_to_two, torch.full((3,), 2.0, dtype=torch.float64)),
        (constraints.simplex, _relative_entropy, TARGET),
    ],
    ids=["positive", "interval", "greater_than", "simplex"],
)
def test_inside_the_support(support: constraints.Constraint, fn: object, minimum: Tensor) -> None:
    e = energy(fn, (3,), support=support)
    size = 2 if support is constraints.simplex else 3
    x0 = dist.biject_to(support)(_starts(200, size))
    descent = minimize(e, x0, keep_path=True)
    assert bool(descent.converged.all())
    torch.testing.assert_close(descent.x, minimum.expand(200, 3), rtol=0, atol=2e-5)
    assert bool(e.support.check(descent.path).all())
    assert _never_rises(descent)


@pytest.mark.parametrize("support", [constraints.positive, constraints.interval(0.0, 1.0)], ids=str)
def test_a_minimum_on_the_edge_is_approached_from_inside(support: constraints.Constraint) -> None:
    e = energy(lambda x: x.sum(-1), (2,), support=support)
    descent = minimize(e, torch.full((2,), 0.5, dtype=torch.float64), keep_path=True)
    assert bool(e.support.check(descent.path).all())
    assert float(descent.x.amax()) < 1e-5
    assert _never_rises(descent)


def test_the_mode_of_a_distribution() -> None:
    gamma = DistributionEnergy(dist.Gamma(torch.tensor(3.0, dtype=torch.float64), 2.0))
    x0 = torch.logspace(-9, 3, 25, dtype=torch.float64)
    descent = minimize(gamma, x0)
    torch.testing.assert_close(descent.x, torch.ones_like(x0), rtol=0, atol=1e-6)


# The record


def test_the_path_goes_from_start_to_end() -> None:
    e, x0 = _quadratic(), _starts(4, 3)
    descent = minimize(e, x0, keep_path=True)
    assert descent.path is not None
    assert descent.path.shape == (*descent.energies.shape, 3)
    assert torch.equal(descent.path[0], x0)
    assert torch.equal(descent.path[-1], descent.x)
    torch.testing.assert_close(e(descent.path), descent.energies)
    assert minimize(e, x0).path is None


def test_converged_tells_who_arrived() -> None:
    e = _quadratic()
    x0 = torch.stack([e.mean, e.mean + 5])
    descent = minimize(e, x0, num_steps=1)
    assert descent.converged.tolist() == [True, False]
    assert descent.energies.shape == (2, 2)
    assert bool((descent.converged == (descent.gradient_norm <= 1e-6)).all())
    assert torch.equal(descent.x[0], x0[0])


def test_no_steps() -> None:
    e, x0 = _quadratic(), _starts(4, 3)
    descent = minimize(e, x0, num_steps=0, keep_path=True)
    assert torch.equal(descent.x, x0)
    assert descent.energies.shape == (1, 4)
    assert descent.path is not None
    assert descent.path.shape == (1, 4, 3)


def test_it_ends_when_all_have_converged() -> None:
    assert len(minimize(_quadratic(), _starts(4, 3), num_steps=100_000).energies) < 500


def test_tolerance() -> None:
    loose = minimize(_quadratic(), _starts(4, 3), tolerance=0.1)
    tight = minimize(_quadratic(), _starts(4, 3), tolerance=1e-9)
    assert 1e-9 < float(loose.gradient_norm.max()) <= 0.1
    assert float(tight.gradient_norm.max()) <= 1e-9
    assert len(loose.energies) < len(tight.energies)


def test_an_unreachable_tolerance_ends_too() -> None:
    descent = minimize(DoubleWell(1).double(), _starts(5, 1), tolerance=0.0, num_steps=2000)
    assert _never_rises(descent)
    assert float(descent.gradient_norm.max()) < 1e-6


def test_a_flat_energy_has_converged() -> None:
    descent = minimize(energy(lambda x: torch.zeros_like(x[..., 0]), (2,)), torch.ones(3, 2))
    assert bool(descent.converged.all())
    assert torch.equal(descent.x, torch.ones(3, 2))


def test_the_starts_are_not_changed() -> None:
    e, x0 = _quadratic(), _starts(4, 3).requires_grad_()
    before = x0.detach().clone()
    descent = minimize(e, x0)
    assert torch.equal(x0.detach(), before)
    assert not descent.x.requires_grad
    assert x0.grad is None
    with torch.no_grad():
        assert torch.equal(minimize(_quadratic(), before).x, descent.x)
    with torch.inference_mode():
        torch.testing.assert_close(minimize(e, _starts(4, 3)).x, descent.x)


# Starts do not influence one another


@pytest.mark.parametrize(
    "e",
    [DoubleWell(2), GaussianMixture(), Rosenbrock(), Ring(), _quadratic()],
    ids=lambda e: type(e).__name__,
)
def test_alone_as_in_company(e: Energy) -> None:
    e, x0 = e.double(), _starts(8, *e.event_shape)
    x0[3] *= 100  # one far start, which backtracks much
    together = minimize(e, x0, num_steps=30)
    for i, start in enumerate(x0):
        alone = minimize(e, start, num_steps=30)
        steps = len(alone.energies)
        scale = alone.energies.abs().clamp(min=1.0)
        assert float(((together.energies[:steps, i] - alone.energies) / scale).abs().max()) < 1e-9
        torch.testing.assert_close(together.x[i], alone.x, rtol=1e-6, atol=1e-6)


# Errors


def test_wrong_event_shape() -> None:
    with pytest.raises(EnergyShapeError, match=r"minimize: got a value of shape \(5, 2\), expected .* \(3,\)"):
        minimize(_quadratic(), torch.zeros(5, 2))


def test_starts_without_the_batch_dims_broadcast() -> None:
    linear = torch.arange(8.0, dtype=torch.float64).reshape(4, 2)
    descent = minimize(QuadraticEnergy(torch.eye(2, dtype=torch.float64), linear), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(descent.x, linear, atol=1e-5, rtol=0)


def test_starts_are_floating_point() -> None:
    with pytest.raises(TypeError, match=r"minimize: got starts of dtype torch.int64, expected floating point"):
        minimize(QuadraticEnergy(torch.eye(2)), torch.zeros(2, dtype=torch.long))


def test_several_variables() -> None:
    with pytest.raises(EnergyShapeError, match="got an energy over 2 variables, expected one"):
        minimize(energy(spring, [(3,), ()]), torch.zeros(3))
    with pytest.raises(EnergyShapeError, match="got an energy over 2 variables, expected one"):
        minimize(energy(Coupling(torch.ones(2, 3)), [(2,), (3,)]), torch.zeros(2))


def test_discrete_support() -> None:
    e = energy(harmonic, (3,), support=constraints.boolean)
    with pytest.raises(EnergySupportError, match=r"minimize: got the discrete support .*, expected a continuous one"):
        minimize(e, torch.zeros(3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_starts_where_nothing_is_finite(bad: float) -> None:
    x0 = torch.zeros(4, 3, dtype=torch.float64)
    x0[1, 2] = bad
    with pytest.raises(ValueError, match=r"got 1 of 4 starts where the energy or its gradient is not finite"):
        minimize(_quadratic(), x0)


def test_starts_outside_the_support() -> None:
    e = energy(_relative_entropy, (3,), support=constraints.positive)
    with pytest.raises(ValueError, match=r"got 1 of 2 starts .* Start inside the support"):
        minimize(e, torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0]], dtype=torch.float64))
