"""Tree-reweighted messages: an upper bound, exact on trees; the weights are in the forests' polytope."""

import warnings

import pytest
import torch
from hypothesis import given, settings

from pyro_ebm import ConvergenceWarning, FactorGraph, PottsEnergy, TableEnergy, tree_reweighted
from pyro_ebm.graphs.approximate.spanning_forests import appearance, maximal_forest
from tests.graph_cases import graphs
from tests.test_belief_propagation import close, frustrated
from tests.tree_cases import trees

MANY = settings(max_examples=30, deadline=None, derandomize=True)


@MANY
@given(trees())
def test_exact_on_trees(g):
    answer = tree_reweighted(g, damping=0.0, tolerance=1e-14)
    close(answer.log_partition, g.log_partition())
    for got, expected in zip(answer.marginals.singles, g.marginals().singles, strict=True):
        close(got, expected)


@MANY
@given(graphs())
def test_it_is_an_upper_bound(g):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        answer = tree_reweighted(g, num_forests=5, max_iterations=300, generator=torch.Generator())
    assert not answer.log_partition.isnan().any()
    assert (answer.log_partition >= g.log_partition() - 1e-4)[answer.residuals[-1] < 1e-3].all()


def test_optimized_weights_tighten_the_bound():
    g = frustrated(0.7)
    exact = g.log_partition()
    gaps = [float(tree_reweighted(g, optimize=number, num_forests=2).log_partition - exact) for number in (0, 3, 10)]
    assert gaps[0] > gaps[1] > gaps[2] > 0


def test_gradients_are_beliefs():
    table = torch.nn.Parameter(torch.randn(3, 3, 3, dtype=torch.float64))
    g = FactorGraph()
    x = g.variable("x", num_states=3, shape=(3,))
    g.factor(TableEnergy(table, 2), x[torch.tensor([[0, 1], [1, 2], [2, 0]])])
    answer = tree_reweighted(g, tolerance=1e-13)
    (gradient,) = torch.autograd.grad(answer.log_partition, table)
    close(-gradient, answer.marginals.factors[0])


def test_a_cycle_by_hand():
    """Three spins in a ring: each edge is in two of three trees, and all beliefs are uniform over elements."""
    g = FactorGraph()
    x = g.variable("x", num_states=2, shape=(3,))
    coupling = torch.tensor(1.2, dtype=torch.float64)
    g.factor(PottsEnergy(coupling), x[torch.tensor([[0, 1], [1, 2], [2, 0]])])
    weight = 2 / 3
    expected = 3 * (1 - 2 * weight) * torch.tensor(2.0).log() + 3 * weight * (2 * (coupling / weight).exp() + 2).log()
    close(tree_reweighted(g, num_forests=3, tolerance=1e-12).log_partition, expected.double(), 1e-6)


def test_forests():
    square = [(0, 1), (1, 2), (2, 3), (3, 0)]
    assert maximal_forest(square, 4, range(4)) == [0, 1, 2]
    assert maximal_forest([(0, 1), (1, 0)], 2, range(2)) == [0]
    assert maximal_forest([(0, 1, 2), (1, 3), (2, 3), (3, 4, 5)], 6, range(4)) == [0, 1, 3]
    weights = appearance(square, 4, 40)
    assert float(weights.sum()) == pytest.approx(3)  # a spanning tree has three edges
    assert weights.tolist() == pytest.approx([0.75] * 4)
    complete = torch.combinations(torch.arange(8)).tolist()
    weights = appearance(complete, 8, 1)
    assert (weights > 0).all()
    assert float(weights.sum()) == pytest.approx(7)
    assert len(appearance([], 3, 5)) == 0


def test_numbers_that_do_not_fit():
    g = frustrated(0.1)
    for options in ({"num_forests": 0}, {"optimize": -1}, {"damping": 1.0}):
        with pytest.raises(ValueError, match="tree_reweighted: got"):
            tree_reweighted(g, **options)
    with pytest.warns(ConvergenceWarning, match=r"tree_reweighted: .* need not be a bound"):
        tree_reweighted(g, max_iterations=1)
