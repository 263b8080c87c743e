"""What single changes of discrete data do to the log density."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from pyro_ebm._core.errors import TreewidthError
from pyro_ebm._core.protocols import Density
from pyro_ebm._core.supports import state_range
from pyro_ebm.graphs.tables import LogTables
from pyro_ebm.objectives.data import lead_of, log_density
from pyro_ebm.objectives.decoding import graph_of


def site_changes(density: Density, data: Tensor) -> tuple[Tensor, Tensor]:
    """The log density of all states of each element, the others being as in the data, up to a constant for each.

    Of a `FactorGraph` by what its factors say of each element, exactly; of any other by evaluating it at every single
    change, all in one batch.

    Args:
        density: over a finite support.
        data: `(*sample, *batch, *event)`.

    Returns:
        The log weights `(*sample, *batch, n, K)` of the n elements of an event, and the number of each one's state in
        the data, `(*sample, *batch, n)`.
    """
    low, step, states = cast(tuple[int, int, int], state_range(density.support))
    lead, size = lead_of(density, data), density.event_shape.numel()
    numbers = ((data - low) / step).round().long().reshape(*lead, size)
    tables = _tables(density)
    if tables is None:
        return _by_evaluation(density, data, low + step * torch.arange(states), numbers), numbers
    log_density(density, data, "data")  # whether it is finite
    return _by_tables(tables, numbers, states), numbers


def _by_tables(tables: LogTables, numbers: Tensor, states: int) -> Tensor:
    """The sum of what each factor says of its elements: the row of its table that its other elements' states choose."""
    weights = tables.like.new_zeros(*numbers.shape, states)
    for group in tables.groups:
        scopes = group.scopes.to(numbers.device)
        table = group.log_potentials.expand(*group.log_potentials.shape[: -group.arity - 1], len(scopes), *group.sizes)
        for place in range(group.arity):
            if group.arity == 1:
                chosen = table.expand(*numbers.shape[:-1], len(scopes), states)
            else:
                rows = table.movedim(table.dim() - group.arity + place, -1).flatten(-group.arity, -2)
                row = _row(numbers[..., scopes], place, states)
                index = row[..., None, None].expand(*row.shape, 1, states)
                chosen = rows.expand(*row.shape, *rows.shape[-2:]).gather(-2, index).squeeze(-2)
            weights = weights.index_add(-2, scopes[:, place], chosen)
    return weights


def _row(states_of_scopes: Tensor, place: int, states: int) -> Tensor:
    """The number of the row that the other elements' states choose, `(*lead, F, r)` to `(*lead, F)`."""
    row = torch.zeros_like(states_of_scopes[..., 0])
    for other in range(states_of_scopes.shape[-1]):
        row = row if other == place else row * states + states_of_scopes[..., other]
    return row


def _by_evaluation(density: Density, data: Tensor, values: Tensor, numbers: Tensor) -> Tensor:
    event, size, states = density.event_shape, density.event_shape.numel(), len(values)
    flat = data.reshape(*numbers.shape)
    present = log_density(density, data, "data")
    shift = torch.arange(1, states, device=data.device).reshape(-1, *[1] * numbers.dim())
    others = (numbers + shift) % states  # (K - 1, *lead, n): the numbers of the other states
    changed_to = values.to(data.device)[others].to(data.dtype).movedim(-1, 1)  # (K - 1, n, *lead)
    here = torch.eye(size, dtype=torch.bool, device=data.device)
    here = here.reshape(size, *[1] * (numbers.dim() - 1), size)
    changed = torch.where(here, changed_to.unsqueeze(-1), flat)  # (K - 1, n, *lead, n)
    at_changed = log_density(
        density, changed.reshape(*changed.shape[:-1], *event), "noise", may_be_forbidden=True
    ).movedim(1, -1)
    weights = torch.cat([present.unsqueeze(-1).expand(1, *numbers.shape), at_changed])  # by shift
    index = (torch.arange(states, device=data.device) - numbers.unsqueeze(-1)) % states
    return weights.movedim(0, -1).gather(-1, index)


def log_ratios(density: Density, data: Tensor) -> Tensor:
    """`log p̃(x') - log p̃(x)` of all single changes x' of each element, `(*sample, *batch, n, K - 1)`."""
    weights, numbers = site_changes(density, data)
    states = weights.shape[-1]
    shift = torch.arange(1, states, device=data.device)
    others = weights.gather(-1, (numbers.unsqueeze(-1) + shift) % states)
    return others - weights.gather(-1, numbers.unsqueeze(-1))


def _tables(density: Density) -> LogTables | None:
    """The tables of the density's graph, if it is one, and its factors are local."""
    graph = graph_of(density)
    if graph is None:
        return None
    try:
        return graph.log_tables()
    except TreewidthError:
        return None
