"""Exact answers of a graph, in the names and values of its variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Size, Tensor

from pyro_ebm._core.errors import GraphError
from pyro_ebm.graphs import elimination
from pyro_ebm.graphs.tables import LogTables
from pyro_ebm.graphs.variable import Variable


@dataclass(frozen=True, eq=False)
class Marginals(Mapping[str, Tensor]):
    """Marginal probabilities, exact or approximate: by variable `(*batch, *shape, K)`.

    Attributes:
        variables: of each name.
        singles: of each element, `(*batch, K)`, numbered through the graph.
        factors: for each group of factors over elements those of its scopes, `(*batch, F, K_1, ..., K_r)`. (Dense forms
            over whole variables count as the groups that they are sums of.)
    """

    variables: tuple[Variable, ...]
    singles: tuple[Tensor, ...]
    factors: tuple[Tensor, ...]

    def __getitem__(self, name: str) -> Tensor:
        """The probabilities of the values of a variable's elements, `(*batch, *shape, K)`."""
        start = 0
        for variable in self.variables:
            if variable.name == name:
                rows = torch.stack(self.singles[start : start + variable.numel], dim=-2)
                return rows.reshape(*rows.shape[:-2], *variable.shape, rows.shape[-1])
            start += variable.numel
        raise GraphError(f'got the variable "{name}", expected one of {list(self)}.')

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return (variable.name for variable in self.variables)

    def __len__(self) -> int:
        """How many variables there are."""
        return len(self.variables)

    def mean(self, name: str) -> Tensor:
        """The means of a variable's elements, `(*batch, *shape)`: of spins, the magnetisation."""
        variable = next(each for each in self.variables if each.name == name)
        probabilities = self[name]
        values = variable.values(torch.arange(probabilities.shape[-1])).to(probabilities)
        return (probabilities * values).sum(-1)


def exact_marginals(tables: LogTables) -> Marginals:
    """See `FactorGraph.marginals`."""
    singles, groups = elimination.marginals(tables)
    return Marginals(tables.variables, tuple(singles), tuple(groups))


def exact_mode(tables: LogTables) -> dict[str, Tensor]:
    """See `FactorGraph.mode`."""
    return values_of(tables, elimination.mode(tables))


def exact_sample(tables: LogTables, sample_shape: Size, generator: Generator | None) -> dict[str, Tensor]:
    """See `FactorGraph.sample`."""
    return values_of(tables, elimination.sample(tables, sample_shape, generator))


def values_of(tables: LogTables, states: Tensor) -> dict[str, Tensor]:
    """State numbers of elements, `(*lead, N)`, as values by variable, `(*lead, *shape)`."""
    dtype = tables.like.dtype
    return {v.name: v.values(tables.split(states)[v.name], dtype) for v in tables.variables}
