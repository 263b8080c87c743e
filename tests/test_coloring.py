"""Colours of elements, and their conditional distributions."""

import pytest
import torch
from discrete_cases import GRAPHS

from pyro_ebm import FactorGraph, IsingEnergy, spin
from pyro_ebm.graphs.coloring import color, neighbor_pairs
from pyro_ebm.graphs.gibbs.blocks import conditional_blocks, unbatched


def _grid(rows: int, columns: int) -> torch.Tensor:
    number = torch.arange(rows * columns).reshape(rows, columns)
    across = torch.stack([number[:, :-1].flatten(), number[:, 1:].flatten()], -1)
    return torch.cat([across, torch.stack([number[:-1].flatten(), number[1:].flatten()], -1)])


def test_a_grid_has_two_colours() -> None:
    pairs = _grid(20, 30)
    colors = color(600, pairs)
    assert int(colors.max()) == 1
    assert (colors[pairs[:, 0]] != colors[pairs[:, 1]]).all()


def test_an_odd_cycle_has_three_colours() -> None:
    pairs = torch.tensor([[i, (i + 1) % 7] for i in range(7)])
    colors = color(7, pairs)
    assert int(colors.max()) == 2
    assert (colors[pairs[:, 0]] != colors[pairs[:, 1]]).all()


def test_random_graphs_are_coloured_properly() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        pairs = torch.randint(30, (50, 2))
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        colors = color(30, pairs)
        assert (colors[pairs[:, 0]] != colors[pairs[:, 1]]).all()


def test_elements_without_neighbors_have_a_colour() -> None:
    assert color(3, torch.empty(0, 2, dtype=torch.long)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["lattice", "various", "batch", "counts"])
def test_blocks_are_the_conditionals(name: str) -> None:
    graph = GRAPHS[name]()
    tables = unbatched(graph.log_tables())
    count = len(tables.num_states)
    states = torch.stack([torch.randint(size, (8,)) for size in tables.num_states], -1)

    def log_density(states: torch.Tensor) -> torch.Tensor:
        parts = tables.split(states)
        energy = graph({v.name: graph[v.name].values(parts[v.name]) for v in tables.variables})
        return -energy.reshape(len(states), -1).sum(-1)

    blocks = conditional_blocks(tables)
    assert sorted(torch.cat([block.elements for block in blocks]).tolist()) == list(range(count))
    rows = tuple(states[:, block.elements].mT.float() for block in blocks)
    for block in blocks:
        logits = block.logits(rows, ())
        logits = torch.stack([torch.zeros_like(logits), logits]) if block.num_states == 2 else logits
        for row, element in enumerate(block.elements.tolist()):
            each = torch.stack([log_density(_with(states, element, k)) for k in range(block.num_states)])
            torch.testing.assert_close(logits[:, row].log_softmax(0), each.log_softmax(0), atol=1e-4, rtol=1e-4)


def _with(states: torch.Tensor, element: int, value: int) -> torch.Tensor:
    changed = states.clone()
    changed[:, element] = value
    return changed


def test_elements_of_a_block_do_not_interact() -> None:
    tables = unbatched(GRAPHS["various"]().log_tables())
    pairs = neighbor_pairs(tables)
    for block in conditional_blocks(tables):
        inside = torch.isin(pairs, block.elements)
        assert not inside.all(-1).any()


def test_dense_couplings_are_a_matrix() -> None:
    graph = FactorGraph()
    x = graph.variable("x", support=spin, shape=(10,))
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4, 10))
    graph.factor(IsingEnergy(torch.randn(24)), x[pairs])
    blocks = conditional_blocks(graph.log_tables())
    assert len(blocks) == 2
    assert all(block.neighbors is None and block.weights is not None for block in blocks)
