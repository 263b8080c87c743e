"""Cluster sampling of Ising and Potts models."""

from collections.abc import Callable

import networkx as nx
import pyro
import pytest
import torch
from discrete_cases import assert_invariant

from pyro_ebm import (
    MCMC,
    Energy,
    FactorGraph,
    FieldEnergy,
    GraphError,
    IsingEnergy,
    PottsEnergy,
    SwendsenWang,
    TableEnergy,
    spin,
)
from pyro_ebm.graphs import Elements, Variable
from pyro_ebm.mcmc.swendsen_wang import clusters


def _potts() -> FactorGraph:
    torch.manual_seed(0)
    graph = FactorGraph()
    x = graph.variable("x", num_states=3, shape=(4, 4))
    graph.factor(PottsEnergy(torch.rand(12)), x[:, :-1], x[:, 1:])
    graph.factor(PottsEnergy(torch.rand(12)), x[:-1], x[1:])
    return graph


def test_clusters_are_components() -> None:
    torch.manual_seed(0)
    edges = torch.randint(40, (60, 2))
    bonds = torch.rand(5, 60) < 0.5
    roots = clusters(bonds, edges, 40)
    for chain in range(5):
        graph = nx.Graph()
        graph.add_nodes_from(range(40))
        graph.add_edges_from(edges[bonds[chain]].tolist())
        for component in nx.connected_components(graph):
            assert set(roots[chain, list(component)].tolist()) == {min(component)}


def test_agrees_with_exact_pairs() -> None:
    graph = _potts()
    pyro.set_rng_seed(0)
    mcmc = MCMC(SwendsenWang(graph), 500, 20, num_chains=16, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)
    equal = (draws["x"][..., :-1] == draws["x"][..., 1:]).float().flatten(2)
    exact = graph.marginals().factors[0].diagonal(dim1=-2, dim2=-1).sum(-1)
    by_chain = equal.mean(1)
    error = by_chain.std(0) / 16**0.5
    assert ((by_chain.mean(0) - exact).abs() < 4.5 * error + 1e-3).all()
    torch.testing.assert_close(mcmc.sample_stats()["lp"], -graph(draws).double(), atol=1e-4, rtol=1e-4)


def test_leaves_exact_draws_exact() -> None:
    graph = _potts()
    pyro.set_rng_seed(0)
    assert_invariant(SwendsenWang(graph), graph, 2)


def test_spins_of_a_cold_lattice_turn_over() -> None:
    graph = FactorGraph()
    x = graph.variable("x", support=spin, shape=(10, 10))
    graph.factor(IsingEnergy(torch.tensor(1.0)), x[:, :-1], x[:, 1:])
    graph.factor(IsingEnergy(torch.tensor(1.0)), x[:-1], x[1:])
    pyro.set_rng_seed(0)
    mcmc = MCMC(SwendsenWang(graph), 200, 20, num_chains=4, disable_progbar=True)
    mcmc.run()
    magnetisation = mcmc.get_samples(group_by_chain=True)["x"].mean((-1, -2))
    assert (magnetisation.abs() > 0.8).float().mean() > 0.9
    assert ((magnetisation > 0).float().mean(-1) - 0.5).abs().max() < 0.2


def _with_field(x: Variable) -> tuple[Energy, Elements]:
    return FieldEnergy(torch.tensor(0.1)), x[:]


def _repelling(x: Variable) -> tuple[Energy, Elements]:
    return IsingEnergy(torch.tensor(-0.5)), x[torch.tensor([[0, 1]])]


def _of_three(x: Variable) -> tuple[Energy, Elements]:
    return TableEnergy(torch.zeros(2, 2, 2), support=spin), x[torch.tensor([[0, 1, 2]])]


@pytest.mark.parametrize(
    ("factor", "match"), [(_with_field, "a field"), (_repelling, "J = -1"), (_of_three, "over 3 elements")]
)
def test_refuses_other_graphs(factor: Callable[[Variable], tuple[Energy, Elements]], match: str) -> None:
    graph = FactorGraph()
    graph.factor(*factor(graph.variable("x", support=spin, shape=(3,))))
    with pytest.raises(GraphError, match=match):
        MCMC(SwendsenWang(graph), 5).run()
