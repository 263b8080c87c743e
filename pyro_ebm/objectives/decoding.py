"""The graph beneath a distribution, and its answers of least energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.errors import GraphError, NonFiniteError
from pyro_ebm._core.protocols import Density
from pyro_ebm._core.supports import strip_independent
from pyro_ebm.energies import TableEnergy
from pyro_ebm.graphs import FactorGraph, Variable, join


def graph_of(density: Density) -> FactorGraph | None:
    """The graph over one variable that a distribution is made of, if it is."""
    found = [getattr(density, name, None) for name in ("energy", "graph")]
    graph = next((each for each in found if isinstance(each, FactorGraph)), None)
    if graph is None or len(graph.variables) != 1 or getattr(density, "base", None) is not None:
        return None
    return graph


@dataclass(frozen=True, eq=False)
class Decoder:
    """A discrete graph over one variable, which finds answers of least energy, exactly.

    Attributes:
        graph: the graph.
        variable: its variable.
    """

    graph: FactorGraph
    variable: Variable

    @classmethod
    def of(cls, density: Density, what: str) -> Decoder:
        """The decoder of a distribution over one variable of a discrete graph.

        Raises:
            GraphError: if there is no such graph.
        """
        graph = graph_of(density)
        if graph is None:
            raise GraphError(
                f"{what}: got {type(density).__name__}, expected a distribution of a FactorGraph over one discrete "
                "variable, without a base, for it finds answers of least energy: EnergyDistribution(graph), a "
                "GraphDistribution or a CRF."
            )
        (variable,) = graph.variables.values()
        return cls(graph, variable)

    def energy(self, value: Tensor, where: str) -> Tensor:
        """The energy of answers `(*sample, *batch, *event)`, `(*sample, *batch)`.

        Raises:
            NonFiniteError: if it is not finite.
        """
        energy: Tensor = self.graph(value)
        if not bool(energy.isfinite().all()):
            raise NonFiniteError(
                f"the energy at {where}: got {int((~energy.isfinite()).sum())} of {energy.numel()} energies that are "
                "not finite. A forbidden state has been observed, or the energy overflows: look at its parameters."
            )
        return energy

    def observed(self, value: Tensor) -> Tensor:
        """Which state each element has, one-hot, `(*sample, *batch, n, K)`."""
        lead = value.shape[: value.dim() - len(self.variable.shape)]
        states = self.variable.states(value).reshape(*lead, -1)
        return one_hot(states.long(), cast(int, self.variable.num_states)).bool()

    def best(self, extra: Tensor | None = None) -> Tensor:
        """An answer of least energy, with some energy added to the states of elements.

        Args:
            extra: what is added, `(*lead, n, K)`, where the lead broadcasts with the graph's batch shape.

        Returns:
            `(*lead, *event)`, without a gradient.
        """
        with torch.no_grad():
            graph = self.graph
            if extra is not None:
                graph = join([graph])
                support = strip_independent(self.variable.support)
                added = TableEnergy(extra.to(like_of(self.graph)), arity=1, support=support)
                graph.factor(added, graph[self.variable.name][torch.arange(self.variable.numel)])
            return graph.mode()[self.variable.name]
