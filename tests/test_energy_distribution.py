"""`EnergyDistribution` as a distribution: shapes, densities, batches, log Z, and the errors it promises."""

import copy
import math
import pickle

import pyro.distributions as dist
import pytest
import torch
from cases import harmonic, randn
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_ebm import DoubleWell, EnergyDistribution, NeuralEnergy, QuadraticEnergy, energy
from pyro_ebm._core.errors import EnergyShapeError, EnergySupportError


def square(x: Tensor) -> Tensor:
    return x.square()


def first_three(s: Tensor) -> Tensor:
    return s[..., 0] - s[..., 1] * s[..., 2]


def no_reduction(x: Tensor) -> Tensor:
    return x


def precision(*batch: int) -> Tensor:
    root = randn(3, *batch, 3, 3)
    return root @ root.mT + torch.eye(3, dtype=torch.float64)


# Shapes


@pytest.mark.parametrize("sample_shape", [(), (5,), (2, 5)])
@pytest.mark.parametrize("batch_shape", [(), (4,), (2, 4), (1, 4)])
def test_shapes_of_values_and_log_prob(sample_shape: tuple[int, ...], batch_shape: tuple[int, ...]) -> None:
    d = EnergyDistribution(QuadraticEnergy(precision(*batch_shape)))
    assert d.batch_shape == batch_shape
    assert d.event_shape == (3,)
    draws = d.sample(sample_shape)
    assert draws.shape == d.shape(sample_shape) == (*sample_shape, *batch_shape, 3)
    assert d.log_prob(draws).shape == (*sample_shape, *batch_shape)
    singles = d.log_prob(torch.zeros(3, dtype=torch.float64))
    assert singles.shape == batch_shape


@pytest.mark.parametrize("sample_shape", [(0,), (2, 0)])
def test_no_draws_are_draws_too(sample_shape: tuple[int, ...]) -> None:
    for e in (DoubleWell(2), energy(harmonic, (2,)), energy(first_three, (3,), support=constraints.boolean)):
        d = EnergyDistribution(e)
        assert d.sample(sample_shape).shape == d.shape(sample_shape)


def test_the_batch_comes_from_energy_base_and_log_normalizer() -> None:
    e = QuadraticEnergy(precision(4))
    base = dist.Normal(torch.zeros(2, 1, 3, dtype=torch.float64), 1.0).to_event(1)
    assert EnergyDistribution(e, base).batch_shape == (2, 4)
    assert EnergyDistribution(energy(harmonic, (3,)), base).batch_shape == (2, 1)
    d = EnergyDistribution(energy(harmonic, (3,)), log_normalizer=torch.arange(5.0))
    assert d.batch_shape == (5,)
    assert torch.equal(d.log_prob(torch.zeros(7, 1, 3)), -torch.arange(5.0).expand(7, 5))
    with pytest.raises(EnergyShapeError, match=r"got batch shapes \(4,\), \(5,\), expected shapes that broadcast"):
        EnergyDistribution(e, log_normalizer=torch.zeros(5))


# Expanding, masking, reinterpreting


def test_expand_makes_a_new_distribution_that_shares_the_energy() -> None:
    e = QuadraticEnergy(precision(1, 4))
    d = EnergyDistribution(e, sampler=lambda d, shape: torch.zeros(d.shape(shape)), log_normalizer=torch.ones(4))
    once = d.expand((3, 4))
    twice = once.expand(torch.Size([2, 3, 4]))
    assert [x.batch_shape for x in (d, once, twice)] == [(1, 4), (3, 4), (2, 3, 4)]
    assert len({id(d), id(once), id(twice)}) == 3
    assert once.energy is twice.energy is e
    assert twice.sampler is d.sampler
    assert twice.is_normalized
    assert twice.sample((6,)).shape == (6, 2, 3, 4, 3)


def test_expanding_repeats_the_log_prob() -> None:
    d = EnergyDistribution(QuadraticEnergy(precision(4)))
    x = randn(1, 2, 4, 3)
    expanded = d.expand((2, 4))
    assert torch.equal(expanded.log_prob(x), d.log_prob(x))
    assert torch.equal(expanded.log_prob(x[0]), d.log_prob(x[0]).expand(2, 4))
    assert d.expand_by((6,)).batch_shape == (6, 4)


@pytest.mark.parametrize("wrong", [(5,), (1,), (2,), (4, 1), ()])
def test_expand_refuses_other_sizes(wrong: tuple[int, ...]) -> None:
    d = EnergyDistribution(QuadraticEnergy(precision(4)))
    with pytest.raises(EnergyShapeError, match=r"got batch shape \(4,\), expected .*index parameters and covariates"):
        d.expand(wrong)


def test_mask() -> None:
    d = EnergyDistribution(QuadraticEnergy(precision(4)))
    x = randn(1, 4, 3)
    mask = torch.tensor([True, False, True, False])
    assert torch.equal(d.mask(mask).log_prob(x), torch.where(mask, d.log_prob(x), 0))
    assert torch.equal(d.mask(False).log_prob(x), torch.zeros(4, dtype=torch.float64))


def test_to_event_and_its_expand() -> None:
    d = EnergyDistribution(QuadraticEnergy(precision(2, 4)))
    joint = d.to_event(1)
    assert (joint.batch_shape, joint.event_shape) == ((2,), (4, 3))
    x = randn(1, 2, 4, 3)
    assert torch.allclose(joint.log_prob(x), d.log_prob(x).sum(-1))
    expanded = d.to_event(2).expand((7,))
    assert expanded.sample().shape == (7, 2, 4, 3)
    assert torch.allclose(expanded.log_prob(x), d.log_prob(x).sum().expand(7))
    assert expanded.support.event_dim == 3


# The density


def test_without_a_base_it_is_minus_the_energy() -> None:
    e = DoubleWell(2)
    x = torch.randn(5, 2)
    d = EnergyDistribution(e)
    assert torch.equal(d.log_prob(x), -e(x))
    assert not d.is_normalized


def test_a_normal_base() -> None:
    loc, scale = randn(1, 3), randn(2, 3).exp()
    linear = randn(4, 3)
    tilted = EnergyDistribution(
        energy(lambda x: -(linear * x).sum(-1), (3,)),
        dist.Normal(loc, scale).to_event(1),
        log_normalizer=(linear * loc + 0.5 * (linear * scale).square()).sum(),
    )
    x = randn(5, 6, 3)
    assert torch.allclose(tilted.log_prob(x), dist.Normal(loc + linear * scale**2, scale).log_prob(x).sum(-1))


def test_a_gamma_base() -> None:
    concentration, rate, extra = 2.0, 1.5, 0.7
    log_z = torch.tensor(concentration * math.log(rate / (rate + extra)))
    d = EnergyDistribution(energy(lambda x: extra * x, ()), dist.Gamma(concentration, rate), log_normalizer=log_z)
    x = torch.linspace(0.1, 5, 20)
    assert torch.allclose(d.log_prob(x), dist.Gamma(concentration, rate + extra).log_prob(x), atol=1e-5)
    assert d.support is dist.Gamma.support


def test_a_dirichlet_base() -> None:
    concentration, extra = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.0, 1.0])

    def log_beta(a: Tensor) -> Tensor:
        return a.lgamma().sum() - a.sum().lgamma()

    d = EnergyDistribution(
        energy(lambda x: -(extra * x.log()).sum(-1), (3,)),
        dist.Dirichlet(concentration),
        log_normalizer=log_beta(concentration + extra) - log_beta(concentration),
    )
    x = torch.randn(6, 3).softmax(-1)
    assert torch.allclose(d.log_prob(x), dist.Dirichlet(concentration + extra).log_prob(x), atol=1e-5)
    assert d.support is constraints.simplex


def test_support_has_the_event_dims() -> None:
    for e in (
        DoubleWell(2),
        energy(square, ()),
        energy(harmonic, (4, 3)),
        energy(harmonic, (3,), support=constraints.positive),
    ):
        d = EnergyDistribution(e)
        assert d.support.event_dim == d.event_dim == len(e.event_shape)
    assert EnergyDistribution(energy(square, (), support=constraints.boolean)).support.is_discrete


# dtypes, copies, names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_follow_the_dtype_of_the_energy(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)).to(dtype)
    for e in (
        DoubleWell(2).to(dtype),
        NeuralEnergy(net, (2,), support=constraints.unit_interval),
        NeuralEnergy(net, (2,), support=constraints.boolean),
    ):
        d = EnergyDistribution(e)
        draws = d.sample((3,))
        assert draws.dtype == d.log_prob(draws).dtype == dtype


def test_moving_the_energy_moves_the_distribution() -> None:
    e = NeuralEnergy(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), (2,), support=constraints.boolean)
    d = EnergyDistribution(e)
    assert d.sample().dtype == torch.float32
    e.double()
    assert d.sample().dtype == torch.float64
    e.to("cpu", torch.float32)
    assert d.log_prob(d.sample()).dtype == torch.float32


def zeros_sampler(d: EnergyDistribution, sample_shape: torch.Size) -> Tensor:
    return torch.zeros(d.shape(sample_shape))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
def test_copies(how) -> None:
    base = dist.Normal(torch.zeros(3), 2.0).to_event(1)
    d = EnergyDistribution(
        energy(harmonic, (3,)), base, log_normalizer=torch.tensor(1.5), sampler=zeros_sampler
    ).expand((4,))
    other = how(d)
    x = torch.randn(4, 3)
    assert torch.equal(other.log_prob(x), d.log_prob(x))
    assert torch.equal(other.sample((2,)), torch.zeros(2, 4, 3))
    assert other.expand((2, 4)).batch_shape == (2, 4)
    discrete = how(EnergyDistribution(energy(first_three, (3,), support=constraints.boolean)))
    assert discrete.has_enumerate_support
    assert discrete.sample().shape == (3,)


def test_repr_names_what_matters() -> None:
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    assert repr(EnergyDistribution(DoubleWell(2), base)) == (
        "EnergyDistribution(DoubleWell, base=Independent, batch_shape=(), event_shape=(2,), is_normalized=False)"
    )
    assert "base" not in repr(EnergyDistribution(DoubleWell(2)))


# What it refuses


def test_values_are_checked() -> None:
    d = EnergyDistribution(energy(square, (), support=constraints.positive))
    with pytest.raises(ValueError, match="support"):
        d.log_prob(torch.tensor(-1.0))
    unchecked = EnergyDistribution(energy(square, (), support=constraints.positive), validate_args=False)
    assert unchecked.log_prob(torch.tensor(-2.0)) == -4
    assert unchecked.expand((3,)).log_prob(torch.tensor(-2.0)).shape == (3,)
    with pytest.raises(ValueError, match="event"):
        EnergyDistribution(DoubleWell(3)).log_prob(torch.zeros(5, 2))
    with pytest.raises(EnergyShapeError, match=r"got a value of shape \(5, 2\), expected .*event shape \(3,\)"):
        EnergyDistribution(DoubleWell(3), validate_args=False).log_prob(torch.zeros(5, 2))


def test_an_energy_that_does_not_reduce_its_event_is_named() -> None:
    with pytest.raises(EnergyShapeError, match=r"energy returned shape \(5, 2\), expected \(5,\)\. Reduce"):
        EnergyDistribution(energy(no_reduction, (2,))).log_prob(torch.zeros(5, 2))


def test_the_pieces_are_checked() -> None:
    with pytest.raises(TypeError, match=r"got function, expected an Energy.*energy\(fn, event_shape="):
        EnergyDistribution(harmonic)
    with pytest.raises(TypeError, match=r"got Normal, expected an Energy.*DistributionEnergy"):
        EnergyDistribution(dist.Normal(0.0, 1.0))
    with pytest.raises(TypeError, match=r"got a float as log_normalizer, expected a tensor.*torch\.tensor"):
        EnergyDistribution(DoubleWell(2), log_normalizer=0.0)
    with pytest.raises(EnergyShapeError, match=r"event shape \(\), expected the energy's \(3,\)\..*base\.to_event"):
        EnergyDistribution(DoubleWell(3), dist.Normal(torch.zeros(3), 1.0))
    with pytest.raises(EnergyShapeError, match="energy over 2 variables"):
        EnergyDistribution(energy(lambda x, y: x - y, [(), ()]))


def test_the_base_must_live_where_the_energy_is_defined() -> None:
    positive = energy(square, (), support=constraints.positive)
    with pytest.raises(EnergySupportError, match=r"got a base on .* and an energy on .*support=\.\.\."):
        EnergyDistribution(positive, dist.Normal(0.0, 1.0))
    assert EnergyDistribution(energy(square, ()), dist.Gamma(1.0, 1.0)).log_prob(torch.tensor(2.0)) == -6
    assert EnergyDistribution(positive, dist.LogNormal(0.0, 1.0)).batch_shape == ()


# States


def test_small_supports_enumerate_and_large_ones_say_that_they_do_not() -> None:
    small = EnergyDistribution(energy(first_three, (3,), support=constraints.boolean))
    small = small.expand((4,))
    assert small.has_enumerate_support
    assert small.enumerate_support().shape == (8, 4, 3)
    assert small.enumerate_support(expand=False).shape == (8, 1, 3)
    assert small.enumerate_support().unique(dim=0).shape[0] == 8
    threefold = EnergyDistribution(energy(square, (), support=constraints.integer_interval(-1, 1)))
    assert threefold.enumerate_support().tolist() == [-1, 0, 1]
    for e in (energy(first_three, (17,), support=constraints.boolean), DoubleWell(1)):
        d = EnergyDistribution(e)
        assert not d.has_enumerate_support
        with pytest.raises(NotImplementedError, match="at most 65536 joint states"):
            d.enumerate_support()
    assert EnergyDistribution(energy(first_three, (16,), support=constraints.boolean)).has_enumerate_support
