"""What graphs refuse, and what they do at their edges: no mass, no room, transforms, odd wiring."""

import math
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from torch.distributions import constraints

from pyro_ebm import (
    BilinearEnergy,
    FactorGraph,
    FieldEnergy,
    IsingEnergy,
    QuadraticEnergy,
    TableEnergy,
    TreewidthError,
    energy,
    spin,
)
from pyro_ebm._core.errors import GraphError
from pyro_ebm.graphs import Variable
from pyro_ebm.graphs.elimination import elimination
from pyro_ebm.graphs.elimination.ordering import elimination_order
from pyro_ebm.graphs.elimination.plan import make_plan, plan_of
from pyro_ebm.graphs.forest_tables import forest_tables
from pyro_ebm.graphs.networks import edge_index
from pyro_ebm.graphs.tables import MAX_TABLE_ENTRIES
from pyro_ebm.models import Ising


def grid(coupling, shape=(3, 4)):
    return Ising(shape, coupling, torch.linspace(-1, 1, math.prod(shape), dtype=coupling.dtype))


def chain_of_tables(count, table, states=2):
    g = FactorGraph()
    x = g.variable("x", num_states=states, shape=(count,))
    g.factor(TableEnergy(table, 2), x[torch.stack([torch.arange(count - 1), torch.arange(1, count)], -1)])
    return g


# -- cost --------------------------------------------------------------------------------------------------------------


def test_messages_that_stay_count_and_those_that_go_do_not():
    plan = plan_of(Ising((6, 200), torch.tensor(0.1)).log_tables())
    assert plan.largest < 4 * plan.peak < plan.total
    wide = Ising((24, 60), torch.tensor(0.1))
    for ask in (wide.marginals, wide.mode, wide.sample, wide.entropy):
        with pytest.raises(TreewidthError, match=r"width 24.*GiB for all of them.*condition.*Gibbs"):
            ask()
    learned = Ising((24, 60), torch.tensor(0.1, requires_grad=True))
    with pytest.raises(TreewidthError, match="width 24"):
        learned.log_partition()
    plan = plan_of(wide.log_tables())
    plan.require_affordable(1, 4, keeps_messages=False)


def test_refusing_a_wide_graph_takes_seconds():
    g = Ising((60, 60), torch.tensor(0.1))
    with pytest.raises(TreewidthError, match="width 60"):
        g.log_partition()


def test_sizes_that_no_float_holds_have_a_message():
    everything = [tuple(range(1100))]
    order = elimination_order([2] * 1100, everything, MAX_TABLE_ENTRIES)
    with pytest.raises(TreewidthError, match=r"table of 2\*\*1100 entries \(width 1099\) and about 2\*\*1072 GiB"):
        make_plan([2] * 1100, everything, order).require_affordable(1, 4, keeps_messages=False)


def test_a_factor_over_too_many_states_is_refused_before_it_is_evaluated():
    def never(a, b):
        raise AssertionError("evaluated")

    g = FactorGraph()
    a, b = (g.variable(name, support=spin, shape=(16,)) for name in "ab")
    g.factor(energy(never, [(16,), (16,)], support=spin), a, b)
    with pytest.raises(TreewidthError, match=r"table of 4.29e\+09 entries.*Condition"):
        g.log_partition()


# -- no mass -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["elimination", "path", "forest", "constant"])
def test_without_mass_there_is_no_state(kind):
    count = 4 if kind in ("elimination", "constant") else 20
    g = chain_of_tables(count, torch.zeros(2, 2))
    forbidden = torch.full((3, 2), torch.inf)
    forbidden[:2] = 0.0
    if kind == "forest":
        g = FactorGraph()
        x = g.variable("x", num_states=2, shape=(count,))
        g.factor(TableEnergy(torch.zeros(2, 2)), x[torch.stack([torch.zeros(19).long(), torch.arange(1, 20)], -1)])
    if kind == "constant":
        y = g.variable("y", num_states=2)
        g.factor(TableEnergy(forbidden, 1), y)
        g = g.condition(y=torch.tensor(0))
    else:
        g.factor(TableEnergy(forbidden.unsqueeze(1), 1), g["x"][torch.tensor([0])])
    assert g.log_partition()[2] == -torch.inf
    for what, ask in (("mode", g.mode), ("sample", g.sample)):
        with pytest.raises(ValueError, match=rf"{what}: .*possible"):
            ask()


# -- transforms --------------------------------------------------------------------------------------------------------


def answers(coupling):
    """The marginals of a site and of the factors, and the entropy: `(...)`."""
    g = grid(coupling)
    marginals = g.marginals()
    return torch.cat([marginals["x"].flatten(), marginals.factors[0].flatten(), g.entropy().reshape(1)])


def test_marginals_and_entropy_under_transforms():
    couplings = torch.tensor([-0.7, 0.2, 1.1], dtype=torch.float64)
    each = torch.stack([answers(coupling) for coupling in couplings])
    torch.testing.assert_close(torch.func.vmap(answers)(couplings), each)
    with torch.inference_mode():
        torch.testing.assert_close(answers(couplings[0]), each[0])
    jacobian = torch.func.jacrev(answers)(couplings[1])
    torch.testing.assert_close(jacobian, torch.autograd.functional.jacobian(answers, couplings[1]))
    step = 1e-6
    difference = (answers(couplings[1] + step) - answers(couplings[1] - step)) / (2 * step)
    torch.testing.assert_close(jacobian, difference, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(torch.func.vmap(torch.func.jacrev(answers))(couplings)[1], jacobian)


def test_modes_and_draws_under_transforms():
    couplings = torch.tensor([-2.0, 0.2, 2.0], dtype=torch.float64)

    def mode(coupling):
        return grid(coupling).mode()["x"]

    modes = torch.stack([mode(coupling) for coupling in couplings])
    torch.testing.assert_close(torch.func.vmap(mode)(couplings), modes)
    with torch.inference_mode():
        torch.testing.assert_close(mode(couplings[2]), modes[2])
        assert grid(couplings[0]).sample((5,))["x"].shape == (5, 3, 4)

    def draws(coupling):
        return grid(coupling).sample((2000,))["x"]

    drawn = torch.func.vmap(draws, randomness="different")(couplings)
    for coupling, own in zip(couplings, drawn, strict=True):
        mean = grid(coupling).marginals().mean("x")
        error = (own.mean(0) - mean) / ((1 - mean**2) / 2000).sqrt()
        assert error.abs().max() < 4.5


@pytest.mark.parametrize("count", [5, 20])
def test_paths_in_inference_mode(count):
    g = chain_of_tables(count, torch.tensor([[0.3, 1.0], [-0.5, 0.1]], dtype=torch.float64))
    expected = g.log_partition(), g.marginals()["x"], g.entropy(), g.mode()["x"]
    with torch.inference_mode():
        found = g.log_partition(), g.marginals()["x"], g.entropy(), g.mode()["x"]
        assert g.sample((3,))["x"].shape == (3, count)
    torch.testing.assert_close(found, expected)


def test_paths_cut_by_evidence_stay_paths():
    count = 30
    generator = torch.Generator().manual_seed(1)
    g = chain_of_tables(count, torch.randn(count - 1, 3, 3, generator=generator, dtype=torch.float64), states=3)
    g.factor(TableEnergy(torch.randn(count, 3, generator=generator, dtype=torch.float64), 1), g["x"][:])
    known = torch.zeros(count, dtype=torch.bool)
    known[[10, 19]] = True
    left = g.condition(x=(torch.ones(count, dtype=torch.long), known))
    tables = left.log_tables()
    forest = forest_tables(tables)
    assert forest.layout.path is not None
    torch.testing.assert_close(left.log_partition(), elimination.log_partition(tables))
    torch.testing.assert_close(left.entropy(), elimination.entropy(tables))
    torch.testing.assert_close(forest.marginals(), elimination.marginals(tables))
    assert left.mode()["x"].equal(elimination.mode(tables))
    many = known | (torch.arange(count) % 3 == 0)
    short = g.condition(x=(torch.ones(count, dtype=torch.long), many)).log_tables()
    assert forest_tables(short).layout.path is None


def elsewhere(g):
    """A graph's tables, on a device without data."""
    tables = g.log_tables()
    return replace(tables, groups=tuple(replace(e, log_potentials=e.log_potentials.to("meta")) for e in tables.groups))


def test_indices_are_where_the_tables_are():
    g = FactorGraph()
    x = g.variable("x", num_states=2, shape=(20,))
    star = torch.stack([torch.zeros(19).long(), torch.arange(1, 20)], -1)
    g.factor(TableEnergy(torch.zeros(19, 2, 2), 2), x[star])
    g.factor(FieldEnergy(torch.zeros(20)), x[:])
    forest = forest_tables(elsewhere(g))
    singles, groups = forest.marginals()
    layout = forest.layout
    for each in (forest.log_partition(), *singles, *groups, layout.forest.parents, *layout.children, *layout.flipped):
        assert each.device.type == "meta"
    path = forest_tables(elsewhere(chain_of_tables(20, torch.zeros(19, 2, 2))))
    assert path.layout.path.device.type == path.unary.device.type == path.pairwise.device.type == "meta"
    tables = elsewhere(grid(torch.tensor(0.1)))
    singles, groups = elimination.marginals(tables)
    for each in (elimination.log_partition(tables), elimination.entropy(tables), *singles, *groups):
        assert each.device.type == "meta"


# -- wiring ------------------------------------------------------------------------------------------------------------


def test_groups_without_factors_say_nothing():
    g = FactorGraph()
    x = g.variable("x", num_states=2, shape=(1, 5))
    g.factor(TableEnergy(torch.eye(2)), x[:-1], x[1:])
    assert g(torch.zeros(1, 5, dtype=torch.long)) == 0
    g.factor(TableEnergy(torch.eye(2)), x[:, :-1], x[:, 1:])
    expected = torch.log(2 * (1 + torch.exp(torch.tensor(-1.0))) ** 4)
    torch.testing.assert_close(g.log_partition(), expected)
    assert g.sample((3,))["x"].shape == (3, 1, 5)
    assert g.marginals()["x"].shape == (1, 5, 2)


def test_a_table_refuses_values_that_are_not_its_own():
    g = TableEnergy(torch.zeros(2, 2))
    for value in (torch.tensor([0, 2]), torch.tensor([-1, 0]), torch.tensor([0.5, 0.0])):
        with pytest.raises(ValueError, match="for variable 1, expected one of its 2 from 0 to 1"):
            g(torch.zeros(2, dtype=torch.long), value)
    spins = TableEnergy(torch.zeros(2), support=spin)
    with pytest.raises(ValueError, match=r"got the value 0.0.*from -1 to 1 in steps of 2"):
        spins(torch.tensor(0.0))
    torch.func.vmap(g)(torch.tensor([0, 1]), torch.tensor([0, 1]))


def test_networkx_graphs_of_other_kinds():
    multi = nx.MultiGraph([(0, 1), (0, 1), (1, 2)])
    assert edge_index(multi).tolist() == [[0, 1], [0, 1], [1, 2]]
    g = FactorGraph.from_networkx(multi, IsingEnergy(torch.ones(3)), support=spin)
    assert g(torch.ones(3)) == -3
    with pytest.raises(GraphError, match=r"directed DiGraph.*to_undirected"):
        edge_index(nx.DiGraph([(0, 1), (1, 0)]))
    with pytest.raises(GraphError, match=r"from the node 1 to itself.*selfloop_edges"):
        Ising(nx.Graph([(0, 1), (1, 1)]), 0.5)


def test_subgraphs_and_blankets_of_dense_forms():
    weight = torch.arange(6.0).reshape(2, 3)
    g = FactorGraph()
    v, h = g.variable("v", support=spin, shape=(2,)), g.variable("h", support=spin, shape=(3,))
    g.factor(BilinearEnergy(weight), v, h)
    precision = torch.tensor([[2.0, 0.3], [0.3, 1.0]])
    g.factor(QuadraticEnergy(precision), v)
    part = g.subgraph("v", h=torch.tensor([True, False, True]))
    values = {"v": torch.tensor([1.0, -1.0]), "h": torch.tensor([-1.0, 1.0])}
    expected = BilinearEnergy(weight[:, [0, 2]])(values["v"], values["h"]) + QuadraticEnergy(precision)(values["v"])
    torch.testing.assert_close(part(values), expected)
    assert [type(each.energy) for each in g.subgraph("v").factors] == [QuadraticEnergy]
    bipartite = FactorGraph()
    v, h = bipartite.variable("v", support=spin, shape=(2,)), bipartite.variable("h", support=spin, shape=(3,))
    bipartite.factor(BilinearEnergy(weight), v, h)
    blanket = bipartite.markov_blanket(v[:1])
    assert not blanket["v"].any()
    assert blanket["h"].all()


def test_a_blanket_is_asked_of_a_variable_of_the_graph():
    g, other = Ising((2, 2), 0.1), Ising((2, 2), 0.1)
    for elements in (other["x"], other["x"][0]):
        with pytest.raises(GraphError, match=r"markov_blanket: got Variable\(.*of this graph"):
            g.markov_blanket(elements)


def test_arrays_and_lists_wire_as_tensors_do():
    x = Variable("x", torch.Size([2, 3]), constraints.independent(spin, 2))
    edges = [(0, 1), (4, 5)]
    for index in (edges, np.array(edges), np.array(edges, dtype=np.int32), torch.tensor(edges)):
        assert x[index].index.tolist() == [[0, 1], [4, 5]]
    assert x[[3, 5]].index.tolist() == x[np.array([3, 5])].index.tolist() == [[3], [5]]
    mask = np.array([[True, False, False], [False, False, True]])
    assert x[mask].index.tolist() == x[mask.tolist()].index.tolist() == [[0], [5]]
    with pytest.raises(GraphError, match="rows of one length"):
        x[[(0, 1), (2,)]]


def test_infinitely_many_states_are_not_called_continuous():
    g = FactorGraph()
    g.variable("n", support=constraints.nonnegative_integer)
    with pytest.raises(GraphError, match="no finite number of states"):
        g["n"].states(torch.tensor(1))
