"""Random factor graphs without cycles, drawn by hypothesis."""

import torch
from hypothesis import strategies as st

from pyro_ebm import FactorGraph, TableEnergy


@st.composite
def trees(draw, batch_shape=None, ties=True):
    """A tree of factors over pairs and triples of elements with two and with three states; float64."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch = draw(st.sampled_from([(), (2,), (3, 1)])) if batch_shape is None else batch_shape
    scale = draw(st.sampled_from([0.3, 2.0, 300.0]))
    zeros = draw(st.booleans())
    g = FactorGraph()
    arrays = [g.variable("two", num_states=2, shape=(4,)), g.variable("three", num_states=3, shape=(2, 2))]
    order = draw(st.permutations([(array, element) for array in arrays for element in range(4)]))

    def factor(*scope):
        sizes = [array.num_states for array, _ in scope]
        table = scale * torch.randn(*batch, 1, *sizes, generator=generator, dtype=torch.float64)
        if zeros:
            forbidden = torch.rand(table.shape, generator=generator) < 0.3
            forbidden[(..., *[0] * len(sizes))] = False  # so that a state has mass
            table = table.masked_fill(forbidden, torch.inf)
        g.factor(TableEnergy(table, len(sizes)), *(array[torch.tensor([element])] for array, element in scope))

    number = 1
    while number < len(order):
        width = min(draw(st.integers(1, 2)), len(order) - number)
        inside = draw(st.integers(0, number - 1))
        scope = [order[inside], *order[number : number + width]]
        factor(*draw(st.permutations(scope)))
        number += width
    for element in draw(st.lists(st.sampled_from(order), max_size=3)):
        factor(element)
    return g
