"""`GraphDistribution`: the labels of a factor graph, with exact log Z."""

from __future__ import annotations

import copy
from typing import Self

from pyro.distributions import TorchDistribution
from torch import Size, Tensor

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.errors import GraphError
from pyro_ebm._core.supports import state_range
from pyro_ebm.distributions.structured import StructuredDistribution
from pyro_ebm.energies import TableEnergy
from pyro_ebm.graphs import FactorGraph, join


class GraphDistribution(StructuredDistribution):
    """The density `p(x) = exp(-E(x)) / Z` of a graph over one array of labels, by exact elimination.

    It is normalised, so that it is right as a likelihood, too, where the energy is learned or sampled. What it costs is
    exponential in the treewidth: of a lattice, in its shorter side.

    Args:
        graph: a graph of one variable, of labels from 0 to K - 1.
        validate_args: whether values are checked; torch's default.

    Attributes:
        graph: the graph.

    Raises:
        GraphError: if the graph has several variables, or not labels.

    >>> import torch
    >>> from pyro_ebm import PottsEnergy
    >>> g = FactorGraph()
    >>> x = g.variable("x", num_states=3, shape=(4,))
    >>> g.factor(PottsEnergy(torch.tensor(0.5)), x[:-1], x[1:])
    >>> d = GraphDistribution(g)
    >>> d.sample((5,)).shape, d.marginals.shape, d.log_prob(d.mode).shape
    (torch.Size([5, 4]), torch.Size([4, 3]), torch.Size([]))
    """

    graph: FactorGraph

    def __init__(self, graph: FactorGraph, *, validate_args: bool | None = None) -> None:
        if len(graph.variables) != 1:
            raise GraphError(
                f"GraphDistribution: got the variables {list(graph.variables)}, expected one. Open several as sites of "
                "a model, with sample_graph(name, graph, normalized=True)."
            )
        (variable,) = graph.variables.values()
        found = state_range(variable.support)
        if found is None or found[:2] != (0, 1):
            raise GraphError(
                f'GraphDistribution: got the variable "{variable.name}" on {variable.support}, expected labels from 0 '
                "(num_states=...). Use EnergyDistribution(graph, log_normalizer=graph.log_partition())."
            )
        self.graph, self._name = graph, variable.name
        super().__init__(graph.batch_shape, variable.shape, found[2], validate_args=validate_args)

    def _score(self, value: Tensor) -> Tensor:
        score: Tensor = -self.graph(value)
        return score

    def _log_partition(self) -> Tensor:
        return self.graph.log_partition()

    def _marginals(self) -> Tensor:
        return self.graph.marginals()[self._name]

    def _mode(self) -> Tensor:
        return self.graph.mode()[self._name]

    def _entropy(self) -> Tensor:
        return self.graph.entropy()

    def _sample(self, sample_shape: Size) -> Tensor:
        return self.graph.sample(sample_shape)[self._name]

    def condition(self, value: Tensor, observed: Tensor) -> Self:
        """The distribution of all labels given some: see `StructuredDistribution`.

        Args:
            value: labels, `(*batch, *event)`; those that are not observed are ignored.
            observed: which are observed, boolean, broadcastable to the same shape.
        """
        numel = self.event_shape.numel()
        lead = value.shape[: value.dim() - len(self.event_shape)]
        flat = value.reshape(*lead, numel, 1)
        known = observed.expand(value.shape).reshape(*lead, numel, 1)
        states = flat.new_tensor(range(self.num_states))
        table = like_of(self.graph).new_zeros(()).masked_fill((states != flat) & known, float("inf"))
        graph = join([self.graph])
        graph.factor(TableEnergy(table, arity=1), graph[self._name][:])
        new = copy.copy(self)
        new.graph, new._own_shape = graph, graph.batch_shape
        TorchDistribution.__init__(new, graph.batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new
