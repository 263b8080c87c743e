"""Parts of a graph: the factors over some elements, and the elements that share a factor with some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import torch
from torch import Tensor

from pyro_ebm._core.errors import GraphError
from pyro_ebm.graphs.conditioning import restricted
from pyro_ebm.graphs.factor import Factor
from pyro_ebm.graphs.localize import localized
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


def factors_within(
    factors: Iterable[Factor], variables: Mapping[str, Variable], kept: Mapping[str, Tensor]
) -> list[Factor]:
    """The factors whose elements are all kept, wired to the elements that are left.

    Where a form over whole variables loses some of their elements, its terms over the others stay.
    """
    places = {name: mask.cumsum(0) - 1 for name, mask in kept.items()}
    complete = {name for name, mask in kept.items() if bool(mask.all())}
    result = []
    for factor in factors:
        whole = {argument.names[0] for argument in factor.arguments if argument.whole}
        for part in [factor] if whole <= complete else localized(factor, variables):
            rows = _rows_within(part, kept, complete)
            if len(rows):
                result.append(restricted(part, rows, [False] * part.index.shape[1], {}, places))
    return result


def _rows_within(factor: Factor, kept: Mapping[str, Tensor], complete: Set[str]) -> Tensor:
    """Which of a group's factors have elements that are all kept, `(R,)`."""
    inside = torch.ones(factor.num_factors, dtype=torch.bool)
    if any(argument.names[0] not in complete for argument in factor.arguments if argument.whole):
        inside[:] = False
    for column, name in enumerate(factor.columns):
        inside &= kept[name][factor.index[:, column].cpu()]
    return torch.nonzero(inside).squeeze(-1)


def markov_blanket(
    variables: Mapping[str, Variable], factors: Iterable[Factor], elements: Variable | Elements
) -> dict[str, Tensor]:
    """See `FactorGraph.markov_blanket`."""
    variable = elements.variable if isinstance(elements, Elements) else elements
    if variables.get(variable.name) is not variable:
        raise GraphError(
            f"FactorGraph.markov_blanket: got {variable!r}, expected a variable of this graph (it has "
            f"{list(variables)}). Use g[{variable.name!r}] of the graph g that is asked."
        )
    asked = torch.zeros(variable.numel, dtype=torch.bool)
    asked[elements.index.flatten() if isinstance(elements, Elements) else ...] = True
    found = {name: torch.zeros(each.numel, dtype=torch.bool) for name, each in variables.items()}
    for factor in (part for each in factors for part in localized(each, variables)):
        index = factor.index.cpu()
        whole = [argument.names[0] for argument in factor.arguments if argument.whole]
        touched = torch.full((factor.num_factors,), variable.name in whole)
        for column, name in enumerate(factor.columns):
            if name == variable.name:
                touched |= asked[index[:, column]]
        for column, name in enumerate(factor.columns):
            found[name][index[touched, column]] = True
        for name in whole:
            found[name] |= touched.any()
    found[variable.name] &= ~asked
    return {name: mask.reshape(variables[name].shape) for name, mask in found.items()}
