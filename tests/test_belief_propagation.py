"""Belief propagation: exact on trees, libDAI's fixed points, hard zeros, batches, gradients, convergence."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings

from pyro_ebm import (
    ConvergenceWarning,
    FactorGraph,
    FieldEnergy,
    IsingEnergy,
    PottsEnergy,
    TableEnergy,
    belief_propagation,
    read_network,
    spin,
)
from pyro_ebm.graphs.approximate import message_passing
from tests.graph_cases import graphs
from tests.tree_cases import trees

DATA = Path(__file__).parents[2] / "shared" / "data" / "libdai"
MANY = settings(max_examples=40, deadline=None, derandomize=True)


def close(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def frustrated(coupling, size=4, seed=0):
    """A torus of spins with couplings of random signs, and weak fields."""
    generator = torch.Generator().manual_seed(seed)
    g = FactorGraph()
    x = g.variable("x", support=spin, shape=(size, size))
    number = torch.arange(size * size).reshape(size, size)
    edges = torch.cat(
        [torch.stack([number, number.roll(1, k)], -1).reshape(-1, 2) for k in (0, 1)],
    )
    signs = torch.randint(0, 2, (len(edges),), generator=generator, dtype=torch.float64) * 2 - 1
    g.factor(IsingEnergy(coupling * signs), x[edges])
    g.factor(FieldEnergy(0.1 * torch.randn(size * size, generator=generator, dtype=torch.float64)), x[:])
    return g


@MANY
@given(trees())
def test_exact_on_trees(g):
    answer = belief_propagation(g, damping=0.0, tolerance=1e-14)
    assert answer.converged.all()
    assert answer.converged.shape == g.batch_shape
    assert len(answer.residuals) <= 20
    close(answer.log_partition, g.log_partition())
    exact = g.marginals()
    for got, expected in zip(
        [*answer.marginals.singles, *answer.marginals.factors], [*exact.singles, *exact.factors], strict=True
    ):
        close(got, expected)


@MANY
@given(trees())
def test_max_product_is_exact_on_trees(g):
    answer = belief_propagation(g, max_product=True, damping=0.0, tolerance=1e-14)
    best = -g(g.mode())
    close(answer.log_partition, best)
    close(-g(answer.mode), best)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the networks in ../shared/data")
def test_libdai_fixed_point():
    network = read_network(DATA / "testfast.fg")
    reference = json.loads((DATA / "testfast_reference.json").read_text())
    answer = belief_propagation(network.graph, tolerance=1e-9)
    assert float(answer.log_partition) == pytest.approx(reference["bethe_logZ"], abs=1e-6)
    for number, row in enumerate(network.probabilities(answer.marginals)):
        assert row.tolist() == pytest.approx(reference["libdai"]["BP"]["beliefs"][str(number)], abs=1e-4)
    most = belief_propagation(network.graph, max_product=True)
    assert network.assignment(most.mode).tolist() == reference["argmax"]


@MANY
@given(graphs())
def test_any_graph_gives_beliefs(g):
    for maximize in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            answer = belief_propagation(g, max_product=maximize, max_iterations=50)
        assert answer.log_partition.isfinite().all()
        assert answer.log_partition.shape == g.batch_shape
        for rows in answer.marginals.singles:
            close(rows.sum(-1), torch.ones(g.batch_shape, dtype=rows.dtype))
        assert {name: value.shape for name, value in answer.mode.items()} == {
            name: (*g.batch_shape, *variable.shape) for name, variable in g.variables.items()
        }
        assert g(answer.mode).shape == g.batch_shape
        exact = g.marginals()
        assert [each.shape for each in answer.marginals.factors] == [each.shape for each in exact.factors]


@MANY
@given(graphs(batch_shape=(2,), hard_zeros=False))
def test_a_batch_is_a_stack(g):
    """One iteration after another: what a graph of the batch says does not depend on the others."""
    assume(g.batch_shape)
    options = {"max_iterations": 7, "tolerance": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        together = belief_propagation(g, **options)
        tables = g.log_tables()
        for row in range(2):
            alone = FactorGraph()
            elements = [alone.variable(f"x{k}", num_states=count) for k, count in enumerate(tables.num_states)]
            for group in tables.groups:
                log_potentials = group.log_potentials.expand(2, len(group.scopes), *group.sizes)
                for scope, table in zip(group.scopes.tolist(), log_potentials[row], strict=True):
                    alone.factor(TableEnergy(-table), *(elements[element] for element in scope))
            single = belief_propagation(alone, **options)
            close(together.log_partition[row], single.log_partition)
            close(together.residuals[: len(single.residuals), row], single.residuals)
            for got, expected in zip(together.marginals.singles, single.marginals.singles, strict=True):
                close(got[row], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_products_and_logarithms_of_sums_agree(monkeypatch, dtype):
    g = FactorGraph()
    x = g.variable("x", num_states=4, shape=(6,))
    pairs = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0], [4, 5], [5, 0]])
    g.factor(TableEnergy(torch.randn(6, 4, 4, dtype=dtype), 2), x[pairs])
    g.factor(TableEnergy(torch.randn(4, 4, 4, dtype=dtype), 3), x[torch.tensor([[0, 2, 4], [1, 3, 5]])])
    g.factor(TableEnergy(torch.randn(3, 1, 4, dtype=dtype), 1), x[:])  # a batch of three
    products = belief_propagation(g, tolerance=1e-6)
    monkeypatch.setattr(message_passing, "_SAFE_RANGE", {})
    logarithms = belief_propagation(g, tolerance=1e-6)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    assert products.log_partition.dtype == dtype
    close(products.log_partition, logarithms.log_partition, tolerance)
    close(products.marginals["x"], logarithms.marginals["x"], tolerance)


def test_gradients_are_beliefs():
    pairs = torch.tensor([[0, 1], [1, 2], [2, 0], [2, 3]])
    edges = torch.nn.Parameter(torch.randn(4, 3, 3, dtype=torch.float64))
    fields = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    g = FactorGraph()
    x = g.variable("x", num_states=3, shape=(4,))
    g.factor(TableEnergy(edges, 2), x[pairs])
    g.factor(TableEnergy(fields, 1), x[:])
    answer = belief_propagation(g, tolerance=1e-13)
    by_edges, by_fields = torch.autograd.grad(answer.log_partition, [edges, fields])
    close(-by_edges, answer.marginals.factors[0])
    close(-by_fields, answer.marginals["x"])
    assert not answer.marginals["x"].requires_grad


def test_what_is_impossible():
    g = FactorGraph()
    x = g.variable("x", num_states=2, shape=(3,))
    differ = torch.tensor([[torch.inf, 0.0], [0.0, torch.inf]], requires_grad=True)
    g.factor(TableEnergy(differ), x[torch.tensor([[0, 1], [1, 2]])])
    g.factor(TableEnergy(torch.tensor([0.0, torch.inf])), x[torch.tensor([0])])
    answer = belief_propagation(g)
    assert answer.mode["x"].tolist() == [0, 1, 0]
    close(answer.marginals["x"], torch.eye(2)[[0, 1, 0]])
    close(answer.log_partition, torch.tensor(0.0))
    g.factor(TableEnergy(torch.tensor([torch.inf, 0.0])), x[torch.tensor([2])])  # now nothing is possible
    answer = belief_propagation(g)
    assert float(answer.log_partition.detach()) == -torch.inf
    assert (answer.marginals["x"] == 0).all()
    (gradient,) = torch.autograd.grad(answer.log_partition, differ)
    assert not gradient.isnan().any()


def test_messages_that_grow_for_ever_stay_numbers():
    g = FactorGraph()
    x = g.variable("x", num_states=3, shape=(12,))
    pairs = torch.combinations(torch.arange(12))
    table = torch.randn(len(pairs), 3, 3, dtype=torch.float64) * 30
    table[:, 0, 2] = torch.inf
    g.factor(TableEnergy(table, 2), x[pairs])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        answer = belief_propagation(g, max_iterations=2000, tolerance=0.0)
    assert answer.log_partition.isfinite()
    close(answer.marginals["x"].sum(-1), torch.ones(12, dtype=torch.float64))


def test_it_says_that_it_does_not_converge():
    g = frustrated(3.0)
    with pytest.warns(ConvergenceWarning, match=r"belief_propagation: the graph did not converge in 20 iterations"):
        answer = belief_propagation(g, damping=0.0, max_iterations=20)
    assert not answer.converged
    assert answer.residuals.shape == (20,)
    assert answer.residuals[-1] > 1e-5
    with pytest.warns(ConvergenceWarning, match="2 of 2 graphs of the batch"):
        belief_propagation(g * torch.tensor([1.0, 2.0]), damping=0.0, max_iterations=20)


def test_graphs_without_edges():
    g = FactorGraph()
    x = g.variable("x", num_states=3, shape=(2,))
    close(belief_propagation(g).log_partition, 2 * torch.tensor(3.0).log())
    g.factor(TableEnergy(torch.tensor([0.0, 1.0, torch.inf])), x[:])
    close(belief_propagation(g).log_partition, g.log_partition(), 1e-6)
    close(belief_propagation(g.condition(x=torch.tensor([0, 1]))).log_partition, torch.tensor(-1.0))


def test_progress_is_shown(capsys):
    belief_propagation(frustrated(0.1), progress=True)
    assert "belief_propagation" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [{"damping": 1.0}, {"damping": -0.1}, {"max_iterations": 0}, {"tolerance": -1.0}]
)  # fmt: skip
def test_numbers_that_do_not_fit(options):
    g = FactorGraph()
    x = g.variable("x", num_states=2, shape=(2,))
    g.factor(PottsEnergy(torch.tensor(1.0)), x[:1], x[1:])
    with pytest.raises(ValueError, match="belief_propagation: got"):
        belief_propagation(g, **options)
