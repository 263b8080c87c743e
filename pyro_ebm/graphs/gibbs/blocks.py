"""From tables to blocks: which elements are resampled together, and what each reads of its neighbors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Size, Tensor

from pyro_ebm.graphs.coloring import color, neighbor_pairs
from pyro_ebm.graphs.gibbs.conditionals import ElementBlock, Lookup
from pyro_ebm.graphs.tables import LogTables, TableGroup

# An element with this many times fewer factors than another one goes to another block, for rows are padded.
_UNEQUAL = 4
# A matrix product takes over where this share of its entries is not zero.
_DENSE = 0.1


def unbatched(tables: LogTables) -> LogTables:
    """The batch of graphs as one graph: variables `(*batch, *shape)`, whose elements interact within a graph alone."""
    batch = tables.batch_shape
    count = batch.numel()
    if count == 1:
        return replace(tables, groups=tuple(_without_batch(group) for group in tables.groups), batch_shape=Size())
    number = torch.arange(count).unsqueeze(-1)
    places, start = [], 0
    for variable in tables.variables:
        own = torch.arange(variable.numel)
        places.append(start * count + number * variable.numel + own)
        start += variable.numel
    place = torch.cat(places, -1)  # (batch, elements)
    groups = []
    for group in tables.groups:
        size = len(group.scopes)
        table = group.log_potentials.expand(*batch, size, *group.sizes).reshape(count * size, *group.sizes)
        groups.append(TableGroup(place[:, group.scopes].reshape(count * size, group.arity), table))
    variables = tuple(replace(v, shape=batch + v.shape) for v in tables.variables)
    states = tuple(v.num_states or 0 for v in variables for _ in range(v.numel))
    return LogTables(variables, states, tuple(groups), Size())


def _without_batch(group: TableGroup) -> TableGroup:
    table = group.log_potentials
    return TableGroup(group.scopes, table.reshape(table.shape[len(group.batch_shape) :]))


@dataclass(frozen=True, eq=False)
class DynamicGroup:
    """Factors whose tables depend on continuous variables, and so come from the context.

    Attributes:
        scopes: the elements of each, `(F, r)`.
        sizes: their numbers of states, `(K_1, ..., K_r)`.
    """

    scopes: Tensor
    sizes: tuple[int, ...]


def rows_of(log_potentials: Tensor, arity: int, place: int) -> Tensor:
    """What a group's tables say of the element at a place: `(K, F rest, ...)`, or for two states the log odds.

    Args:
        log_potentials: `(F, K_1, ..., K_r, ...)`.
        arity: the number r.
        place: from 0 to `r - 1`.

    Returns:
        `(K, F * product of the other sizes, ...)`; for `K = 2` the log odds, `(1, ...)`.
    """
    rows = log_potentials.movedim(1 + place, 0).flatten(1, arity)
    return rows[1:] - rows[:1] if len(rows) == 2 else rows


def context_rows(log_potentials: Sequence[Tensor], groups: Sequence[DynamicGroup]) -> tuple[Tensor, ...]:
    """The context that blocks read: of tables `(F, K_1, ..., K_r, chains)` for each group, those of each place."""
    return tuple(
        torch.nn.functional.pad(rows_of(table, len(group.sizes), place), (0, 0, 0, 1))
        for table, group in zip(log_potentials, groups, strict=True)
        for place in range(len(group.sizes))
    )


def conditional_blocks(tables: LogTables, dynamic: Sequence[DynamicGroup] = ()) -> list[ElementBlock]:
    """The conditional distributions of all elements of a discrete graph, in blocks.

    Args:
        tables: of the graph, without batch dims (see `unbatched`).
        dynamic: more factors, whose tables come from the context (see `context_rows`).
    """
    scopes = [group.scopes for group in tables.groups] + [group.scopes for group in dynamic]
    layout = _layout(tables, scopes)
    return [_build(tables, dynamic, layout, number) for number in range(layout.count)]


@dataclass(frozen=True, eq=False)
class _Layout:
    """Which block each element is in, and where in it, `(N,)` each."""

    count: int
    block: Tensor
    row: Tensor
    num_states: Tensor

    def elements(self, number: int) -> Tensor:
        return (self.block == number).nonzero().flatten()


def _layout(tables: LogTables, scopes: Sequence[Tensor]) -> _Layout:
    states = torch.tensor(tables.num_states)
    groups = tuple(TableGroup(each, tables.like) for each in scopes)
    colors = color(len(states), neighbor_pairs(replace(tables, groups=groups)))
    degree = torch.zeros(len(states), dtype=torch.long)
    for each in scopes:
        if each.shape[1] > 1:
            degree += torch.bincount(each.flatten(), minlength=len(states))
    most = torch.zeros(int(colors.max()) + 1, dtype=torch.long).scatter_reduce(0, colors, degree, "amax")
    unequal = (most[colors].clamp(min=1) / degree.clamp(min=1)).log2() / torch.tensor(_UNEQUAL).log2()
    keys = torch.stack([colors, states, unequal.floor().long()], -1)
    _, block = keys.unique(dim=0, return_inverse=True)
    count = int(block.max()) + 1
    row = torch.zeros_like(block)
    for number in range(count):
        inside = (block == number).nonzero().flatten()
        row[inside] = torch.arange(len(inside))
    return _Layout(count, block, row, states)


@dataclass(frozen=True, eq=False)
class _Terms:
    """What one place of a group of factors says of a block's elements.

    Attributes:
        row: where in the block each element is, `(terms,)`.
        base: the row of the table to start from, `(terms,)`.
        neighbors: the other elements, `(terms, arity - 1)`.
        strides: what their states add to the row, `(arity - 1,)`.
    """

    row: Tensor
    base: Tensor
    neighbors: Tensor
    strides: Tensor


def _terms(scopes: Tensor, sizes: Sequence[int], place: int, layout: _Layout, factors: Tensor) -> _Terms:
    others = [other for other in range(len(sizes)) if other != place]
    strides, stride = [0] * len(others), 1
    for number in reversed(range(len(others))):
        strides[number] = stride
        stride *= sizes[others[number]]
    return _Terms(
        layout.row[scopes[:, place]], factors * stride, scopes[:, others], torch.tensor(strides, dtype=torch.long)
    )


def _build(tables: LogTables, dynamic: Sequence[DynamicGroup], layout: _Layout, number: int) -> ElementBlock:
    like, elements = tables.like.detach(), layout.elements(number)
    states, size = int(layout.num_states[elements[0]]), len(elements)
    bias = like.new_zeros(1 if states == 2 else states, size)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # element, neighbor, coupling
    static: dict[int, list[tuple[_Terms, Tensor]]] = {}  # by arity: terms with their tables
    moving: list[tuple[_Terms, int, int]] = []  # terms, which entry of the context, and its number of rows
    for group in tables.groups:
        arity, table = group.arity, group.log_potentials.detach()
        for place in range(arity):
            chosen = (layout.block[group.scopes[:, place]] == number).nonzero().flatten()
            if not len(chosen):
                continue
            shared = len(table) == 1
            factors = torch.zeros_like(chosen) if shared else torch.arange(len(chosen))
            terms = _terms(group.scopes[chosen], table.shape[1:], place, layout, factors)
            rows = rows_of(table if shared else table[chosen.to(table.device)], arity, place)
            if arity == 1:
                bias.index_add_(1, terms.row.to(bias.device), rows.expand(-1, len(chosen)))
            elif states == 2 and table.shape[1:] == (2, 2) and bool(rows.isfinite().all()):
                odds = rows[0].reshape(-1, 2).expand(len(chosen), 2)
                bias.index_add_(1, terms.row.to(bias.device), odds[:, :1].mT)
                pairs.append((terms.row, terms.neighbors[:, 0], odds[:, 1] - odds[:, 0]))
            else:
                static.setdefault(arity, []).append((terms, rows))
    entry = 0
    for each in dynamic:
        for place in range(len(each.sizes)):
            chosen = (layout.block[each.scopes[:, place]] == number).nonzero().flatten()
            if len(chosen):
                terms = _terms(each.scopes[chosen], each.sizes, place, layout, chosen)
                moving.append((terms, entry, len(each.scopes) * math.prod(each.sizes) // each.sizes[place]))
            entry += 1
    parts = [part for group_parts in static.values() for part, _ in group_parts] + [part for part, _, _ in moving]
    seen = torch.cat(
        [torch.empty(0, dtype=torch.long), *(n for _, n, _ in pairs), *(p.neighbors.flatten() for p in parts)]
    )
    sources = layout.block[seen].unique().tolist()
    place_of, total = torch.zeros_like(layout.row), 0
    for source in sources:
        inside = layout.elements(source)
        place_of[inside] = total + layout.row[inside]
        total += len(inside)
    weights, neighbors = _linear(pairs, place_of, (size, total), like) if pairs else (None, None)
    lookups = []
    for group_parts in static.values():
        table = torch.cat([rows for _, rows in group_parts], 1)
        starts = torch.tensor([0, *(rows.shape[1] for _, rows in group_parts)]).cumsum(0)
        shifted = [replace(t, base=t.base + start) for (t, _), start in zip(group_parts, starts[:-1], strict=True)]
        found = _padded(shifted, place_of, size, table.shape[1], like)
        lookups.append(replace(found, table=torch.nn.functional.pad(table, (0, 1))))
    for terms, which, count in moving:
        lookups.append(replace(_padded([terms], place_of, size, count, like), number=which))
    where = elements.to(like.device)
    return ElementBlock(where, states, tuple(sources), bias.unsqueeze(-1), weights, neighbors, tuple(lookups))


def _linear(
    pairs: Sequence[tuple[Tensor, Tensor, Tensor]], place_of: Tensor, shape: tuple[int, int], like: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Couplings of elements with rows of the sources: a matrix, or by neighbor with the neighbors."""
    element, neighbor, coupling = (torch.cat(each) for each in zip(*pairs, strict=True))
    index = torch.stack([element, place_of[neighbor]]).to(like.device)
    merged = torch.sparse_coo_tensor(index, coupling, shape, check_invariants=False).coalesce()
    if merged.values().numel() > _DENSE * shape[0] * shape[1]:
        return merged.to_dense(), None
    row, column = merged.indices()
    slot = _slots(row, shape[0])
    weights = like.new_zeros(int(slot.max()) + 1, shape[0])
    weights[slot, row] = merged.values()
    neighbors = torch.zeros_like(weights, dtype=torch.long)
    neighbors[slot, row] = column
    return weights, neighbors


def _slots(row: Tensor, size: int) -> Tensor:
    """The how-manieth of its element each term is, for terms `(terms,)` sorted by element."""
    counts = torch.bincount(row, minlength=size)
    return torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]


def _padded(parts: Sequence[_Terms], place_of: Tensor, size: int, null_row: int, like: Tensor) -> Lookup:
    """Terms by element, with terms that read the null row where an element has fewer than others."""
    row = torch.cat([part.row for part in parts])
    order = row.argsort(stable=True)
    row, slot = row[order], _slots(row[order], size)
    base = torch.cat([part.base for part in parts])[order]
    neighbors = place_of[torch.cat([part.neighbors for part in parts])[order]]
    strides = torch.cat([part.strides.expand_as(part.neighbors) for part in parts])[order]
    terms, others = int(slot.max()) + 1, neighbors.shape[1]
    padded = Lookup(
        None,
        torch.full((terms, size), null_row),
        torch.zeros(terms, others, size, dtype=torch.long),
        torch.zeros(terms, others, size, dtype=torch.long),
    )
    padded.base[slot, row], padded.strides[slot, :, row], padded.neighbors[slot, :, row] = base, strides, neighbors
    device = like.device
    return Lookup(None, padded.base.to(device), padded.strides.to(device), padded.neighbors.to(device))
