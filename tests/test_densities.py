"""The test densities: what they claim to know, against quadrature and against their own draws."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from cases import parametrize
from scipy import stats
from torch import Tensor

from pyro_ebm import (
    DoubleWell,
    Funnel,
    GaussianMixture,
    QuadraticEnergy,
    ReferenceEnergy,
    Ring,
    Rosenbrock,
    correlated_gaussian,
)
from pyro_ebm._core.protocols import HasLogPartition

NUM_DRAWS = 100_000
NUM_CELLS = 1200  # in each dim of the grid
NUM_BINS = 60
FAILURE = 1e-4
STANDARD_ERRORS = 4.5

Reference = ReferenceEnergy | QuadraticEnergy


def _same(u: Tensor) -> Tensor:
    return u


def _flat(u: Tensor) -> Tensor:
    return torch.zeros_like(u[..., 0])


@dataclass(frozen=True)
class DensityCase:
    """A density, and coordinates u in which a grid of cells covers it: `x = from_grid(u)`."""

    name: str
    factory: Callable[[], Reference]
    low: tuple[float, ...]
    high: tuple[float, ...]
    from_grid: Callable[[Tensor], Tensor] = _same
    to_grid: Callable[[Tensor], Tensor] = _same
    log_jacobian: Callable[[Tensor], Tensor] = _flat
    tolerance: float = 1e-9

    def make(self) -> Reference:
        return self.factory().double()


@dataclass(frozen=True)
class Quadrature:
    """Midpoint sums over the cells of a grid."""

    points: Tensor  # (*cells, d)
    probabilities: Tensor  # (*cells,)
    log_partition: Tensor

    def expect(self, values: Tensor) -> Tensor:
        return (self.probabilities.unsqueeze(-1) * values).flatten(0, -2).sum(0)


def _bend(u: Tensor) -> Tensor:
    return torch.stack([u[..., 0], u[..., 1] + u[..., 0].square()], dim=-1)


def _unbend(x: Tensor) -> Tensor:
    return torch.stack([x[..., 0], x[..., 1] - x[..., 0].square()], dim=-1)


def _widen(u: Tensor) -> Tensor:
    return torch.stack([u[..., 0], u[..., 1] * torch.exp(0.5 * u[..., 0])], dim=-1)


def _narrow(x: Tensor) -> Tensor:
    return torch.stack([x[..., 0], x[..., 1] * torch.exp(-0.5 * x[..., 0])], dim=-1)


def _half(u: Tensor) -> Tensor:
    return 0.5 * u[..., 0]


def _box(reach: float, dim: int = 2) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return (-reach,) * dim, (reach,) * dim


def _shifted_gaussian() -> QuadraticEnergy:
    return QuadraticEnergy(torch.tensor([[2.0, 0.5], [0.5, 1.0]]), torch.tensor([1.0, -0.5]))


DENSITIES = [
    DensityCase("double_well", DoubleWell, *_box(3.0, 1)),
    DensityCase("double_well_low", lambda: DoubleWell(1, barrier=0.3), *_box(5.0, 1)),
    DensityCase("double_well_high", lambda: DoubleWell(1, barrier=40.0), *_box(2.0, 1)),
    DensityCase("double_well_2d", lambda: DoubleWell(2, barrier=2.0), *_box(3.0)),
    DensityCase("ring", Ring, *_box(4.2)),
    # a cusp at the origin, where the density is exp(-2), costs the midpoint rule its speed
    DensityCase("ring_wide", lambda: Ring(1.0, 0.5), *_box(6.0), tolerance=1e-7),
    DensityCase("gaussian_mixture", GaussianMixture, *_box(8.5)),
    DensityCase(  # masses in float32 sum to one to its precision
        "gaussian_mixture_weighted",
        lambda: GaussianMixture(3, 2.0, 0.7, weights=[0.5, 0.3, 0.2]),
        *_box(8.5),
        tolerance=1e-7,
    ),
    DensityCase("rosenbrock", Rosenbrock, (-32.0, -4.0), (34.0, 4.0), _bend, _unbend),
    DensityCase("rosenbrock_stiff", lambda: Rosenbrock(1.0, 50.0), (-7.0, -1.2), (9.0, 1.2), _bend, _unbend),
    DensityCase("funnel", lambda: Funnel(2, 1.0), (-10.0, -10.0), (12.0, 10.0), _widen, _narrow, _half),
    DensityCase("gaussian", lambda: correlated_gaussian(2, 0.6), *_box(9.0)),
    DensityCase("gaussian_shifted", _shifted_gaussian, *_box(11.0)),
    DensityCase(
        "gaussian_line", lambda: QuadraticEnergy(torch.tensor([[0.5]]), torch.tensor([1.0])), (-12.0,), (16.0,)
    ),
]


def _cells(case: DensityCase) -> list[Tensor]:
    """The edges of the cells in each dim."""
    return [torch.linspace(a, b, NUM_CELLS + 1, dtype=torch.float64) for a, b in zip(case.low, case.high, strict=True)]


def _quadrature(case: DensityCase) -> Quadrature:
    axes = [0.5 * (edges[1:] + edges[:-1]) for edges in _cells(case)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    volume = math.prod(float(axis[1] - axis[0]) for axis in axes)
    points = case.from_grid(grid)
    log_mass = math.log(volume) + case.log_jacobian(grid) - case.make()(points)
    return Quadrature(points, log_mass.flatten().softmax(0).reshape(log_mass.shape), log_mass.flatten().logsumexp(0))


@cache
def _integrals(index: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log Z, mean, variance, fourth central moment, and the cells' probabilities."""
    quadrature = _quadrature(DENSITIES[index])
    mean = quadrature.expect(quadrature.points)
    deviation = (quadrature.points - mean).square()
    return (
        quadrature.log_partition,
        mean,
        quadrature.expect(deviation),
        quadrature.expect(deviation.square()),
        quadrature.probabilities,
    )


@cache
def _draws(index: int) -> Tensor:
    return DENSITIES[index].make().sample((NUM_DRAWS,), generator=torch.Generator().manual_seed(100 + index))


@parametrize(DENSITIES)
def test_log_partition(case: DensityCase) -> None:
    e = case.make()
    log_partition, *_ = _integrals(DENSITIES.index(case))
    assert isinstance(e, HasLogPartition)
    torch.testing.assert_close(e.log_partition(), log_partition, rtol=0, atol=case.tolerance)


@parametrize(DENSITIES)
def test_moments_by_quadrature(case: DensityCase) -> None:
    _, mean, variance, *_ = _integrals(DENSITIES.index(case))
    scale = float(variance.amax().sqrt())
    torch.testing.assert_close(case.make().mean, mean, rtol=0, atol=case.tolerance * scale)
    torch.testing.assert_close(case.make().variance, variance, rtol=case.tolerance, atol=0)


@parametrize(DENSITIES)
def test_moments_by_draws(case: DensityCase) -> None:
    index = DENSITIES.index(case)
    _, _, variance, fourth, _ = _integrals(index)
    draws, e = _draws(index), case.make()
    error = (variance / NUM_DRAWS).sqrt()
    assert bool(((draws.mean(0) - e.mean).abs() < STANDARD_ERRORS * error).all())
    error = ((fourth - variance.square()) / NUM_DRAWS).sqrt()
    assert bool((((draws - e.mean).square().mean(0) - e.variance).abs() < STANDARD_ERRORS * error).all())


@parametrize(DENSITIES)
def test_draws_fill_the_cells(case: DensityCase) -> None:
    """Pearson's chi-square over blocks of cells, rare ones pooled."""
    index = DENSITIES.index(case)
    dim = len(case.low)
    *_, probabilities = _integrals(index)
    width = NUM_CELLS // NUM_BINS
    blocks = probabilities.reshape([size for _ in range(dim) for size in (NUM_BINS, width)])
    blocks = blocks.sum(dim=tuple(range(1, 2 * dim, 2))).flatten()
    block_of = torch.zeros(NUM_DRAWS, dtype=torch.long)
    for coordinate, edges in zip(case.to_grid(_draws(index)).unbind(-1), _cells(case), strict=True):
        block_of = block_of * NUM_BINS + torch.bucketize(coordinate.contiguous(), edges[width:-1:width].contiguous())
    observed = torch.bincount(block_of, minlength=NUM_BINS**dim).double()
    expected = NUM_DRAWS * blocks
    rare = expected < 20
    observed = torch.cat([observed[~rare], observed[rare].sum(0, keepdim=True)])
    expected = torch.cat([expected[~rare], expected[rare].sum(0, keepdim=True)])
    statistic = float(((observed - expected).square() / expected.clamp(min=1.0)).sum())
    assert statistic < stats.chi2.isf(FAILURE, len(expected) - 1)


@parametrize(DENSITIES)
def test_draws_follow_the_marginals(case: DensityCase) -> None:
    """Kolmogorov and Smirnov's test in each coordinate of the grid."""
    index = DENSITIES.index(case)
    *_, probabilities = _integrals(index)
    for dim, edges in enumerate(_cells(case)):
        marginal = probabilities.movedim(dim, 0).reshape(NUM_CELLS, -1).sum(-1)
        levels = torch.cat([torch.zeros(1, dtype=torch.float64), marginal.cumsum(0)])
        ordered = case.to_grid(_draws(index))[:, dim].sort().values
        cell = (torch.bucketize(ordered, edges) - 1).clamp(0, NUM_CELLS - 1)
        part = (ordered - edges[cell]) / (edges[1] - edges[0])
        cumulative = levels[cell] + part * (levels[cell + 1] - levels[cell])
        assert stats.kstest(cumulative.numpy(), "uniform").pvalue > FAILURE


# Higher dims


def test_double_wells_are_independent() -> None:
    one, five = DoubleWell(1).double(), DoubleWell(5).double()
    torch.testing.assert_close(five.log_partition(), 5 * one.log_partition())
    torch.testing.assert_close(five.variance, one.variance.expand(5))
    assert five.sample((4,)).shape == (4, 5)


def test_funnel_is_normalised_in_any_dim() -> None:
    """`v ~ N(0, s²)` and `x_i ~ N(0, exp(v))`, in nats."""
    e = Funnel(10).double()
    x = e.sample((50,), generator=torch.Generator().manual_seed(0))
    v, rest = x[:, 0], x[:, 1:]
    log_prob = torch.distributions.Normal(0.0, 3.0).log_prob(v)
    log_prob = log_prob + torch.distributions.Normal(0.0, (0.5 * v).exp().unsqueeze(-1)).log_prob(rest).sum(-1)
    torch.testing.assert_close(-e(x), log_prob)
    assert float(e.log_partition()) == 0.0
    torch.testing.assert_close(e.variance, torch.tensor([9.0] + [math.exp(4.5)] * 9, dtype=torch.float64))


def test_funnel_draws_in_higher_dims() -> None:
    e = Funnel(4, 1.0).double()
    draws = e.sample((NUM_DRAWS,), generator=torch.Generator().manual_seed(1))
    fourth = torch.tensor([3.0] + [3 * math.exp(2.0)] * 3, dtype=torch.float64)
    error = ((fourth - e.variance.square()) / NUM_DRAWS).sqrt()
    assert bool(((draws.square().mean(0) - e.variance).abs() < STANDARD_ERRORS * error).all())


def test_correlated_gaussian() -> None:
    e = correlated_gaussian(4, -0.3, dtype=torch.float64)
    expected = torch.full((4, 4), -0.3, dtype=torch.float64).fill_diagonal_(1.0)
    torch.testing.assert_close(e.covariance, expected)
    draws = e.sample((NUM_DRAWS,), generator=torch.Generator().manual_seed(2))
    error = ((1 + 0.3**2) / NUM_DRAWS) ** 0.5  # of a product of two coordinates
    off_diagonal = (draws.T @ draws / NUM_DRAWS)[~torch.eye(4, dtype=torch.bool)]
    assert bool(((off_diagonal + 0.3).abs() < STANDARD_ERRORS * error).all())


def test_batched_gaussians_draw_each_their_own() -> None:
    means = torch.tensor([[0.0, 0.0], [5.0, -5.0]], dtype=torch.float64)
    covariances = torch.tensor([[[1.0, 0.8], [0.8, 1.0]], [[4.0, -1.0], [-1.0, 0.5]]], dtype=torch.float64)
    e = QuadraticEnergy.from_moments(means, covariances)
    draws = e.sample((NUM_DRAWS,), generator=torch.Generator().manual_seed(3))
    error = (e.variance / NUM_DRAWS).sqrt()
    assert bool(((draws.mean(0) - means).abs() < STANDARD_ERRORS * error).all())
    deviation = draws - means
    second = torch.einsum("nbi,nbj->bij", deviation, deviation) / NUM_DRAWS
    variances = e.variance.unsqueeze(-1) * e.variance.unsqueeze(-2)
    error = ((variances + covariances.square()) / NUM_DRAWS).sqrt()
    assert bool(((second - covariances).abs() < STANDARD_ERRORS * error).all())


# Drawing


@pytest.mark.parametrize("sample_shape", [(), (5,), (3, 2), (0,)], ids=str)
@parametrize(DENSITIES)
def test_draw_shapes(case: DensityCase, sample_shape: tuple[int, ...]) -> None:
    e = case.make()
    draws = e.sample(sample_shape)
    assert draws.shape == (*sample_shape, *e.event_shape)
    assert e(draws).shape == sample_shape


@parametrize(DENSITIES)
def test_draws_and_answers_follow_the_dtype(case: DensityCase) -> None:
    for dtype in (torch.float32, torch.float64):
        e = case.factory().to(dtype)
        assert {e.sample((2,)).dtype, e.log_partition().dtype, e.mean.dtype, e.variance.dtype} == {dtype}
        assert e.mean.shape == e.variance.shape == e.event_shape
        assert e.log_partition().shape == ()


@parametrize(DENSITIES)
def test_a_generator_makes_draws_repeatable(case: DensityCase) -> None:
    e = case.make()
    before = torch.get_rng_state()
    first, second = (e.sample((3,), generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    draws = []
    for _ in range(2):
        torch.manual_seed(8)
        draws.append(e.sample((3,)))
    assert torch.equal(*draws)


# Errors


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.5, 0.6, -0.1], [0.5, 0.5, 0.0], [0.5, 0.4, 0.2]], ids=str)
def test_mixture_masses(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="expected 3 positive masses that sum to one"):
        GaussianMixture(3, weights=weights)


@pytest.mark.parametrize(("dim", "correlation"), [(2, 1.0), (2, -1.0), (3, -0.5), (1, 1.5)])
def test_correlations(dim: int, correlation: float) -> None:
    with pytest.raises(ValueError, match=r"correlated_gaussian: got correlation .*, expected in \(-"):
        correlated_gaussian(dim, correlation)
