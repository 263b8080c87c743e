"""`FactorGraph`: an energy over named arrays of variables, as a sum of factors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import networkx as nx
import torch
from torch import Generator, Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_ebm._core.errors import GraphError, TreewidthError
from pyro_ebm._core.shapes import broadcast, leading_shape
from pyro_ebm._core.supports import with_event_dim
from pyro_ebm.energies import Energy
from pyro_ebm.graphs.conditioning import Evidence, conditioned, read_evidence, reduced_variable
from pyro_ebm.graphs.exact import ExactParts, Marginals, exact_parts
from pyro_ebm.graphs.factor import Factor, wire
from pyro_ebm.graphs.gibbs.sweeps import GibbsSweeps, TemperingPath
from pyro_ebm.graphs.networks import edge_index, to_networkx
from pyro_ebm.graphs.scaled import scaled
from pyro_ebm.graphs.subgraphs import factors_within, kept_elements, markov_blanket
from pyro_ebm.graphs.tables import LogTables, log_tables
from pyro_ebm.graphs.variable import Elements, Variable


class FactorGraph(Energy):
    """A joint energy `E(x) = Σ_f e_f(x_f)` over named arrays of variables, discrete and continuous.

    It is an `Energy` over its variables in the order of their declaration. Values go by name as well: `g({"x": ...})`.

    Attributes:
        variables: by name, in the order of declaration.
        factors: the groups of factors.

    >>> from pyro_ebm import PottsEnergy
    >>> g = FactorGraph()
    >>> x = g.variable("x", num_states=2, shape=(3, 3))
    >>> g.factor(PottsEnergy(torch.tensor(0.5)), x[:, :-1], x[:, 1:])
    >>> g.factor(PottsEnergy(torch.tensor(0.5)), x[:-1], x[1:])
    >>> g(torch.zeros(3, 3, dtype=torch.long))
    tensor(-6.)
    """

    factors: nn.ModuleList

    def __init__(self) -> None:
        super().__init__((), support=())
        self.variables: dict[str, Variable] = {}
        self.factors = nn.ModuleList()
        self._evidence: tuple[dict[str, Evidence], ...] = ()
        self._sweepable: tuple[int, bool] | None = None  # how many factors there were when it was found out

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

    @property
    def _groups(self) -> list[Factor]:
        return [cast(Factor, factor) for factor in self.factors]

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
        return log_tables(self.variables, self._groups)

    def _exact(self) -> ExactParts:
        return exact_parts(self.variables, self._groups, self.batch_shape)

    def log_partition(self) -> Tensor:
        """Log Z in nats, `(*batch,)`, differentiable, twice as well.

        Exact answers are by elimination for discrete variables, and by a banded Cholesky factor for real ones with
        quadratic factors; the two kinds may share no factor.

        Raises:
            TreewidthError: if the treewidth is too large for it; it names the width, and what to do.
            GraphError: if variables are neither discrete nor Gaussian, or if a factor joins the two kinds.
            ValueError: if the Gaussian has no finite integral.
        """
        return self._exact().log_partition()

    def marginals(self) -> Marginals:
        """The marginals of all elements and of all factors' scopes, differentiable; errors as for `log_partition`."""
        return self._exact().marginals()

    def mode(self) -> dict[str, Tensor]:
        """A most probable joint state, by variable `(*batch, *shape)`; errors as for `log_partition`.

        Raises:
            ValueError: if no state is possible, for some element of the batch.
        """
        return self._exact().mode()

    def sample(self, sample_shape: Sequence[int] = (), *, generator: Generator | None = None) -> dict[str, Tensor]:
        """Exact draws, by variable `(*sample, *batch, *shape)`; errors as for `log_partition`.

        Raises:
            ValueError: if no state is possible, for some element of the batch.
        """
        return self._exact().sample(Size(sample_shape), generator)

    def entropy(self) -> Tensor:
        """The entropy in nats, `(*batch,)`, differential for real variables; errors as for `log_partition`."""
        return self._exact().entropy()

    # -- chains ------------------------------------------------------------------------------------------------------

    @property
    def has_gibbs_step(self) -> bool:
        """Whether it can be sampled by `gibbs_step`: one discrete variable, and factors that have tables."""
        if len(self.variables) != 1 or not all(each.num_states for each in self.variables.values()):
            return False
        structure = len(self.factors)
        if self._sweepable is None or self._sweepable[0] != structure:
            try:
                with torch.no_grad():
                    self.log_tables()
            except TreewidthError:
                self._sweepable = structure, False
            else:
                self._sweepable = structure, True
        return self._sweepable[1]

    @torch.no_grad()
    def gibbs_step(self, value: Tensor, generator: Generator | None = None, *, num_steps: int = 1) -> Tensor:
        """Chromatic Gibbs sweeps of chains, which leave `exp(-E)` invariant: for a graph over one discrete variable.

        Args:
            value: where the chains are, `(*chains, *batch, *shape)`.
            generator: of the random numbers; torch's global one by default.
            num_steps: how many sweeps.

        Raises:
            GraphError: if the graph has several variables, or a continuous one.
            TreewidthError: if a factor over the whole variable has too many states for a table.
        """
        return GibbsSweeps(self.log_tables())(value, generator, num_sweeps=num_steps)

    @torch.no_grad()
    def annealing_path(self, generator: Generator | None = None) -> TemperingPath:
        """The densities from the uniform one to the graph's, with Gibbs sweeps, for a graph over one discrete variable.

        Errors are those of `gibbs_step`.
        """
        return TemperingPath(self, self.log_tables(), generator)

    # -- smaller graphs ----------------------------------------------------------------------------------------------

    def condition(
        self,
        evidence: Mapping[str, Tensor | tuple[Tensor, Tensor]] | None = None,
        /,
        **named: Tensor | tuple[Tensor, Tensor],
    ) -> FactorGraph:
        """The graph over what is left when values are known: its energy is this one's, at these values.

        Evidence may have batch dims: one graph, and one set of values for each image.

        Args:
            evidence: by variable, its values `(*batch, *shape)`; or a pair of them and a mask `(*shape)` that is true
                where they are known. The free elements of such a variable are one of shape `(n,)` under its name, in
                row-major order; `complete` puts them back in place.
            named: the same as keywords.

        Raises:
            GraphError: if a variable is unknown, or what is given of it does not fit.
        """
        known = {name: read_evidence(self[name], given) for name, given in {**(evidence or {}), **named}.items()}
        left = FactorGraph()
        left._evidence = (*self._evidence, known)
        left.batch_shape = broadcast([each.batch_shape for each in known.values()], "FactorGraph.condition")
        for name, variable in self.variables.items():
            each = known.get(name)
            if each is None:
                left._add_variable(variable)
            elif len(each.free):
                left._add_variable(reduced_variable(variable, each.free))
        for factor in conditioned(self._groups, self.variables, known):
            left._add_factor(factor)
        return left

    def complete(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of a conditioned graph, `(*lead, *shape)` by variable, with the evidence put back in its place."""
        shapes = {name: variable.shape for name, variable in self.variables.items()}
        whole = dict(values)
        for known in reversed(self._evidence):
            for name, each in known.items():
                if len(each.free) and name not in whole:
                    raise GraphError(
                        f'FactorGraph.complete: got values for {list(whole)}, expected some for "{name}" as well: not '
                        "all of it is known."
                    )
                whole[name] = each.complete(whole.get(name))
                shapes[name] = each.variable.shape
        leads = [Size(value.shape[: value.dim() - len(shapes[name])]) for name, value in whole.items()]
        lead = broadcast(leads, "FactorGraph.complete")
        return {name: value.expand((*lead, *shapes[name])) for name, value in whole.items()}

    def subgraph(self, *names: str, **masks: Tensor) -> FactorGraph:
        """The graph over some variables, with the factors that are over these alone.

        Args:
            names: variables that stay whole.
            masks: by variable, which elements stay, `(*shape)`: they are one of shape `(n,)` under its name.

        Raises:
            GraphError: if a variable is unknown or a mask does not fit.
        """
        kept = kept_elements(self.variables, names, masks)
        part = FactorGraph()
        for name, variable in self.variables.items():
            mask = kept[name]
            if bool(mask.all()):
                part._add_variable(variable)
            elif bool(mask.any()):
                part._add_variable(reduced_variable(variable, torch.nonzero(mask).squeeze(-1)))
        for factor in factors_within(self._groups, self.variables, kept):
            part._add_factor(factor)
        return part

    def markov_blanket(self, elements: Variable | Elements) -> dict[str, Tensor]:
        """Which elements share a factor with some, and so make them independent of all others.

        Args:
            elements: a variable, or `x[...]`.

        Returns:
            By variable, booleans `(*shape)`; those asked about are not in it.

        Raises:
            GraphError: if the variable is not of this graph.
        """
        return markov_blanket(self.variables, self._groups, elements)

    def to_networkx(self) -> nx.Graph:
        """The bipartite graph of elements and factors, for networkx's algorithms and drawing.

        Nodes are `(name, *index)` with `bipartite=0` and `num_states`, and `(group, number)` with `bipartite=1` and
        `energy`.
        """
        return to_networkx(self.variables, self._groups)

    @classmethod
    def from_networkx(
        cls,
        graph: nx.Graph,
        edge_energy: Energy,
        node_energy: Energy | None = None,
        *,
        name: str = "x",
        num_states: int | None = None,
        support: Constraint | None = None,
    ) -> FactorGraph:
        """One variable on the nodes of a networkx graph, in their order, coupled along its edges, in theirs.

        Args:
            graph: the graph, undirected and without loops; parallel edges of a multigraph are a factor each.
            edge_energy: over the two ends of an edge, with batch shape `(*batch, edges)` or one that broadcasts.
            node_energy: over a node, with batch shape `(*batch, nodes)` or one that broadcasts.
            name: of the variable.
            num_states: as in `variable`.
            support: as in `variable`.

        Raises:
            GraphError: if the graph is directed, or a node has an edge to itself.
        """
        made = cls()
        x = made.variable(name, num_states=num_states, support=support, shape=(graph.number_of_nodes(),))
        edges = edge_index(graph)
        if len(edges):
            made.factor(edge_energy, x[edges])
        if node_energy is not None:
            made.factor(node_energy, x[:])
        return made

    # -- algebra -----------------------------------------------------------------------------------------------------

    def __add__(self, other: object) -> Energy:
        """Join with another graph on the names of variables, or add an energy over these variables as a factor."""
        if isinstance(other, FactorGraph):
            return join([self, other])
        return self._plus(other) if isinstance(other, Energy) else super().__add__(other)

    def _plus(self, other: Energy) -> Energy:
        joined = join([self])
        joined.factor(other, *joined.variables.values())
        return joined

    def __mul__(self, weight: object) -> Energy:
        """Every factor at inverse temperature `weight`, a number or `(*batch,)`."""
        if not isinstance(weight, (int, float, Tensor)):
            return NotImplemented
        multiple = join([self])
        multiple.factors = nn.ModuleList()
        for factor in self._groups:
            multiple._add_factor(scaled(weight, factor))
        return multiple

    __rmul__ = __mul__

    def __neg__(self) -> Energy:
        """Every factor's energy with the other sign."""
        return self * -1.0


def join(graphs: Sequence[FactorGraph]) -> FactorGraph:
    """The sum of graphs, which share the variables that have the same name; factors are shared, not copied.

    Raises:
        GraphError: if variables of one name differ, or what is known of one.
    """
    joined = FactorGraph()
    for graph in graphs:
        joined._evidence += tuple(known for known in graph._evidence if not any(known is e for e in joined._evidence))
        joined.batch_shape = broadcast([joined.batch_shape, graph.batch_shape], "FactorGraph")
        for name, variable in graph.variables.items():
            present = joined.variables.get(name)
            if present is None:
                joined._add_variable(variable)
            elif not present.same_as(variable):
                raise GraphError(f"FactorGraph: got {present!r} and {variable!r}, expected the same under one name.")
        for factor in graph._groups:
            joined._add_factor(factor)
    for name in {name for known in joined._evidence for name in known}:
        told = sum(name in known for known in joined._evidence)
        for graph in graphs:
            about = sum(name in known for known in graph._evidence)
            if about != told and (about or name in graph.variables):
                raise GraphError(
                    f'FactorGraph: got graphs that know different things of "{name}", expected the same evidence for '
                    "it. Join them first, and condition the joint graph."
                )
    return joined


def with_factors(graph: FactorGraph, factors: Iterable[nn.Module], *, only: Sequence[str] | None = None) -> FactorGraph:
    """Some of the factors, which are shared, not copied, over all variables or some."""
    part = FactorGraph()
    for name, variable in graph.variables.items():
        if only is None or name in only:
            part._add_variable(variable)
    for factor in factors:
        part._add_factor(cast(Factor, factor))
    part.batch_shape = graph.batch_shape
    return part
