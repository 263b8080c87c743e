"""A batched group of factors: one energy, applied to many scopes of variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import cast

import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_ebm._core.concrete import concrete, to_numpy
from pyro_ebm._core.errors import GraphError
from pyro_ebm._core.shapes import broadcast, check_energy_shape
from pyro_ebm._core.supports import same_support, strip_independent, with_event_dim
from pyro_ebm.energies import Energy
from pyro_ebm.graphs.variable import Elements, Variable


@dataclass(frozen=True)
class Argument:
    """What an energy is given as one of its variables.

    Attributes:
        names: the names of the graph's variables, one for each element; one for a whole variable.
        columns: for each element, which column of the factor's index has its number; nothing if the variable is whole.
        stacked: whether the elements make a vector.
    """

    names: tuple[str, ...]
    columns: tuple[int, ...] = ()
    stacked: bool = False

    @property
    def whole(self) -> bool:
        """Whether the energy sees the whole array of one variable."""
        return not self.columns


class Factor(nn.Module):
    """An energy wired to the variables of a graph: a group of factors, whose energies add.

    With elements among its arguments it is F factors, `E(x) = Σ_f e_f(x[scope_f])`, and the energy has the batch shape
    `(*batch, F)`, or one that broadcasts to it; whole variables are then seen by each of the F. Else it is one.

    Attributes:
        energy: the energy.
        arguments: what each of its variables is.
        index: element numbers, `(F, columns)`; `(1, 0)` if the variables are whole.
    """

    index: Tensor

    def __init__(self, energy: Energy, arguments: Sequence[Argument], index: Tensor) -> None:
        super().__init__()
        self.energy = energy
        self.arguments = tuple(arguments)
        self.register_buffer("index", concrete(index), persistent=False)

    @property
    def grouped(self) -> bool:
        """Whether it is a group over elements, whose energy has F as its last batch dim."""
        return self.index.shape[1] > 0

    @property
    def num_factors(self) -> int:
        """The number F of factors."""
        return len(self.index)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its variables, each once."""
        return tuple(dict.fromkeys(name for argument in self.arguments for name in argument.names))

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the variables whose elements the columns of the index are."""
        return tuple(name for argument in self.arguments if not argument.whole for name in argument.names)

    def elements(self, variables: Mapping[str, Variable], offsets: Mapping[str, int]) -> Tensor:
        """Its scopes by the numbers that elements have in a graph, `(F, r)`, on the host; whole variables spread out.

        Args:
            variables: of the graph, by name.
            offsets: the number of the first element of each.
        """
        parts = []
        for argument in self.arguments:
            if argument.whole:
                (name,) = argument.names
                parts.append((offsets[name] + torch.arange(variables[name].numel)).expand(self.num_factors, -1))
                continue
            for name, column in zip(argument.names, argument.columns, strict=True):
                parts.append(offsets[name] + self.index[:, column, None].cpu())
        return concrete(torch.cat(parts, -1)) if parts else torch.empty(1, 0, dtype=torch.long)

    @property
    def batch_shape(self) -> Size:
        """The batch shape, without F."""
        shape = self.energy.batch_shape
        return Size(shape[:-1]) if self.grouped else shape

    def forward(self, values: Mapping[str, Tensor], shapes: Mapping[str, Size]) -> Tensor:
        """The sum of its factors' energies.

        Args:
            values: by variable, `(*sample, *batch, *shape)`.
            shapes: by variable, its shape.

        Returns:
            `(*sample, *batch)`.
        """
        given = [self._argument(argument, values, shapes) for argument in self.arguments]
        energy = cast(Tensor, self.energy(*given))
        leads = [
            value.shape[: value.dim() - len(event)]
            for value, event in zip(given, self.energy.event_shapes, strict=True)
        ]
        what = f"FactorGraph, factor {type(self.energy).__name__} over {list(self.names)}"
        check_energy_shape(energy, broadcast([self.energy.batch_shape, *leads], what), what)
        return energy.expand(*energy.shape[:-1], self.num_factors).sum(-1) if self.grouped else energy

    def _argument(self, argument: Argument, values: Mapping[str, Tensor], shapes: Mapping[str, Size]) -> Tensor:
        if argument.whole:
            (name,) = argument.names
            value = values[name]
            return value.unsqueeze(value.dim() - len(shapes[name])) if self.grouped else value
        columns = []
        for name, column in zip(argument.names, argument.columns, strict=True):
            value = values[name]
            flat = value.reshape(*value.shape[: value.dim() - len(shapes[name])], -1)
            columns.append(flat[..., self.index[:, column]])
        return torch.stack(torch.broadcast_tensors(*columns), -1) if argument.stacked else columns[0]

    def extra_repr(self) -> str:
        """The variables and the number of factors, for `repr`."""
        return f"{list(self.names)}" + (f", num_factors={self.num_factors}" if self.grouped else "")


def wire(energy: Energy, given: Sequence[Variable | Elements]) -> Factor:
    """Make a factor of an energy and what it is given.

    Elements `(F, r)` fill r arguments that are single elements, or an argument that is a vector of r; elements of
    several variables are wired scope by scope, and one scope broadcasts to F.

    Raises:
        GraphError: if they do not fit the energy's variables.
    """
    what = f"FactorGraph.factor({type(energy).__name__})"
    if not given:
        raise GraphError(f"{what}: got an empty scope, expected at least one variable or selection of elements.")
    pending: list[Variable | _Column] = []
    for each in given:
        pending += [each] if isinstance(each, Variable) else [_Column(each.variable, c) for c in each.index.unbind(1)]
    arguments: list[Argument] = []
    columns: list[Tensor] = []
    for number, (shape, support) in enumerate(zip(energy.event_shapes, energy.supports, strict=True)):
        variable = pending[0] if pending else None
        if isinstance(variable, Variable):
            del pending[0]
            if shape != variable.shape:
                raise GraphError(
                    f'{what}: got variable "{variable.name}" of shape {tuple(variable.shape)}, expected the energy\'s '
                    f"event shape {tuple(shape)}. Index the variable to apply the energy to its elements."
                )
            _check_support(what, variable, support)
            arguments.append(Argument((variable.name,)))
            continue
        width = shape.numel()
        taken = [each for each in pending[:width] if isinstance(each, _Column)]
        if len(shape) > 1 or len(taken) < width:
            raise GraphError(
                f"{what}: got {len(taken)} elements in each scope for the energy's variable {number} of event shape "
                f"{tuple(shape)}, expected {width if len(shape) < 2 else 'a whole variable'}."
            )
        del pending[:width]
        for column in taken:
            _check_support(what, column.variable, support)
        numbers = tuple(range(len(columns), len(columns) + width))
        columns += [column.index for column in taken]
        arguments.append(Argument(tuple(column.variable.name for column in taken), numbers, stacked=len(shape) == 1))
    if pending:
        raise GraphError(
            f"{what}: got {len(pending)} more than the energy's {energy.num_variables} variables, expected one "
            "variable or one column of elements for each."
        )
    count = max((len(column) for column in columns), default=1)
    if any(len(column) not in (1, count) for column in columns):
        raise GraphError(
            f"{what}: got selections of {sorted({len(c) for c in columns})} scopes, expected as many in each, or one."
        )
    index = torch.stack([c.expand(count) for c in columns], -1) if columns else torch.empty(1, 0, dtype=torch.long)
    factor = Factor(energy, arguments, index)
    names = factor.columns
    whole = [argument.names[0] for argument in arguments if argument.whole]
    again = next((name for number, name in enumerate(whole) if name in names or name in whole[:number]), None)
    if again is not None:
        raise GraphError(
            f'{what}: got "{again}" as a whole, and again, expected each variable once. Use an energy over fewer '
            "variables: a QuadraticEnergy for the bilinear form of a variable with itself."
        )
    for one, other in combinations(range(len(columns)), 2):
        first, second = to_numpy(index[:, one]), to_numpy(index[:, other])
        if names[one] == names[other] and (first == second).any():
            row = int((first == second).argmax())
            raise GraphError(
                f'{what}: got element {first[row]} of "{names[one]}" twice in scope {row}, expected distinct '
                "elements. Use an energy over fewer variables for it."
            )
    if columns and energy.batch_shape[-1:] not in (Size(), Size([1]), Size([count])):
        raise GraphError(
            f"{what}: got an energy with batch shape {tuple(energy.batch_shape)} for {count} scopes, expected "
            f"{f'(*batch, {count}), ' if count > 1 else ''}(*batch, 1) or () for one that all scopes share."
        )
    return factor


@dataclass(frozen=True, eq=False)
class _Column:
    variable: Variable
    index: Tensor


def _check_support(what: str, variable: Variable, support: Constraint) -> None:
    """An energy must be defined where its variable lives: on its support, or on all reals."""
    own = with_event_dim(strip_independent(variable.support), support.event_dim, what)
    if not same_support(support, own) and not same_support(strip_independent(support), constraints.real):
        raise GraphError(
            f'{what}: got an energy on {support} for variable "{variable.name}" on {variable.support}, expected the '
            "same. Declare the energy there (support=...)."
        )
