"""Factor graphs: structured energies over named variables, with exact and approximate answers."""

from pyro_ebm.graphs.exact import Marginals
from pyro_ebm.graphs.factor import Factor
from pyro_ebm.graphs.graph import FactorGraph, join
from pyro_ebm.graphs.variable import Elements, Variable

__all__ = ["Elements", "Factor", "FactorGraph", "Marginals", "Variable", "join"]
