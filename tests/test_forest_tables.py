"""Paths and forests have kernels of their own, which agree with elimination."""

import pytest
import torch

from pyro_ebm import FactorGraph, FieldEnergy, TableEnergy
from pyro_ebm.graphs.elimination import elimination
from pyro_ebm.graphs.forest_tables import forest_tables


def build(kind, *, shared, batch, zeros, count=20, states=3):
    generator = torch.Generator().manual_seed(4)
    g = FactorGraph()
    x = g.variable("x", num_states=states, shape=(count,))
    label = torch.randperm(count, generator=generator)  # an order that says nothing
    if kind == "path":
        edges = torch.stack([label[:-1], label[1:]], -1)
    else:  # a star, a comb and an element alone
        up = torch.tensor([0] * 5 + [0] + list(range(5, count - 2)))[: count - 2]
        edges = torch.stack([label[up], label[1 : count - 1]], -1)
    if not shared:
        turned = torch.rand(len(edges), generator=generator) < 0.5
        edges = torch.where(turned[:, None], edges.flip(-1), edges)
    shape = (states, states) if shared else (*batch, len(edges), states, states)
    table = torch.randn(shape, generator=generator, dtype=torch.float64)
    if zeros:
        table[..., 0, 1] = torch.inf
    g.factor(TableEnergy(table, 2), x[edges])
    if not shared:
        g.factor(TableEnergy(torch.randn(1, states, states, generator=generator, dtype=torch.float64), 2), x[edges[:1]])
    g.factor(TableEnergy(torch.randn(*batch, count, states, generator=generator, dtype=torch.float64), 1), x[:])
    y = g.variable("y", num_states=states)
    g.factor(FieldEnergy(torch.tensor(0.3, dtype=torch.float64)), y)
    left = g.condition(y=torch.tensor(2))
    return left, left.log_tables()


@pytest.mark.parametrize("kind", ["path", "forest"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize("zeros", [False, True])
def test_agrees_with_elimination(kind, shared, batch, zeros):
    g, tables = build(kind, shared=shared, batch=batch, zeros=zeros)
    forest = forest_tables(tables)
    assert (forest.layout.path is not None) == (kind == "path")
    torch.testing.assert_close(g.log_partition(), elimination.log_partition(tables))
    torch.testing.assert_close(g.entropy(), elimination.entropy(tables))
    singles, groups = elimination.marginals(tables)
    found = g.marginals()
    for got, expected in zip([*found.singles, *found.factors], [*singles, *groups], strict=True):
        torch.testing.assert_close(got, expected.expand(got.shape))
    best = elimination.mode(tables)
    torch.testing.assert_close(g(g.mode()), g({"x": best}))
    draws = g.sample((3000,), generator=torch.Generator().manual_seed(0))["x"]
    share = torch.nn.functional.one_hot(draws, 3).double().mean(0)
    error = (share - found["x"]) / (found["x"] * (1 - found["x"]) / 3000).sqrt().clamp(min=1e-9)
    assert error.abs().max() < 5.3


def test_a_cycle_or_unequal_variables_are_left_to_elimination():
    g = FactorGraph()
    x = g.variable("x", num_states=2, shape=(20,))
    ring = torch.stack([torch.arange(20), torch.arange(20).roll(-1)], -1)
    g.factor(TableEnergy(torch.zeros(2, 2)), x[ring])
    assert forest_tables(g.log_tables()) is None
    h = FactorGraph()
    h.variable("x", num_states=2, shape=(20,))
    h.variable("y", num_states=3, shape=(20,))
    assert forest_tables(h.log_tables()) is None
