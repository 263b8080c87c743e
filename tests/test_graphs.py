"""Factor graphs: exact answers against enumeration, evidence, joins, parts, errors."""

import copy
import math
import pickle

import networkx as nx
import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import constraints

from pyro_ebm import (
    BilinearEnergy,
    DistributionEnergy,
    EnergyShapeError,
    FactorGraph,
    FieldEnergy,
    GraphError,
    IsingEnergy,
    PottsEnergy,
    QuadraticEnergy,
    TableEnergy,
    TreewidthError,
    energy,
    spin,
)
from tests.graph_cases import graphs, log_joint

EXACT = settings(max_examples=60, deadline=None, derandomize=True)


def close(got, expected):
    torch.testing.assert_close(got, expected.expand(got.shape).to(got), rtol=1e-9, atol=1e-9)


@EXACT
@given(graphs())
def test_log_partition(g):
    _, log_density = log_joint(g)
    close(g.log_partition(), log_density.logsumexp(0))


@EXACT
@given(graphs())
def test_marginals_of_elements(g):
    states, log_density = log_joint(g)
    probability = log_density.softmax(0)
    marginals = g.marginals()
    assert set(marginals) == set(g.variables)
    for name, variable in g.variables.items():
        index = variable.states(states[name]).reshape(len(log_density), -1)
        one_hot = torch.nn.functional.one_hot(index, variable.num_states).double()
        expected = torch.einsum("s...,snk->...nk", probability, one_hot)
        close(marginals[name].reshape(expected.shape), expected)
        close(
            marginals.mean(name).reshape(*g.batch_shape, -1),
            torch.einsum("s...,sn->...n", probability, states[name].double().reshape(len(log_density), -1)),
        )


@EXACT
@given(graphs())
def test_marginals_of_factors_and_entropy(g):
    states, log_density = log_joint(g)
    probability = log_density.softmax(0)
    tables = g.log_tables()
    flat = torch.cat([g[name].states(value).reshape(len(value), -1) for name, value in states.items()], -1)
    for group, marginal in zip(tables.groups, g.marginals().factors, strict=True):
        for row, scope in enumerate(group.scopes.tolist()):
            for cell in torch.cartesian_prod(*[torch.arange(k) for k in group.sizes]).reshape(-1, len(scope)).tolist():
                chosen = (flat[:, scope] == torch.tensor(cell)).all(-1)
                close(marginal[(..., row, *cell)], probability[chosen].sum(0))
    entropy = -(probability * log_density.log_softmax(0).masked_fill(probability == 0, 0)).sum(0)
    close(g.entropy(), entropy)


@EXACT
@given(graphs())
def test_mode(g):
    _, log_density = log_joint(g)
    close(-g(g.mode()), log_density.amax(0))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(graphs(batch_shape=()))
def test_samples_by_chi_squared(g):
    states, log_density = log_joint(g)
    draws = g.sample((4000,), generator=torch.Generator().manual_seed(1))
    codes = []
    for source in (states, draws):
        digits = torch.cat([g[name].states(source[name]).reshape(len(source[name]), -1) for name in g.variables], -1)
        bases = torch.tensor(g.log_tables().num_states)
        weights = torch.cat([bases[1:].flip(0).cumprod(0).flip(0), torch.ones(1, dtype=torch.long)])
        codes.append((digits * weights).sum(-1))
    expected = torch.zeros(int(codes[0].max()) + 1, dtype=torch.float64).index_add(0, codes[0], log_density.softmax(0))
    counts = torch.bincount(codes[1], minlength=len(expected)).double()
    assert counts[expected < 1e-300].sum() == 0
    common = expected * 4000 >= 5
    observed = torch.cat([counts[common], counts[~common].sum().reshape(1)])
    predicted = torch.cat([4000 * expected[common], 4000 * expected[~common].sum().reshape(1)])
    observed, predicted = observed[predicted > 1], predicted[predicted > 1]
    degrees = max(len(observed) - 1, 1)
    statistic = ((observed - predicted) ** 2 / predicted).sum()
    assert torch.special.gammaincc(torch.tensor(degrees / 2), statistic.float() / 2) > 1e-6


@EXACT
@given(graphs(), st.data())
def test_evidence_slices_the_joint(g, data):
    states, log_density = log_joint(g)
    at = data.draw(st.integers(0, len(log_density) - 1))
    masks, evidence = {}, {}
    for name, variable in g.variables.items():
        kind = data.draw(st.sampled_from(["free", "known", "masked"]))
        mask = torch.zeros(variable.shape, dtype=torch.bool)
        if kind == "known":
            mask = ~mask
            evidence[name] = states[name][at]
        elif kind == "masked" and variable.shape:
            bits = data.draw(st.lists(st.booleans(), min_size=variable.numel, max_size=variable.numel))
            mask = torch.tensor(bits).reshape(variable.shape)
            evidence[name] = (states[name][at], mask)
        masks[name] = mask
    left = g.condition(evidence)
    chosen = torch.ones(len(log_density), dtype=torch.bool)
    for name, mask in masks.items():
        agrees = (states[name] == states[name][at]) | ~mask
        chosen &= agrees.reshape(len(agrees), -1).all(-1)
    close(left.log_partition(), log_density[chosen].logsumexp(0))
    if not torch.isinf(log_density[chosen].logsumexp(0)).any():
        whole = left.complete(left.mode())
        assert {name: value.shape[value.dim() - len(g[name].shape) :] for name, value in whole.items()} == {
            name: variable.shape for name, variable in g.variables.items()
        }
        close(-g(whole), log_density[chosen].amax(0))


@EXACT
@given(graphs(hard_zeros=False))
def test_join_and_multiples(g):
    states, log_density = log_joint(g)
    close(
        -(g + g)({n: v.reshape(len(v), *[1] * len(g.batch_shape), *g[n].shape) for n, v in states.items()}),
        2 * log_density,
    )
    close((0.5 * g + 0.5 * g).log_partition(), log_density.logsumexp(0))
    close((g * torch.tensor(0.3, dtype=torch.float64)).log_partition(), (0.3 * log_density).logsumexp(0))


def test_gradients_once_and_twice():
    def log_partition(coupling, field, table):
        g = FactorGraph()
        s = g.variable("s", support=spin, shape=(3,))
        x = g.variable("x", num_states=3)
        g.factor(IsingEnergy(coupling), s[torch.tensor([[0, 1], [1, 2], [2, 0]])])
        g.factor(FieldEnergy(field), s[:])
        g.factor(TableEnergy(table, support=[spin, x.support]), s[torch.tensor([0])], x)
        return g.log_partition()

    parameters = [torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (3, 3)]
    parameters.append(torch.randn(2, 3, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(log_partition, parameters)
    assert torch.autograd.gradgradcheck(log_partition, parameters)
    batch = [torch.randn(5, *p.shape, dtype=torch.float64) for p in parameters]
    with pyro.validation_enabled(False):
        together = torch.func.vmap(torch.func.grad(log_partition))(*batch)
    alone = torch.stack([torch.func.grad(log_partition)(*(b[i] for b in batch)) for i in range(5)])
    torch.testing.assert_close(together, alone)


def test_marginals_are_differentiable():
    coupling = torch.tensor([0.3, -0.8], dtype=torch.float64, requires_grad=True)

    def correlation(j):
        g = FactorGraph()
        s = g.variable("s", support=spin, shape=(3,))
        g.factor(IsingEnergy(j), s[torch.tensor([[0, 1], [1, 2]])])
        g.factor(FieldEnergy(torch.tensor(0.4, dtype=torch.float64)), s[:])
        return g.marginals().mean("s")

    assert torch.autograd.gradcheck(correlation, [coupling])


def test_hard_zeros_have_no_gradient_and_no_nan():
    table = torch.tensor([[0.0, torch.inf], [torch.inf, torch.inf]], dtype=torch.float64, requires_grad=True)
    g = FactorGraph()
    x = g.variable("x", num_states=2, shape=(4,))
    g.factor(TableEnergy(torch.nn.Parameter(table), 2), x[torch.tensor([[0, 1], [1, 2], [2, 3]])])
    value = g.log_partition()
    (gradient,) = torch.autograd.grad(value, list(g.parameters()))
    assert value == 0.0
    torch.testing.assert_close(gradient, torch.tensor([[-3.0, 0.0], [0.0, 0.0]], dtype=torch.float64))
    assert torch.equal(g.marginals()["x"], torch.tensor([[1.0, 0.0]] * 4, dtype=torch.float64))


def test_a_function_of_elements_and_a_whole_continuous_variable():
    g = FactorGraph()
    z = g.variable("z", num_states=2, shape=(4,))
    mu = g.variable("mu", support=constraints.real, shape=(2,))
    data = torch.tensor([0.1, 2.0, -1.0, 0.5])
    near = energy(
        lambda k, m: (data - torch.where(k == 0, m[..., 0], m[..., 1])) ** 2 / 2,
        [(), (2,)],
        batch_shape=(4,),
        support=[z.support.base_constraint, constraints.real],
    )
    g.factor(near, z[:], mu)
    g.factor(QuadraticEnergy(torch.eye(2)), mu)
    labels, means = torch.randint(0, 2, (7, 4)), torch.randn(7, 2)
    expected = ((data - means.gather(1, labels)) ** 2 / 2).sum(-1) + (means**2).sum(-1) / 2
    torch.testing.assert_close(g(labels, means), expected)
    given_mu = g.condition(mu=means)  # evidence with a batch of its own
    odds = torch.stack([(data - means[:, k : k + 1]) ** 2 / -2 for k in (0, 1)], -1)
    torch.testing.assert_close(given_mu.marginals()["z"], odds.softmax(-1))
    torch.testing.assert_close(given_mu.log_partition(), odds.logsumexp(-1).sum(-1) - (means**2).sum(-1) / 2)
    given_z = g.condition(z=labels)
    torch.testing.assert_close(given_z(means), expected)
    with pytest.raises(GraphError, match=r"joins discrete and continuous.*Condition"):
        g.log_partition()


def test_bilinear_given_one_side_is_a_field():
    weight = torch.randn(3, 5, dtype=torch.float64)
    g = FactorGraph()
    v = g.variable("v", support=constraints.boolean, shape=(3,))
    h = g.variable("h", support=constraints.boolean, shape=(5,))
    g.factor(BilinearEnergy(weight), v, h)
    hidden = torch.randint(0, 2, (7, 5)).double()
    left = g.condition(h=hidden)
    assert [factor.num_factors for factor in left.factors] == [3]
    torch.testing.assert_close(left.marginals()["v"][..., 1], torch.sigmoid(hidden @ weight.T))
    visible = torch.randint(0, 2, (3,)).double()
    torch.testing.assert_close(g.condition(v=visible).marginals().mean("h"), torch.sigmoid(visible @ weight))


def test_subgraph_and_markov_blanket():
    g = grid(4, 4)
    x = g["x"]
    blanket = g.markov_blanket(x[1, 1])["x"]
    assert sorted(torch.nonzero(blanket).tolist()) == [[0, 1], [1, 0], [1, 2], [2, 1]]
    corner = torch.zeros(4, 4, dtype=torch.bool)
    corner[:2, :2] = True
    part = g.subgraph(x=corner)
    torch.testing.assert_close(part.log_partition(), grid(2, 2).log_partition())
    assert g.subgraph("x").log_partition() == g.log_partition()
    with pytest.raises(GraphError, match='"y"'):
        g.subgraph("y")


def test_networkx_there_and_back():
    ring = nx.cycle_graph(5)
    g = FactorGraph.from_networkx(ring, IsingEnergy(torch.tensor(0.7)), FieldEnergy(torch.arange(5.0)), support=spin)
    made = g.to_networkx()
    assert nx.is_bipartite(made)
    assert len(made) == 5 + 5 + 5
    assert sorted(d for n, d in made.degree if n[0] == "x") == [3] * 5
    states = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 5)
    torch.testing.assert_close(
        g(states), -0.7 * (states * states.roll(1, -1)).sum(-1) - (states * torch.arange(5.0)).sum(-1)
    )


def test_modules_copy_save_and_pickle():
    g = grid(3, 3)
    assert pickle.loads(pickle.dumps(g)).log_partition() == g.log_partition()
    other = copy.deepcopy(g)
    other.load_state_dict({name: 2 * value for name, value in g.state_dict().items()})
    torch.testing.assert_close(other.log_partition(), (2.0 * g).log_partition())
    assert g.double().log_partition().dtype == torch.float64


def test_a_graph_over_one_variable_is_an_energy():
    g = grid(2, 2)
    assert g.event_shape == (2, 2)
    labels = torch.randint(0, 3, (6, 2, 2))
    assert torch.equal(g(labels), g({"x": labels}))
    both = g + energy(lambda x: x.sum((-1, -2)).float(), (2, 2), support=g.support)
    torch.testing.assert_close(both(labels), g(labels) + labels.sum((-1, -2)))


def test_too_wide_says_so_before_it_allocates():
    with pytest.raises(TreewidthError, match=r"width \d+.*condition.*belief_propagation.*Gibbs"):
        grid(40, 40).log_partition()
    g = FactorGraph()
    x = g.variable("x", num_states=2, shape=(64,))
    g.factor(energy(lambda v: v.sum(-1).float(), (64,), support=x.support), x)
    with pytest.raises(TreewidthError, match=r"2 \*\* 64 states.*Wire it to elements"):
        g.log_partition()


def grid(rows, columns, num_states=3):
    g = FactorGraph()
    x = g.variable("x", num_states=num_states, shape=(rows, columns))
    if columns > 1:
        g.factor(PottsEnergy(torch.tensor(0.5)), x[:, :-1], x[:, 1:])
    if rows > 1:
        g.factor(PottsEnergy(torch.tensor(0.5)), x[:-1], x[1:])
    return g


def bad_graph():
    g = FactorGraph()
    g.variable("x", num_states=3, shape=(4,))
    g.variable("s", support=spin, shape=(2,))
    g.variable("w", support=constraints.simplex, shape=(3,))
    return g


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda g: g["y"], GraphError, r'variable "y", expected one of'),
        (lambda g: g.variable("x", num_states=2), GraphError, "empty or taken"),
        (lambda g: g.variable("y"), GraphError, "expected one of them"),
        (lambda g: g.variable("y", num_states=0), GraphError, "at least 1"),
        (lambda g: g.variable("y", num_states=2, shape=(0,)), GraphError, "positive sizes"),
        (lambda g: g.factor(PottsEnergy(torch.tensor(1.0))), GraphError, "empty scope"),
        (lambda g: g.factor(PottsEnergy(torch.tensor(1.0)), bad_graph()["x"][:]), GraphError, "variable of this graph"),
        (lambda g: g.factor(PottsEnergy(torch.tensor(1.0)), g["x"][:]), GraphError, "0 elements.*variable 1"),
        (lambda g: g.factor(FieldEnergy(torch.tensor(1.0)), g["x"][torch.tensor([[0, 1]])]), GraphError, "1 more than"),
        (lambda g: g.factor(FieldEnergy(torch.ones(3)), g["x"][:]), GraphError, r"batch shape \(3,\) for 4 scopes"),
        (lambda g: g.factor(TableEnergy(torch.ones(2)), g["x"][:]), GraphError, "expected the same"),
        (lambda g: g.factor(TableEnergy(torch.ones(2)), g["s"][:]), GraphError, "expected the same"),
        (lambda g: g.factor(QuadraticEnergy(torch.eye(3)), g["x"]), GraphError, r"shape \(4,\), expected.*\(3,\)"),
        (lambda g: g.factor("energy", g["x"]), TypeError, "expected an Energy"),
        (lambda g: g["x"][torch.tensor([0, 4])], GraphError, "element 4.*from 0 to 3"),
        (lambda g: g["x"][torch.tensor([0.0])], GraphError, "expected integers"),
        (lambda g: g["x"][7], GraphError, "index 7"),
        (lambda g: g["w"][0], GraphError, "as a whole"),
        (lambda g: g.condition(x=torch.tensor([0, 1, 2, 3])), GraphError, "value 3, expected one of its 3"),
        (lambda g: g.condition(x=torch.tensor([0.0, 1, 2, 1])), GraphError, "dtype torch.float32, expected integers"),
        (lambda g: g.condition(s=torch.tensor([0.0, 1.0])), GraphError, "value 0.0"),
        (lambda g: g.condition(x=torch.tensor([0])), GraphError, r"\(\*batch, \*\(4,\)\)"),
        (lambda g: g.condition(x=(torch.zeros(4).long(), torch.ones(3).bool())), GraphError, "mask"),
        (lambda g: g.condition(w=torch.ones(3)), GraphError, "outside of its support"),
        (lambda g: g(torch.zeros(4).long()), GraphError, "one for each"),
        (lambda g: g({"x": 1, "y": 2}), GraphError, "expected them for"),
        (lambda g: TableEnergy(torch.tensor([0.0, torch.nan])), ValueError, "NaN"),
        (lambda g: TableEnergy(torch.tensor([0, 1])), TypeError, "expected floats"),
        (lambda g: TableEnergy(torch.ones(2), 2), EnergyShapeError, "at least one variable and a dim for each"),
    ],
)
def test_bad_input(build, error, message):
    with pytest.raises(error, match=message):
        build(bad_graph())


def gaussian_graph(batch=()):
    """A lattice of real variables with an anchor on each, one of them tied to another variable; float64."""
    generator = torch.Generator().manual_seed(2)
    g = FactorGraph()
    x = g.variable("x", support=constraints.real, shape=(6, 7))
    y = g.variable("y", support=constraints.real, shape=(3,))
    numbers = torch.arange(42).reshape(6, 7)
    spring = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    weights = torch.rand(36, generator=generator, dtype=torch.float64) + 0.5
    g.factor(
        QuadraticEnergy(weights[:, None, None] * spring),
        x[torch.stack([numbers[:, :-1].flatten(), numbers[:, 1:].flatten()], -1)],
    )
    g.factor(QuadraticEnergy(spring), x[torch.stack([numbers[:-1].flatten(), numbers[1:].flatten()], -1)])
    g.factor(
        DistributionEnergy(
            torch.distributions.Normal(torch.randn(*batch, 42, generator=generator, dtype=torch.float64), 2.0)
        ),
        x[:],
    )
    linear = torch.randn(3, generator=generator, dtype=torch.float64)
    g.factor(QuadraticEnergy(2 * torch.eye(3, dtype=torch.float64), linear), y)
    g.factor(IsingEnergy(torch.tensor(0.3, dtype=torch.float64)), x[0, 0], y[1])
    return g


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_gaussian_against_dense_algebra(batch):
    g = gaussian_graph(batch)
    zero = torch.zeros(45, dtype=torch.float64)

    def flat_energy(v):
        return g(v[..., :42].unflatten(-1, (6, 7)), v[..., 42:])

    precision = torch.func.hessian(lambda v: flat_energy(v).reshape(-1)[0])(zero)
    linear = -torch.func.jacrev(flat_energy)(zero)
    covariance = torch.linalg.inv(precision)
    mean = linear @ covariance
    log_z = 0.5 * (linear * mean).sum(-1) - 0.5 * torch.logdet(precision / (2 * math.pi)) - flat_energy(zero)
    close(g.log_partition(), log_z)
    found = g.marginals()
    close(found.mean("x").flatten(-2), mean[..., :42])
    close(found.mean("y"), mean[..., 42:])
    close(found.variance("x").flatten(-2), covariance.diagonal()[:42])
    close(g.mode()["y"], mean[..., 42:])
    expected = torch.distributions.MultivariateNormal(mean, precision_matrix=precision).entropy()
    close(g.entropy(), expected)
    draws = g.sample((4000,), generator=torch.Generator().manual_seed(3))
    flat = torch.cat([draws["x"].flatten(-2), draws["y"]], -1).reshape(4000, -1, 45)
    errors = (flat.mean(0) - mean.reshape(-1, 45)) / (covariance.diagonal() / 4000).sqrt()
    assert errors.abs().max() < 5.2
    whitened = (flat - mean.reshape(-1, 45)) @ torch.linalg.cholesky(precision)
    assert (whitened.square().sum(-1).mean(0) / 45 - 1).abs().max() < 5 * (2 / (45 * 4000)) ** 0.5


def test_gaussian_evidence_and_gradient():
    g = gaussian_graph()
    at = torch.randn(6, 7, dtype=torch.float64)
    mask = torch.rand(6, 7) < 0.5
    left = g.condition(x=(at, mask))
    whole = left.complete(left.mode())
    assert torch.equal(whole["x"][mask], at[mask])
    moved = {name: value.requires_grad_() for name, value in whole.items()}
    gradient = torch.autograd.grad(g(moved), list(moved.values()))
    assert gradient[0][~mask].abs().max() < 1e-10
    assert gradient[1].abs().max() < 1e-10

    def log_partition(weight):
        h = FactorGraph()
        x = h.variable("x", support=constraints.real, shape=(4,))
        h.factor(QuadraticEnergy(weight), x[torch.tensor([[0, 1], [1, 2], [2, 3]])])
        return h.log_partition()

    weight = torch.tensor([[2.0, 0.3], [0.3, 1.5]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_partition, [weight])
    assert torch.autograd.gradgradcheck(log_partition, [weight])


def test_discrete_and_gaussian_parts_add():
    g = gaussian_graph()
    alone = g.log_partition()
    z = g.variable("z", num_states=3, shape=(2,))
    g.factor(PottsEnergy(torch.tensor(0.5, dtype=torch.float64)), z[torch.tensor([[0, 1]])])
    close(g.log_partition(), alone + math.log(3 * math.exp(0.5) + 6))
    assert set(g.sample()) == set(g.mode()) == {"x", "y", "z"}


def test_gaussian_errors():
    g = FactorGraph()
    x = g.variable("x", support=constraints.real, shape=(3,))
    g.factor(QuadraticEnergy(torch.tensor([[1.0, -1.0], [-1.0, 1.0]])), x[torch.tensor([[0, 1], [1, 2]])])
    with pytest.raises(ValueError, match="not positive definite"):
        g.log_partition()
    g.factor(energy(lambda v: v**4, ()), x[:])
    with pytest.raises(GraphError, match="expected quadratic ones"):
        g.log_partition()
    h = FactorGraph()
    h.variable("t", support=constraints.positive)
    with pytest.raises(GraphError, match='"t" is continuous'):
        h.log_partition()
