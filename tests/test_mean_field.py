"""Mean field: a lower bound that never falls, libDAI's, hard zeros, starts."""

import json
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings

from pyro_ebm import ConvergenceWarning, FactorGraph, FieldEnergy, PottsEnergy, TableEnergy, mean_field, read_graph
from tests.graph_cases import graphs, log_joint
from tests.test_belief_propagation import close, frustrated

DATA = Path(__file__).parents[2] / "shared" / "data" / "libdai"
MANY = settings(max_examples=40, deadline=None, derandomize=True)


@MANY
@given(graphs())
def test_it_is_a_lower_bound(g):
    answer = mean_field(g)
    assert not answer.log_partition.isnan().any()
    assert answer.log_partition.shape == g.batch_shape
    assert (answer.log_partition <= g.log_partition() + 1e-9).all()
    for rows in answer.marginals.singles:
        close(rows.sum(-1), torch.ones(g.batch_shape, dtype=rows.dtype))
    assert [each.shape for each in answer.marginals.factors] == [each.shape for each in g.marginals().factors]


@MANY
@given(graphs(hard_zeros=False))
def test_the_bound_is_that_of_its_beliefs(g):
    answer = mean_field(g, num_starts=2)
    states, log_density = log_joint(g)
    log_q = 0
    for name, variable in g.variables.items():
        index = variable.states(states[name]).reshape(len(log_density), *[1] * len(g.batch_shape), -1, 1)
        rows = answer.marginals[name].reshape(*g.batch_shape, variable.numel, -1).log()
        log_q = log_q + rows.expand(len(log_density), *rows.shape).gather(
            -1, index.expand(-1, *rows.shape[:-1], 1)
        ).sum((-1, -2))
    q = log_q.exp()
    close(answer.log_partition, (q * (log_density - log_q).nan_to_num(0.0, 0.0, 0.0)).sum(0), 1e-8)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the networks in ../shared/data")
def test_libdai_bound():
    reference = json.loads((DATA / "testfast_reference.json").read_text())
    answer = mean_field(read_graph(DATA / "testfast.fg"))
    assert float(answer.log_partition) == pytest.approx(reference["meanfield_elbo"], abs=1e-6)


def test_independent_elements_are_exact():
    g = FactorGraph()
    x = g.variable("x", num_states=4, shape=(5,))
    g.factor(TableEnergy(torch.randn(3, 5, 4, dtype=torch.float64), 1), x[:])
    answer = mean_field(g)
    close(answer.log_partition, g.log_partition())
    close(answer.marginals["x"], g.marginals()["x"])
    assert answer.converged.shape == (3,)


def test_the_bound_never_falls():
    g = frustrated(0.8, size=5)
    bounds = []
    for number in range(1, 12):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            bounds.append(float(mean_field(g, num_starts=1, max_iterations=number).log_partition))
    assert all(later >= earlier - 1e-10 for earlier, later in pairwise(bounds))
    assert bounds[-1] > bounds[0]


def test_more_starts_are_better():
    """Coupled spins without a field: the first start is a saddle, where all elements stay uniform."""
    g = FactorGraph()
    x = g.variable("x", num_states=2, shape=(4,))
    g.factor(PottsEnergy(torch.tensor(2.0, dtype=torch.float64)), x[torch.combinations(torch.arange(4))])
    one, many = mean_field(g, num_starts=1), mean_field(g)
    close(one.marginals["x"], torch.full((4, 2), 0.5, dtype=torch.float64))
    assert many.log_partition > one.log_partition + 1


def test_gradients_are_beliefs():
    table = torch.nn.Parameter(torch.randn(2, 3, 3, 3, dtype=torch.float64))
    g = FactorGraph()
    x = g.variable("x", num_states=3, shape=(3,))
    g.factor(TableEnergy(table, 2), x[torch.tensor([[0, 1], [1, 2], [2, 0]])])
    answer = mean_field(g)
    (gradient,) = torch.autograd.grad(answer.log_partition.sum(), table)
    close(-gradient, answer.marginals.factors[0])


def test_hard_zeros():
    g = FactorGraph()
    x = g.variable("x", num_states=3, shape=(6,))
    differ = torch.zeros(3, 3).fill_diagonal_(torch.inf)
    g.factor(TableEnergy(differ), x[:-1], x[1:])
    answer = mean_field(g)
    assert 0 <= float(answer.log_partition) <= float(g.log_partition())
    assert float(g(answer.mode)) == 0
    g.factor(TableEnergy(torch.full((3,), torch.inf)), x[:1])
    assert float(mean_field(g).log_partition) == -torch.inf


def test_numbers_that_do_not_fit():
    g = frustrated(0.5)
    with pytest.raises(ValueError, match="mean_field: got num_starts=0"):
        mean_field(g, num_starts=0)
    with pytest.raises(ValueError, match="mean_field: got max_iterations=0"):
        mean_field(g, max_iterations=0)
    with pytest.warns(ConvergenceWarning, match=r"mean_field: .* is a bound all the same"):
        mean_field(g, max_iterations=1)


def test_one_state_and_constants():
    g = FactorGraph()
    x = g.variable("x", num_states=1, shape=(2,))
    g.factor(FieldEnergy(torch.tensor(0.5)), x[:])
    close(mean_field(g).log_partition, torch.tensor(0.0))
    y = g.variable("y", num_states=2)
    g.factor(FieldEnergy(torch.tensor(2.0)), y)
    close(mean_field(g.condition(y=torch.tensor(1))).log_partition, torch.tensor(2.0))
