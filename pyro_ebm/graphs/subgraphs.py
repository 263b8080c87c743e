"""Parts of a graph: the factors over some elements, and the elements that share a factor with some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor

from pyro_ebm._core.errors import GraphError
from pyro_ebm.graphs.conditioning import restricted
from pyro_ebm.graphs.factor import Factor
from pyro_ebm.graphs.variable import Elements, Variable


def kept_elements(
    variables: Mapping[str, Variable], names: Iterable[str], masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Which elements of each variable stay, `(numel,)`.

    Raises:
        GraphError: if a variable is unknown or a mask does not fit.
    """
    kept = {name: torch.zeros(variable.numel, dtype=torch.bool) for name, variable in variables.items()}
    for name in [*names, *masks]:
        if name not in variables:
            raise GraphError(f'FactorGraph.subgraph: got the variable "{name}", expected one of {list(variables)}.')
        mask = masks.get(name, torch.ones(variables[name].shape, dtype=torch.bool))
        if mask.dtype != torch.bool or mask.shape != variables[name].shape:
            raise GraphError(
                f'FactorGraph.subgraph, variable "{name}": got a mask of dtype {mask.dtype} and shape '
                f"{tuple(mask.shape)}, expected booleans of shape {tuple(variables[name].shape)}."
            )
        kept[name] = mask.flatten()
    return kept


def factors_within(factors: Iterable[Factor], kept: Mapping[str, Tensor]) -> list[Factor]:
    """The factors whose elements are all kept, wired to the elements that are left."""
    places = {name: mask.cumsum(0) - 1 for name, mask in kept.items()}
    result = []
    for factor in factors:
        inside = torch.ones(factor.num_factors, dtype=torch.bool)
        for argument in factor.arguments:
            if argument.whole:
                inside &= bool(kept[argument.names[0]].all())
            for name, column in zip(argument.names, argument.columns, strict=False):
                inside &= kept[name][factor.index[:, column]]
        if bool(inside.any()):
            rows = torch.nonzero(inside).squeeze(-1)
            result.append(restricted(factor, rows, 0, {}, places))
    return result


def markov_blanket(
    variables: Mapping[str, Variable], factors: Iterable[Factor], elements: Variable | Elements
) -> dict[str, Tensor]:
    """See `FactorGraph.markov_blanket`."""
    whole = isinstance(elements, Variable)
    variable = cast(Variable, elements) if whole else cast(Elements, elements).variable
    asked = torch.zeros(variable.numel, dtype=torch.bool)
    asked[... if whole else cast(Elements, elements).index.flatten()] = True
    found = {name: torch.zeros(each.numel, dtype=torch.bool) for name, each in variables.items()}
    for factor in factors:
        touched = torch.zeros(factor.num_factors, dtype=torch.bool)
        for argument in factor.arguments:
            for name, column in zip(argument.names, argument.columns, strict=False):
                if name == variable.name:
                    touched |= asked[factor.index[:, column]]
            if argument.whole and argument.names[0] == variable.name:
                touched[:] = True
        for argument in factor.arguments:
            if argument.whole and bool(touched.any()):
                found[argument.names[0]][:] = True
            for name, column in zip(argument.names, argument.columns, strict=False):
                found[name][factor.index[touched, column]] = True
    found[variable.name] &= ~asked
    return {name: mask.reshape(variables[name].shape) for name, mask in found.items()}
