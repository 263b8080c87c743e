"""A graph of discrete and continuous variables as a target, with the conditionals of the discrete ones."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from pyro_ebm._core.errors import GraphError
from pyro_ebm.graphs import Factor, FactorGraph
from pyro_ebm.graphs.gibbs.blocks import conditional_blocks, context_rows, unbatched
from pyro_ebm.graphs.gibbs.dynamic import DynamicFactor
from pyro_ebm.graphs.graph import with_factors
from pyro_ebm.graphs.localize import localized
from pyro_ebm.graphs.variable import first_elements
from pyro_ebm.infer.conditional_target import ConditionalDensity
from pyro_ebm.infer.graph_target import GraphTarget


class MixedDensity(ConditionalDensity):
    """The log density of a mixed graph, whose conditionals depend on its continuous variables.

    Args:
        target: the target.
        graph: its graph.
    """

    def __init__(self, target: GraphTarget, graph: FactorGraph) -> None:
        variables = graph.variables
        local = [each for factor in graph.factors for each in localized(cast(Factor, factor), variables)]
        discrete = [each for each in local if all(name in target.discrete for name in each.names)]
        offsets = first_elements({name: variables[name] for name in target.discrete})
        both = [each for each in local if 0 < sum(name in offsets for name in each.names) < len(each.names)]
        self._dynamic = [DynamicFactor(each, variables, offsets) for each in both]
        self._groups = [each.group for each in self._dynamic]
        tables = unbatched(with_factors(graph, discrete, only=target.discrete).log_tables())
        super().__init__(target, conditional_blocks(tables, self._groups))

    def context(self, position: Tensor) -> tuple[Tensor, ...]:
        """The tables that depend on continuous variables, at a position `(chains, dim)`."""
        values = self._target.values(position)
        return context_rows([each.log_potentials(values) for each in self._dynamic], self._groups)


class MixedTarget(GraphTarget):
    """A graph whose log density knows the conditionals of its discrete variables.

    Raises:
        GraphError: if there are no continuous variables, or a batch.
    """

    def __init__(self, graph: FactorGraph) -> None:
        super().__init__(graph)
        if not self.continuous:
            raise GraphError("Mixed: got discrete variables alone, expected continuous ones too. Use Gibbs(graph).")
        if graph.batch_shape:
            raise GraphError(
                f"Mixed: got a graph with batch shape {tuple(graph.batch_shape)}, expected none. Sample its members "
                "one by one, or put the batch into the variables."
            )
        self.log_density = MixedDensity(self, graph)  # type: ignore[method-assign]
