"""Exact answers of a graph by the names of its variables: of its discrete part, and of its Gaussian part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Generator, Size, Tensor

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.errors import GraphError
from pyro_ebm.graphs.elimination import elimination
from pyro_ebm.graphs.factor import Factor
from pyro_ebm.graphs.forest_tables import forest_tables
from pyro_ebm.graphs.gaussian import BandedGaussian, banded_gaussian
from pyro_ebm.graphs.quadratic_forms import is_gaussian
from pyro_ebm.graphs.tables import LogTables, log_tables
from pyro_ebm.graphs.variable import Variable


@dataclass(frozen=True, eq=False)
class Marginals(Mapping[str, Tensor]):
    """Marginals, exact or approximate: by discrete variable, its probabilities `(*batch, *shape, K)`.

    Attributes:
        variables: the discrete variables.
        singles: of each element, `(*batch, K)`, numbered through the graph.
        factors: for each group of factors over elements those of its scopes, `(*batch, F, K_1, ..., K_r)`. (Dense forms
            over whole variables count as the groups that they are sums of.)
        means: of real variables, `(*batch, *shape)`; `variances` likewise.
    """

    variables: tuple[Variable, ...]
    singles: tuple[Tensor, ...]
    factors: tuple[Tensor, ...]
    means: Mapping[str, Tensor] = field(default_factory=dict)
    variances: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        """The probabilities of the values of a discrete variable's elements, `(*batch, *shape, K)`."""
        start = 0
        for variable in self.variables:
            if variable.name == name:
                rows = torch.stack(self.singles[start : start + variable.numel], dim=-2)
                return rows.reshape(*rows.shape[:-2], *variable.shape, rows.shape[-1])
            start += variable.numel
        raise GraphError(
            f'got the variable "{name}", expected one of {list(self)}; a real one has .mean and .variance.'
        )

    def __iter__(self) -> Iterator[str]:
        """The names of the discrete variables."""
        return (variable.name for variable in self.variables)

    def __len__(self) -> int:
        """How many discrete variables there are."""
        return len(self.variables)

    def mean(self, name: str) -> Tensor:
        """The means of a variable's elements, `(*batch, *shape)`: of spins, the magnetisation."""
        return self.means[name] if name in self.means else self._moment(name, 1)

    def variance(self, name: str) -> Tensor:
        """The variances of a variable's elements, `(*batch, *shape)`."""
        if name in self.variances:
            return self.variances[name]
        return self._moment(name, 2) - self._moment(name, 1) ** 2

    def _moment(self, name: str, power: int) -> Tensor:
        probabilities = self[name]
        variable = next(each for each in self.variables if each.name == name)
        values = variable.values(torch.arange(probabilities.shape[-1])).to(probabilities)
        return (probabilities * values**power).sum(-1)


@dataclass(frozen=True, eq=False)
class ExactParts:
    """A graph's discrete part and its Gaussian part, which share no factor.

    Attributes:
        tables: the discrete part.
        gaussian: the Gaussian part, in double precision; nothing where there is none.
        real: its variables.
        dtype: that of its answers.
        batch_shape: the graph's batch shape, which those of the parts broadcast to.
    """

    tables: LogTables
    gaussian: BandedGaussian | None
    real: tuple[Variable, ...]
    dtype: torch.dtype
    batch_shape: Size

    def log_partition(self) -> Tensor:
        """See `FactorGraph.log_partition`."""
        forest = forest_tables(self.tables)
        discrete = elimination.log_partition(self.tables) if forest is None else forest.log_partition()
        return discrete if self.gaussian is None else discrete + self.gaussian.log_partition().to(self.dtype)

    def marginals(self) -> Marginals:
        """See `FactorGraph.marginals`."""
        forest = forest_tables(self.tables)
        singles, groups = elimination.marginals(self.tables) if forest is None else forest.marginals()
        means, variances = {}, {}
        if self.gaussian is not None:
            means, variances = self._split(self.gaussian.mean()), self._split(self.gaussian.variance())
        return Marginals(self.tables.variables, tuple(singles), tuple(groups), means, variances)

    def mode(self) -> dict[str, Tensor]:
        """See `FactorGraph.mode`."""
        forest = forest_tables(self.tables)
        found = values_of(self.tables, elimination.mode(self.tables) if forest is None else forest.mode())
        return found if self.gaussian is None else {**found, **self._split(self.gaussian.mean().detach())}

    def sample(self, sample_shape: Size, generator: Generator | None) -> dict[str, Tensor]:
        """See `FactorGraph.sample`."""
        with torch.no_grad():
            forest = forest_tables(self.tables)
            if forest is None:
                states = elimination.sample(self.tables, sample_shape, generator)
            else:
                states = forest.sample(sample_shape, generator)
            drawn = values_of(self.tables, states)
            if self.gaussian is not None:
                drawn.update(self._split(self.gaussian.sample(sample_shape, self.batch_shape, generator)))
        return drawn

    def entropy(self) -> Tensor:
        """See `FactorGraph.entropy`."""
        forest = forest_tables(self.tables)
        discrete = elimination.entropy(self.tables) if forest is None else forest.entropy()
        return discrete if self.gaussian is None else discrete + self.gaussian.entropy().to(self.dtype)

    def _split(self, elements: Tensor) -> dict[str, Tensor]:
        lead = torch.broadcast_shapes(elements.shape[:-1], self.batch_shape)
        parts = elements.to(self.dtype).expand(*lead, -1).split([variable.numel for variable in self.real], dim=-1)
        return {v.name: part.reshape((*part.shape[:-1], *v.shape)) for v, part in zip(self.real, parts, strict=True)}


def exact_parts(variables: Mapping[str, Variable], factors: Iterable[Factor], batch_shape: Size) -> ExactParts:
    """Take a graph with this batch shape apart.

    Raises:
        GraphError: if some variables are neither discrete nor real, or a factor joins the two kinds.
    """
    real = {name: variable for name, variable in variables.items() if is_gaussian(variable)}
    discrete = {name: variable for name, variable in variables.items() if name not in real}
    parts: tuple[list[Factor], list[Factor]] = ([], [])
    for factor in factors:
        kinds = {name in real for name in factor.names}
        if len(kinds) > 1:
            raise GraphError(
                f"FactorGraph: the factor {type(factor.energy).__name__} over {list(factor.names)} joins discrete and "
                "continuous variables, expected each factor over one kind for an exact answer. Condition on one of "
                "them (g.condition), or sample the graph."
            )
        parts[kinds == {True}].append(factor)
    gaussian = banded_gaussian(real, parts[True]) if real else None
    dtypes = [like_of(factor.energy).dtype for factor in parts[True]] or [torch.get_default_dtype()]
    tables = replace(log_tables(discrete, parts[False]), batch_shape=batch_shape)
    return ExactParts(tables, gaussian, tuple(real.values()), reduce(torch.promote_types, dtypes), batch_shape)


def values_of(tables: LogTables, states: Tensor) -> dict[str, Tensor]:
    """State numbers of elements, `(*lead, N)`, as values by variable, `(*lead, *shape)`."""
    dtype = tables.like.dtype
    return {v.name: v.values(tables.split(states)[v.name], dtype) for v in tables.variables}
