"""Evidence makes a smaller graph, and so does leaving variables out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Size, Tensor

from pyro_ebm._core.concrete import to_numpy, true_entries
from pyro_ebm._core.errors import GraphError
from pyro_ebm._core.supports import strip_independent, with_event_dim
from pyro_ebm._core.validation import validation_enabled
from pyro_ebm.energies import BilinearEnergy
from pyro_ebm.graphs.factor import Argument, Factor, wire
from pyro_ebm.graphs.localize import localized
from pyro_ebm.graphs.partial import FieldOfOther, Given, PartialEnergy
from pyro_ebm.graphs.variable import Variable


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of a variable.

    Attributes:
        variable: the variable.
        value: its values, `(*batch, *shape)`; those of free elements do not count.
        free: the numbers of its free elements, `(n,)`.
    """

    variable: Variable
    value: Tensor
    free: Tensor

    @property
    def flat(self) -> Tensor:
        """The values side by side, `(*batch, numel)`."""
        return self.value.reshape(*self.value.shape[: self.value.dim() - len(self.variable.shape)], -1)

    @property
    def batch_shape(self) -> Size:
        """The batch shape of the values."""
        return Size(self.flat.shape[:-1])

    def complete(self, free: Tensor | None) -> Tensor:
        """The whole array, `(*lead, *shape)`, from values of the free elements, `(*lead, n)`."""
        if free is None:
            return self.value
        lead = torch.broadcast_shapes(free.shape[:-1], self.flat.shape[:-1])
        index = self.free.expand(*lead, -1)
        dtype = torch.promote_types(free.dtype, self.value.dtype)
        merged = self.flat.to(dtype).expand(*lead, -1).scatter(-1, index, free.expand(*lead, -1).to(dtype))
        return merged.reshape((*lead, *self.variable.shape))


def read_evidence(variable: Variable, given: Tensor | tuple[Tensor, Tensor]) -> Evidence:
    """Check what is given of a variable: its values, or its values with a mask of which are known.

    Raises:
        GraphError: if shapes do not fit, or a value is not one of the variable's.
    """
    value, mask = given if isinstance(given, tuple) else (given, torch.ones(variable.shape, dtype=torch.bool))
    what = f'FactorGraph.condition, variable "{variable.name}"'
    if not isinstance(value, Tensor) or not isinstance(mask, Tensor):
        raise GraphError(f"{what}: got {type(value).__name__}, expected a tensor, or (values, mask).")
    dims = len(variable.shape)
    if value.dim() < dims or value.shape[value.dim() - dims :] != variable.shape:
        raise GraphError(
            f"{what}: got values of shape {tuple(value.shape)}, expected (*batch, *{tuple(variable.shape)})."
        )
    if mask.dtype != torch.bool or mask.shape != variable.shape:
        raise GraphError(
            f"{what}: got a mask of dtype {mask.dtype} and shape {tuple(mask.shape)}, expected booleans of shape "
            f"{tuple(variable.shape)}: true where values are known, and the same for a whole batch."
        )
    if strip_independent(variable.support).event_dim and not bool(mask.all()):
        raise GraphError(
            f"{what}: got a mask, expected all of it to be known: elements of {variable.support} depend on one another."
        )
    if variable.num_states is not None:
        known = torch.where(mask, value, variable.values(torch.zeros_like(value, dtype=torch.long)).to(value.dtype))
        value = variable.values(variable.states(known), value.dtype if value.is_floating_point() else None)
    elif not value.is_floating_point():
        value = value.to(torch.get_default_dtype())
    if variable.num_states is None and validation_enabled() and not bool(_inside(variable, value, mask).all()):
        raise GraphError(f"{what}: got values outside of its support {variable.support}, expected them in it.")
    return Evidence(variable, value, true_entries(~mask.flatten()))


def _inside(variable: Variable, value: Tensor, mask: Tensor) -> Tensor:
    support = strip_independent(variable.support)
    inside: Tensor = support.check(value)
    return inside if support.event_dim else inside | ~mask


def reduced_variable(variable: Variable, free: Tensor) -> Variable:
    """The variable of some elements of another, side by side."""
    support = strip_independent(variable.support)
    return Variable(variable.name, Size([len(free)]), with_event_dim(support, 1, variable.name))


def conditioned(
    factors: Iterable[Factor], variables: Mapping[str, Variable], evidence: Mapping[str, Evidence]
) -> list[Factor]:
    """The factors of the graph that is left."""
    result = []
    for factor in factors:
        if not evidence.keys() & set(factor.names):
            result.append(factor)
            continue
        field = _field(factor, evidence, variables)
        parts = [field] if field is not None else localized(factor, variables)
        for part in parts:
            result += [part] if part is field else _conditioned(part, evidence)
    return result


def _field(factor: Factor, evidence: Mapping[str, Evidence], variables: Mapping[str, Variable]) -> Factor | None:
    """A bilinear form with one side known is a field on the other: far fewer factors than its pairs."""
    energy = factor.energy
    if not isinstance(energy, BilinearEnergy) or factor.grouped:
        return None
    names = [argument.names[0] for argument in factor.arguments]
    known = [name in evidence and not len(evidence[name].free) for name in names]
    if sum(known) != 1 or names[known.index(False)] in evidence:
        return None
    first = known[0]
    field = FieldOfOther(energy, evidence[names[0 if first else 1]].value, known_first=first)
    other = variables[names[1 if first else 0]]
    return wire(field, [other[torch.arange(other.numel)]])


def _conditioned(factor: Factor, evidence: Mapping[str, Evidence]) -> list[Factor]:
    """A group of factors, split by which of their elements are known."""
    places = {name: _places(each) for name, each in evidence.items()}
    index = to_numpy(factor.index)
    known = np.zeros(index.shape, dtype=bool)
    for column, name in enumerate(factor.columns):
        if name in evidence:
            known[:, column] = to_numpy(places[name])[index[:, column]] < 0
    patterns, number = np.unique(known, axis=0, return_inverse=True)
    parts = []
    for each, pattern in enumerate(patterns.tolist()):
        rows = torch.from_numpy(np.flatnonzero(number.reshape(-1) == each))
        parts.append(restricted(factor, rows, pattern, evidence, places))
    return parts


def restricted(
    factor: Factor,
    rows: Tensor,
    pattern: Sequence[bool],
    evidence: Mapping[str, Evidence],
    places: Mapping[str, Tensor],
) -> Factor:
    """Some factors of a group, with some of their elements known.

    Args:
        factor: the group.
        rows: which of its factors, `(R,)`.
        pattern: which columns of elements are known.
        evidence: by variable.
        places: by variable, the new numbers of elements, `(numel,)`.
    """
    given: list[Given] = []
    arguments: list[Argument] = []
    columns: list[Tensor] = []
    for argument in factor.arguments:
        if argument.whole:
            (name,) = argument.names
            each = evidence.get(name)
            free = None if each is None or not len(each.free) else each.free
            given.append(Given((None if each is None else each.value,), whole=True, free_elements=free))
            if given[-1].num_free:
                arguments.append(argument)
            continue
        values: list[Tensor | None] = []
        for name, column in zip(argument.names, argument.columns, strict=True):
            index = factor.index[rows, column]
            if pattern[column]:
                values.append(evidence[name].flat[..., index])
                continue
            values.append(None)
            arguments.append(Argument((name,), (len(columns),)))
            columns.append(places[name][index] if name in places else index)
        given.append(Given(tuple(values), stacked=argument.stacked))
    index = torch.stack(columns, -1) if columns else torch.empty(1, 0, dtype=torch.long)
    everything = len(rows) == factor.num_factors
    if everything and all(each.num_free == len(each.values) and each.free_elements is None for each in given):
        return Factor(factor.energy, factor.arguments, index)
    energy = PartialEnergy(
        factor.energy,
        given,
        grouped=factor.grouped,
        rows=None if everything else rows,
        num_factors=factor.num_factors,
    )
    return Factor(energy, arguments, index)


def _places(evidence: Evidence) -> Tensor:
    """The new number of each element among the free ones, -1 where it is known, `(numel,)`."""
    places = torch.full((evidence.variable.numel,), -1)
    places[evidence.free] = torch.arange(len(evidence.free))
    return places
