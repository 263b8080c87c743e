"""Factors over discrete and continuous variables: their tables over the discrete ones, given the continuous."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from pyro_ebm._core.errors import GraphError
from pyro_ebm._core.supports import MAX_ENUMERATED_STATES
from pyro_ebm.graphs.factor import Argument, Factor
from pyro_ebm.graphs.gibbs.blocks import DynamicGroup
from pyro_ebm.graphs.variable import Variable


class DynamicFactor:
    """A group of factors over discrete elements and continuous variables.

    Args:
        factor: the group.
        variables: all variables of the graph, by name.
        offsets: the number of each discrete variable's first element.

    Attributes:
        group: the scopes of its discrete elements.

    Raises:
        GraphError: if a factor has too many joint states of its discrete elements.
    """

    def __init__(self, factor: Factor, variables: Mapping[str, Variable], offsets: Mapping[str, int]) -> None:
        self._factor, self._variables = factor, variables
        columns: list[Tensor] = []
        sizes: list[int] = []
        for argument in factor.arguments:
            if argument.whole:
                (name,) = argument.names
                if name in offsets:
                    numbers = offsets[name] + torch.arange(variables[name].numel)
                    columns += [number.expand(factor.num_factors) for number in numbers]
                    sizes += [variables[name].num_states or 0] * len(numbers)
                continue
            for name, column in zip(argument.names, argument.columns, strict=True):
                if name in offsets:
                    columns.append(offsets[name] + factor.index[:, column].cpu())
                    sizes.append(variables[name].num_states or 0)
        if math.prod(sizes) > MAX_ENUMERATED_STATES:
            raise GraphError(
                f"FactorGraph: a factor {type(factor.energy).__name__} over {list(factor.names)} has "
                f"{math.prod(sizes)} joint states of its discrete elements, expected at most {MAX_ENUMERATED_STATES}. "
                "Wire it to elements (x[...]) if it is a sum over them."
            )
        self.group = DynamicGroup(torch.stack(columns, -1), tuple(sizes))

    def log_potentials(self, values: Mapping[str, Tensor]) -> Tensor:
        """The tables at values `(chains, *shape)` of the continuous variables: `(F, K_1, ..., K_r, chains)`."""
        factor, sizes = self._factor, self.group.sizes
        chains = len(next(value for name, value in values.items() if not self._variables[name].num_states))
        lead = (*sizes, chains, factor.num_factors) if factor.grouped else (*sizes, chains)
        given, at = [], 0
        for argument, event in zip(factor.arguments, factor.energy.event_shapes, strict=True):
            value, taken = self._argument(argument, values, at)
            at += taken
            given.append(value.expand(*lead, *event))
        table = -cast(Tensor, factor.energy(*given)).expand(lead)
        return (table if factor.grouped else table.unsqueeze(-1)).movedim(-1, 0)

    def _argument(self, argument: Argument, values: Mapping[str, Tensor], at: int) -> tuple[Tensor, int]:
        """An argument with dims for all discrete elements, chains and factors, and how many of the elements it has."""
        if argument.whole:
            (name,) = argument.names
            variable = self._variables[name]
            if not variable.num_states:
                value = values[name]
                return (value.unsqueeze(1) if self._factor.grouped else value), 0
            parts = torch.broadcast_tensors(*(self._states(name, at + k) for k in range(variable.numel)))
            joint = torch.stack(parts, -1)
            joint = joint if self._factor.grouped else joint.squeeze(-2)
            return joint.reshape(*joint.shape[:-1], *variable.shape), variable.numel
        columns, taken = [], 0
        for name, column in zip(argument.names, argument.columns, strict=True):
            if self._variables[name].num_states:
                columns.append(self._states(name, at + taken))
                taken += 1
            else:
                columns.append(values[name].reshape(len(values[name]), -1)[:, self._factor.index[:, column]])
        if not argument.stacked:
            return columns[0], taken
        dtype = torch.result_type(columns[0], columns[-1])
        return torch.stack(torch.broadcast_tensors(*(each.to(dtype) for each in columns)), -1), taken

    def _states(self, name: str, at: int) -> Tensor:
        """The values of a variable along the dim of the discrete element `at`, for all chains and factors alike."""
        variable = self._variables[name]
        numbers = torch.arange(variable.num_states or 0, device=self._factor.index.device)
        shape = [1] * (len(self.group.sizes) + 2)
        shape[at] = len(numbers)
        return variable.values(numbers).reshape(shape)
