"""What a graph is joined to, multiplied by, conditioned on and completed with; precision; what is learned."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, constraints

from pyro_ebm import (
    ICAR,
    BilinearEnergy,
    DistributionEnergy,
    FactorGraph,
    GaussianMRF,
    GraphError,
    Ising,
    MixtureEnergy,
    NeuralEnergy,
    Potts,
    QuadraticEnergy,
    TableEnergy,
    energy,
    spin,
)


def log_z(g):
    """By enumeration of spins and booleans alone."""
    tables = [
        torch.tensor([-1.0, 1.0] if v.support.base_constraint is spin else [0.0, 1.0]) for v in g.variables.values()
    ]
    grids = torch.cartesian_prod(
        *[t for t, v in zip(tables, g.variables.values(), strict=True) for _ in range(v.numel)]
    )
    parts = grids.split([v.numel for v in g.variables.values()], -1)
    return torch.logsumexp(-g(*parts), 0)


# Precision


def test_gaussians_far_from_zero_in_single_precision():
    loc = torch.tensor([1234.567, -3210.123])
    g = FactorGraph()
    x = g.variable("x", support=constraints.real, shape=(2,))
    g.factor(DistributionEnergy(Normal(loc, 0.7)), x[:])
    torch.testing.assert_close(g.marginals().mean("x"), loc)
    torch.testing.assert_close(g.marginals().variance("x"), torch.full((2,), 0.49))
    assert abs(g.log_partition()) < 0.01
    assert g.log_partition().dtype == torch.float32
    mask = torch.tensor([True, False, False, True])
    single, double = (
        GaussianMRF((4,), torch.tensor(1.3, dtype=dtype), torch.tensor(0.013, dtype=dtype))
        .condition(x=(torch.tensor([1013.25, 0, 0, 1017.81], dtype=dtype), mask))
        .marginals()
        .mean("x")
        for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=0)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_icar_of_a_long_path(precision):
    factor = ICAR((300,)).to(precision).scaling_factor
    laplacian = torch.diag(torch.tensor([1.0] + [2.0] * 298 + [1.0], dtype=torch.float64))
    laplacian -= torch.diag(torch.ones(299), 1).double() + torch.diag(torch.ones(299), -1).double()
    expected = (torch.linalg.pinv(laplacian, hermitian=True).diagonal() + 1e-6).log().mean().exp()
    torch.testing.assert_close(factor.double(), expected, rtol=1e-5, atol=0)


def test_the_widest_dtype_wins():
    a, b = torch.tensor(0.1, dtype=torch.float64), torch.tensor(1 / 3, dtype=torch.float64)
    assert GaussianMRF((3,), 1.0, a, b).marginals().mean("x").dtype == torch.float64
    torch.testing.assert_close(
        GaussianMRF((2, 2), 1, 1, 0.5).marginals().mean("x"), torch.full((2, 2), 0.5), rtol=1e-6, atol=0
    )
    assert Ising((3, 3), 1).double().log_partition().dtype == torch.float64


def test_distributions_over_a_whole_variable():
    loc = torch.linspace(-1, 1, 400)
    g = FactorGraph()
    x = g.variable("x", support=constraints.real, shape=(400,))
    g.factor(DistributionEnergy(Independent(Normal(loc, 0.5), 1)), x)
    torch.testing.assert_close(g.marginals().mean("x"), loc)
    h = FactorGraph()
    y = h.variable("y", support=constraints.real, shape=(2,))
    covariance = torch.tensor([[1.0, 0.4], [0.4, 2.0]])
    h.factor(DistributionEnergy(MultivariateNormal(torch.tensor([3.0, -1.0]), covariance)), y)
    torch.testing.assert_close(h.marginals().mean("y"), torch.tensor([3.0, -1.0]))
    assert abs(h.log_partition()) < 1e-5


# Wiring


def test_a_vector_of_elements_of_different_variables():
    g = FactorGraph()
    a, b = g.variable("a", support=spin, shape=(3,)), g.variable("b", support=constraints.boolean, shape=(3,))
    g.factor(energy(lambda v: v[..., 0] * (1 + v[..., 1]), (2,)), a[:], b[:])
    torch.testing.assert_close(g.log_partition(), log_z(g))
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0))
    g.factor(NeuralEnergy(net, event_shape=(2,)), b[:], a[:])
    torch.testing.assert_close(g.log_partition(), log_z(g))


def test_a_variable_is_given_once():
    g = FactorGraph()
    x = g.variable("x", support=spin, shape=(3,))
    with pytest.raises(GraphError, match=r'"x" as a whole, and again.*QuadraticEnergy'):
        g.factor(BilinearEnergy(torch.randn(3, 3)), x, x)
    with pytest.raises(GraphError, match="and again"):
        g.factor(energy(lambda a, b: a * b.sum(-1), [(), (3,)]), x[:], x)


# Evidence


def test_evidence_in_a_factor_of_many_columns():
    g = ICAR((9, 8)).double()
    value = torch.randn(9, 8, dtype=torch.float64)
    free = torch.randn(64, dtype=torch.float64)
    for known in (slice(64, None), slice(0, 8)):
        mask = torch.zeros(72, dtype=torch.bool)
        mask[known] = True
        whole = value.flatten().masked_scatter(~mask, free).reshape(9, 8)
        torch.testing.assert_close(g.condition(x=(value, mask.reshape(9, 8)))(free), g(whole))


def test_completing_a_sum_of_conditioned_graphs():
    g = FactorGraph()
    g.variable("x", num_states=5, shape=(4,))
    left = g.condition(x=(torch.tensor([1, 2, 3, 4]), torch.tensor([True, True, False, False])))
    for graph in (left, left + left, 2 * left):
        assert graph.complete({"x": torch.tensor([0, 1])})["x"].tolist() == [1, 2, 0, 1]
    other = g.condition(x=(torch.tensor([0, 0, 0, 0]), torch.tensor([True, True, False, False])))
    with pytest.raises(GraphError, match='different things of "x"'):
        left + other
    with pytest.raises(GraphError, match='different things of "x"'):
        g.condition(x=torch.zeros(4, dtype=torch.long)) + g
    with pytest.raises(GraphError, match='expected some for "x" as well'):
        left.complete({})


def test_evidence_of_other_dtypes():
    g = FactorGraph()
    x = g.variable("x", support=constraints.real, shape=(2,))
    g.factor(DistributionEnergy(Normal(torch.tensor([0.5, 0.7]), 1.0)), x[:])
    left = g.condition(x=(torch.tensor([1, 0]), torch.tensor([True, False])))
    torch.testing.assert_close(left.complete(left.mode())["x"], torch.tensor([1.0, 0.7]))
    h = FactorGraph()
    y = h.variable("y", support=constraints.real, shape=(3,))
    h.factor(energy(lambda v: (v**2).sum(-1), (3,)), y)
    part = h.condition(y=(torch.tensor([1, 0, 0]), torch.tensor([True, False, False])))
    assert part(torch.tensor([0.5, 0.5])) == 1.5
    double = GaussianMRF((3,), 1.0, 0.5).double()
    mask = torch.tensor([True, False, False])
    assert double.condition(x=(torch.ones(3), mask)).log_partition().dtype == torch.float64
    scalar = FactorGraph()
    scalar.variable("z", num_states=2)
    free = scalar.condition(z=(torch.tensor(1), torch.tensor(False)))
    assert free.complete(free.mode())["z"].shape == ()


def test_parts_share_their_batch():
    g = FactorGraph()
    x = g.variable("x", support=constraints.real, shape=(2,))
    z = g.variable("z", num_states=3)
    g.factor(QuadraticEnergy(torch.eye(2)), x)
    g.factor(TableEnergy(torch.randn(4, 3), 1), z)
    draws = g.sample((5,))
    assert {name: tuple(value.shape) for name, value in draws.items()} == {"x": (5, 4, 2), "z": (5, 4)}
    assert g(draws).shape == (5, 4)
    assert (draws["x"][:, 0] != draws["x"][:, 1]).all()  # each has draws of its own
    assert g.marginals().mean("x").shape == (4, 2)
    lonely = FactorGraph()
    lonely.variable("a", num_states=2, shape=(3,))
    lonely.variable("b", num_states=2, shape=(2,))
    left = lonely.condition(a=torch.zeros(4, 3, dtype=torch.long))
    assert left.complete(left.sample((5,)))["a"].shape == (5, 4, 3)


# Multiples


def test_forbidden_states_stay_forbidden_at_any_temperature():
    table = torch.tensor([[0.0, torch.inf], [1.0, 0.5]])
    g = FactorGraph()
    x = g.variable("x", num_states=2, shape=(3,))
    g.factor(TableEnergy(table, 2), x[torch.tensor([[0, 1], [1, 2]])])
    weight = torch.tensor(0.7, requires_grad=True)
    (slope,) = torch.autograd.grad((weight * g).log_partition(), weight)
    step = 1e-2
    difference = ((0.7 + step) * g).log_partition() - ((0.7 - step) * g).log_partition()
    torch.testing.assert_close(slope, difference / (2 * step), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close((0.0 * g).log_partition(), torch.tensor(4.0).log())  # the states that are allowed
    both = MixtureEnergy([TableEnergy(table), TableEnergy(table)], nn.Parameter(torch.tensor([0.3, 0.7])))
    both(torch.tensor(0), torch.tensor(1)).backward()
    assert torch.equal(both.weights.grad, torch.zeros(2))


def test_multiples_of_a_conditioned_graph():
    g = Ising((4,), 0.4)
    left = g.condition(x=(torch.ones(4), torch.tensor([True, True, False, False])))
    torch.testing.assert_close((0.5 * left)(torch.ones(2)), 0.5 * left(torch.ones(2)))
    torch.testing.assert_close((-left)(torch.ones(2)), -left(torch.ones(2)))


def test_sums_and_differences_stay_graphs():
    g = Ising((2, 2), 0.4)
    pull = energy(lambda x: x.sum((-1, -2)), (2, 2))
    spins = torch.ones(2, 2)
    for each, expected in [(pull + g, 4 + g(spins)), (g - pull, g(spins) - 4), (g - 0.5 * g, 0.5 * g(spins))]:
        assert isinstance(each, FactorGraph)
        torch.testing.assert_close(each(spins), expected)
    torch.testing.assert_close(sum([g, g]).log_partition(), (2 * g).log_partition())


# What is learned


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda p: p * Ising((2, 2), 0.4), ()),
        (lambda p: p * Ising((2, 2), 0.4), (2,)),
        (lambda p: GaussianMRF((2, 3), p, 0.5), ()),
        (lambda p: Potts((2,), 2, 0.3, p), (2,)),
        (lambda p: Ising((2, 2), p), ()),
    ],
)
def test_parameters_are_those_of_the_graph(build, shape):
    parameter = nn.Parameter(torch.ones(shape))
    g = build(parameter)
    assert [each is parameter for each in g.parameters()] == [True]
    for _ in range(2):
        g.log_partition().sum().backward()
    assert parameter.grad.isfinite().all()
    twin = copy.deepcopy(g)
    assert math.isclose(twin.log_partition().sum().item(), g.log_partition().sum().item())
