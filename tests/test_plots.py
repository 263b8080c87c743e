"""Pictures have what they should have in them."""

import matplotlib
import networkx as nx
import pytest

from pyro_ebm import Ising, plot_graph

matplotlib.use("Agg")


def test_a_lattice_lies_on_its_lattice():
    ax = plot_graph(Ising((2, 3), 0.3, 0.1).to_networkx())
    assert sorted(text.get_text() for text in ax.texts) == sorted(f"x[{i}, {j}]" for i in range(2) for j in range(3))
    variables, factors = ax.collections[-2].get_offsets(), ax.collections[-1].get_offsets()
    assert sorted(map(tuple, variables.tolist())) == [(float(j), float(-i)) for j in range(3) for i in (1, 0)]
    assert len(factors) == 7 + 6


def test_any_graph_has_a_layout():
    ax = plot_graph(Ising(nx.petersen_graph(), 0.3).to_networkx(), labels=False)
    assert len(ax.texts) == 0
    assert len(ax.collections[-2].get_offsets()) == 10
    with pytest.raises(ValueError, match="to_networkx"):
        plot_graph(nx.path_graph(3))
