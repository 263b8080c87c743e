"""`FactorGraph`: an energy over named arrays of variables, as a sum of factors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Generator, Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_ebm._core.errors import GraphError
from pyro_ebm._core.shapes import broadcast, leading_shape
from pyro_ebm._core.supports import with_event_dim
from pyro_ebm.energies import Energy, ScaledEnergy
from pyro_ebm.graphs import elimination
from pyro_ebm.graphs.exact import Marginals, exact_marginals, exact_mode, exact_sample
from pyro_ebm.graphs.factor import Factor, wire
from pyro_ebm.graphs.tables import LogTables, log_tables
from pyro_ebm.graphs.variable import Elements, Variable


class FactorGraph(Energy):
    """A joint energy `E(x) = Σ_f e_f(x_f)` over named arrays of variables, discrete and continuous.

    It is an `Energy` over its variables in the order of their declaration. Values go by name as well: `g({"x": ...})`.

    Attributes:
        variables: by name, in the order of declaration.
        factors: the groups of factors.

    >>> g = FactorGraph()
    >>> x = g.variable("x", num_states=2, shape=(3, 3))
    >>> g.factor(PottsEnergy(torch.tensor(0.5)), x[:, :-1], x[:, 1:])
    >>> g.factor(PottsEnergy(torch.tensor(0.5)), x[:-1], x[1:])
    >>> g(torch.zeros(3, 3, dtype=torch.long))
    tensor(-6.)
    """

    factors: nn.ModuleList

    def __init__(self) -> None:
        super().__init__([])
        self.event_shapes, self.supports = (), ()
        self.variables: dict[str, Variable] = {}
        self.factors = nn.ModuleList()

    # -- building ----------------------------------------------------------------------------------------------------

    def variable(
        self,
        name: str,
        *,
        num_states: int | None = None,
        support: Constraint | None = None,
        shape: Sequence[int] = (),
    ) -> Variable:
        """Declare an array of variables.

        Args:
            name: its name.
            num_states: for labels `0, ..., num_states - 1`.
            support: else where each element lives: `spin`, `constraints.boolean`, `constraints.positive`, any other.
            shape: the shape of the array; it ends in the dims of the support, if that has some.

        Raises:
            GraphError: if the name is taken, or both or neither of `num_states` and `support` are given.
        """
        what = f'FactorGraph.variable("{name}")'
        if not name or name in self.variables:
            raise GraphError(f"{what}: got a name that is empty or taken, expected a new one.")
        if (num_states is None) == (support is None):
            raise GraphError(f"{what}: got num_states={num_states} and support={support}, expected one of them.")
        if num_states is not None and num_states < 1:
            raise GraphError(f"{what}: got num_states={num_states}, expected at least 1.")
        if any(size < 1 for size in shape):
            raise GraphError(f"{what}: got shape {tuple(shape)}, expected positive sizes.")
        each = constraints.integer_interval(0, num_states - 1) if num_states is not None else cast(Constraint, support)
        return self._add_variable(Variable(name, Size(shape), with_event_dim(each, len(shape), what)))

    def _add_variable(self, variable: Variable) -> Variable:
        self.variables[variable.name] = variable
        self.event_shapes += (variable.shape,)
        self.supports += (variable.support,)
        return variable

    def factor(self, energy: Energy, *given: Variable | Elements) -> None:
        """Add a group of factors: an energy over elements, scope by scope, or over whole variables.

        Args:
            energy: over elements (event shape `()`, or `(r,)` for the r elements of a scope together), with batch shape
                `(*batch, F)` or one that broadcasts with it; or over whole variables, with their shapes.
            given: variables of this graph, or `x[...]`, in the order of the energy's variables; see `Variable`.

        Raises:
            GraphError: if what is given does not fit the energy, or is not of this graph.
        """
        if not isinstance(energy, Energy):
            raise TypeError(
                f"FactorGraph.factor: got {type(energy).__name__}, expected an Energy; wrap it with energy(...)."
            )
        for each in given:
            variable = each.variable if isinstance(each, Elements) else each
            if not isinstance(variable, Variable) or self.variables.get(variable.name) is not variable:
                raise GraphError(
                    f"FactorGraph.factor({type(energy).__name__}): got {variable!r}, expected a variable of this graph "
                    f"(it has {list(self.variables)})."
                )
        self._add_factor(wire(energy, given))

    def _add_factor(self, factor: Factor) -> None:
        self.batch_shape = broadcast([self.batch_shape, factor.batch_shape], "FactorGraph")
        self.factors.append(factor)

    def __getitem__(self, name: str) -> Variable:
        """The variable of a name."""
        if name not in self.variables:
            raise GraphError(f'FactorGraph: got the variable "{name}", expected one of {list(self.variables)}.')
        return self.variables[name]

    # -- the energy --------------------------------------------------------------------------------------------------

    def forward(self, *values: Any) -> Tensor:
        """The joint energy.

        Args:
            values: `(*sample, *batch, *shape)` for each variable in order, or a mapping with one by each name.

        Returns:
            `(*sample, *batch)`.

        Raises:
            GraphError: if one is missing or unknown.
            EnergyShapeError: if a shape does not fit.
        """
        named = self.named_values(values)
        leads = [leading_shape(named[n], v.shape, f'FactorGraph, variable "{n}"') for n, v in self.variables.items()]
        lead = broadcast([self.batch_shape, *leads], "FactorGraph")
        shapes = {name: variable.shape for name, variable in self.variables.items()}
        total: Tensor | None = None
        for factor in self.factors:
            each = factor(named, shapes)
            total = each if total is None else total + each
        return torch.zeros(lead) if total is None else total.expand(lead)

    def named_values(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """Values by name, from a mapping or in order.

        Raises:
            GraphError: if one is missing or unknown.
        """
        if len(values) == 1 and isinstance(values[0], Mapping):
            named = dict(values[0])
        elif len(values) == len(self.variables):
            named = dict(zip(self.variables, values, strict=True))
        else:
            raise GraphError(f"FactorGraph: got {len(values)} values, expected one for each of {list(self.variables)}.")
        if named.keys() != self.variables.keys():
            raise GraphError(f"FactorGraph: got values for {list(named)}, expected them for {list(self.variables)}.")
        return named

    # -- exact answers -----------------------------------------------------------------------------------------------

    def log_tables(self) -> LogTables:
        """The graph as tables of log-potentials over numbered elements: what the engines take.

        Raises:
            GraphError: if a variable is continuous.
            TreewidthError: if a factor over a whole variable has too many states for a table.
        """
        return log_tables(self.variables, cast(Iterable[Factor], self.factors))

    def log_partition(self) -> Tensor:
        """Log Z in nats, `(*batch,)`, differentiable.

        Raises:
            TreewidthError: if the treewidth is too large for it; it names the width, and what to do.
        """
        return elimination.log_partition(self.log_tables())

    def marginals(self) -> Marginals:
        """The marginal probabilities of all elements and of all factors' scopes, differentiable.

        Raises:
            TreewidthError: if the treewidth is too large for it.
        """
        return exact_marginals(self.log_tables())

    def mode(self) -> dict[str, Tensor]:
        """A most probable joint state, by variable `(*batch, *shape)`.

        Raises:
            TreewidthError: if the treewidth is too large for it.
        """
        return exact_mode(self.log_tables())

    def sample(self, sample_shape: Sequence[int] = (), *, generator: Generator | None = None) -> dict[str, Tensor]:
        """Exact draws, by variable `(*sample, *batch, *shape)`.

        Raises:
            TreewidthError: if the treewidth is too large for it.
        """
        return exact_sample(self.log_tables(), Size(sample_shape), generator)

    def entropy(self) -> Tensor:
        """The entropy in nats, `(*batch,)`.

        Raises:
            TreewidthError: if the treewidth is too large for it.
        """
        return elimination.entropy(self.log_tables())

    # -- algebra -----------------------------------------------------------------------------------------------------

    def __add__(self, other: object) -> Energy:
        """Join with another graph on the names of variables, or add an energy over these variables as a factor."""
        if isinstance(other, FactorGraph):
            return join([self, other])
        if isinstance(other, Energy):
            joined = join([self])
            joined.factor(other, *joined.variables.values())
            return joined
        return super().__add__(other)

    def __mul__(self, weight: object) -> Energy:
        """Every factor at inverse temperature `weight`, a number or `(*batch,)`."""
        if not isinstance(weight, (int, float, Tensor)):
            return NotImplemented
        scaled = join([self])
        scaled.factors = nn.ModuleList()
        for factor in self.factors:
            each = cast(Factor, factor)
            own = weight.unsqueeze(-1) if isinstance(weight, Tensor) and each.grouped and weight.dim() else weight
            scaled._add_factor(Factor(ScaledEnergy(own, each.energy), each.arguments, each.index))
        return scaled

    __rmul__ = __mul__

    def __neg__(self) -> Energy:
        """Every factor's energy with the other sign."""
        return self * -1.0


def join(graphs: Sequence[FactorGraph]) -> FactorGraph:
    """The sum of graphs, which share the variables that have the same name; factors are shared, not copied.

    Raises:
        GraphError: if variables of one name differ.
    """
    joined = FactorGraph()
    for graph in graphs:
        for name, variable in graph.variables.items():
            present = joined.variables.get(name)
            if present is None:
                joined._add_variable(variable)
            elif not present.same_as(variable):
                raise GraphError(f"FactorGraph: got {present!r} and {variable!r}, expected the same under one name.")
        for factor in graph.factors:
            joined._add_factor(cast(Factor, factor))
    return joined


def subgraph(graph: FactorGraph, factors: Iterable[nn.Module], *, only: Sequence[str] | None = None) -> FactorGraph:
    """Some of the factors, which are shared, not copied, over all variables or some."""
    part = FactorGraph()
    for name, variable in graph.variables.items():
        if only is None or name in only:
            part._add_variable(variable)
    for factor in factors:
        part._add_factor(cast(Factor, factor))
    part.batch_shape = graph.batch_shape
    return part
