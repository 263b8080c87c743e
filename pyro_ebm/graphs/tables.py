"""The discrete part of a graph as tables of log-potentials: what every exact and approximate engine takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Size, Tensor

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.errors import GraphError, TreewidthError
from pyro_ebm._core.shapes import broadcast
from pyro_ebm._core.supports import MAX_ENUMERATED_STATES
from pyro_ebm.energies import Energy, TableEnergy
from pyro_ebm.graphs.factor import Argument, Factor
from pyro_ebm.graphs.localize import localized
from pyro_ebm.graphs.variable import Variable, first_elements

# Entries of the largest table that is made: a gigabyte in float64.
MAX_TABLE_ENTRIES = 2**27


@dataclass(frozen=True, eq=False)
class TableGroup:
    """Factors of one shape.

    Attributes:
        scopes: the elements of each, numbered through the whole graph, `(F, r)`.
        log_potentials: `(*batch, F, K_1, ..., K_r)`, or with 1 for F where all share one table.
    """

    scopes: Tensor
    log_potentials: Tensor

    @property
    def arity(self) -> int:
        """How many variables each factor has, r; none for a constant."""
        return self.scopes.shape[1]

    @property
    def sizes(self) -> Size:
        """`(K_1, ..., K_r)`."""
        return Size(self.log_potentials.shape[self.log_potentials.dim() - self.arity :])

    @property
    def batch_shape(self) -> Size:
        """The batch dims of the tables."""
        return Size(self.log_potentials.shape[: self.log_potentials.dim() - self.arity - 1])


@dataclass(frozen=True, eq=False)
class LogTables:
    """A discrete graph: elements with their numbers of states, and tables over them.

    Attributes:
        variables: the variables, whose elements are numbered side by side.
        num_states: of each element.
        groups: the factors.
        batch_shape: what the batch dims of the tables broadcast to.
    """

    variables: tuple[Variable, ...]
    num_states: tuple[int, ...]
    groups: tuple[TableGroup, ...]
    batch_shape: Size

    def split(self, elements: Tensor) -> dict[str, Tensor]:
        """What is said of elements, `(*lead, N)`, by variable: `(*lead, *shape)`."""
        parts = elements.split([variable.numel for variable in self.variables], dim=-1)
        return {
            variable.name: part.reshape((*part.shape[:-1], *variable.shape))
            for variable, part in zip(self.variables, parts, strict=True)
        }

    @property
    def like(self) -> Tensor:
        """A tensor with the dtype and device of the tables."""
        return self.groups[0].log_potentials if self.groups else torch.empty(())


def log_tables(variables: Mapping[str, Variable], factors: Iterable[Factor]) -> LogTables:
    """The tables of a graph.

    Raises:
        GraphError: if a variable is continuous.
        TreewidthError: if a factor over a whole variable has too many states for a table.
    """
    num_states: list[int] = []
    for name, variable in variables.items():
        if variable.num_states is None:
            raise GraphError(
                f'FactorGraph: variable "{name}" is continuous, expected discrete ones alone for tables. Condition '
                "on it (g.condition), or sample the graph."
            )
        num_states += [variable.num_states] * variable.numel
    parts = [each for factor in factors for each in localized(factor, variables)]
    offsets = first_elements(variables)
    groups = [
        TableGroup(each.elements(variables, offsets), _log_potentials(each, variables))
        for each in parts
        if each.num_factors
    ]
    batch_shape = broadcast([group.batch_shape for group in groups], "FactorGraph")
    dtypes = [group.log_potentials.dtype for group in groups]
    widest = reduce(torch.promote_types, dtypes, torch.float32 if dtypes else torch.get_default_dtype())
    same = tuple(TableGroup(group.scopes, group.log_potentials.to(widest)) for group in groups)
    return LogTables(tuple(variables.values()), tuple(num_states), same, batch_shape)


def _log_potentials(factor: Factor, variables: Mapping[str, Variable]) -> Tensor:
    """`(*batch, F, K_1, ..., K_r)` or `(*batch, 1, K_1, ..., K_r)`."""
    energy = factor.energy
    if isinstance(energy, TableEnergy) and factor.grouped:
        given = energy.table
        return -(given if energy.batch_shape else given.unsqueeze(0))
    # Of the energy's own dtype: a number of higher precision would not raise that of the states it is multiplied by.
    like = like_of(energy)
    sizes: list[tuple[int, ...]] = []
    states: list[Tensor] = []
    for argument in factor.arguments:
        each, shape = _states_of(argument, energy, variables, like.dtype)
        states.append(each)
        sizes.append(shape)
    entries = math.prod(len(each) for each in states) * energy.batch_shape.numel()
    if entries > MAX_TABLE_ENTRIES:
        raise TreewidthError(
            f"FactorGraph: a factor {type(energy).__name__} over {list(factor.names)} needs a table of {entries:.3g} "
            f"entries, expected at most {MAX_TABLE_ENTRIES:.3g}. Condition on some variables (g.condition), wire it to "
            "elements (x[...]) if it is a sum over them, or sample the graph."
        )
    dims = len(sizes)
    batch = len(energy.batch_shape)
    values = []
    for number, (each, event) in enumerate(zip(states, energy.event_shapes, strict=True)):
        lead = [1] * number + [len(each)] + [1] * (dims - number - 1) + [1] * batch
        values.append(each.to(like.device).reshape(*lead, *event))
    table: Tensor = -energy(*values)
    if not table.is_floating_point():
        table = table.to(torch.get_default_dtype())
    table = table.movedim(tuple(range(dims)), tuple(range(-dims, 0)))
    with_factors = [*table.shape[:batch], 1] if not factor.grouped or not batch else table.shape[:batch]
    return table.reshape(*with_factors, *(size for shape in sizes for size in shape))


def _states_of(
    argument: Argument, energy: Energy, variables: Mapping[str, Variable], dtype: torch.dtype
) -> tuple[Tensor, tuple[int, ...]]:
    """All values of an argument, `(states, *event)`, and the sizes of the table's dims for it."""
    if not argument.whole and not argument.stacked:
        variable = variables[argument.names[0]]
        count = variable.num_states or 0
        return variable.values(torch.arange(count), dtype), (count,)
    names = argument.names
    members = [variables[name] for name in names]
    if argument.whole:
        members = members * members[0].numel
    sizes = tuple(member.num_states or 0 for member in members)
    if math.prod(sizes) > MAX_ENUMERATED_STATES:
        raise TreewidthError(
            f"FactorGraph: a factor {type(energy).__name__} over the whole of {list(names)} has "
            f"{math.prod(sizes):.3g} states, too many for a table. Wire it to elements (x[...]) if it is a sum over "
            "them, or sample the graph."
        )
    each = [member.values(torch.arange(size)).to(dtype) for member, size in zip(members, sizes, strict=True)]
    joint = torch.cartesian_prod(*each).reshape(-1, len(members))
    if all(value.dtype == torch.long for value in (member.values(torch.arange(1)) for member in members)):
        joint = joint.long()  # labels
    shape = variables[names[0]].shape if argument.whole else Size([len(members)])
    return joint.reshape(-1, *shape), sizes
