"""Tables laid out for engines that pass messages along all edges at once.

Elements with the same number of states are a *kind*, factors of the same shape a *block*: whatever is done to one is
done to all of its kind or block in one operation. Rows come first and the batch second, so that tables which the batch
shares multiply the whole of it as matrices do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from pyro_ebm.graphs.exact import Marginals, values_of
from pyro_ebm.graphs.tables import LogTables, TableGroup


@dataclass(frozen=True, eq=False)
class Kind:
    """The elements that have one number of states.

    Attributes:
        elements: their numbers in the graph, `(N,)`.
        unary: the sum of their factors over one element, `(N, B or 1, K)`.
        targets: of each edge, which of these elements it ends at, `(M,)`.
    """

    elements: Tensor
    unary: Tensor
    targets: Tensor


@dataclass(frozen=True, eq=False)
class Port:
    """One column of the scopes of a block: its edges are rows `start` to `start + F` of those of its kind."""

    kind: int
    start: int
    count: int

    def of(self, edges: Sequence[Tensor]) -> Tensor:
        """Its rows of what is given by kind for all edges, `(M, ...)` to `(F, ...)`."""
        return edges[self.kind][self.start : self.start + self.count]


@dataclass(frozen=True, eq=False)
class Block:
    """The factors of one shape, over two elements or more.

    Attributes:
        log_potentials: `(F or 1, B or 1, K_1, ..., K_r)`.
        ports: for each column of the scopes, where its edges are.
        scopes: element numbers in the graph, `(F, r)`.
    """

    log_potentials: Tensor
    ports: tuple[Port, ...]
    scopes: Tensor


@dataclass(frozen=True, eq=False)
class Stack:
    """A graph's tables, stacked.

    Attributes:
        kinds: the elements.
        blocks: the factors over two elements or more.
        constant: the sum of factors over nothing, `(B or 1,)`.
        batch: the number B of elements of the batch.
        tables: what it was made of.
    """

    kinds: tuple[Kind, ...]
    blocks: tuple[Block, ...]
    constant: Tensor
    batch: int
    tables: LogTables

    def marginals(self, singles: Sequence[Tensor], blocks: Sequence[Tensor]) -> Marginals:
        """Probabilities by kind `(N, B, K)` and by block `(F, B, K_1, ..., K_r)` in the form of exact ones."""
        batch_shape = self.tables.batch_shape
        by_element: list[Tensor] = [torch.empty(0)] * len(self.tables.num_states)
        for kind, rows in zip(self.kinds, singles, strict=True):
            full = rows.expand(len(rows), self.batch, rows.shape[-1]).reshape(len(rows), *batch_shape, -1)
            for element, row in zip(kind.elements.tolist(), full.unbind(0), strict=True):
                by_element[element] = row
        by_shape = {tuple(block.shape[2:]): block for block in blocks}
        starts: dict[tuple[int, ...], int] = defaultdict(int)
        factors = []
        for group in self.tables.groups:
            count, sizes = len(group.scopes), tuple(group.sizes)
            if group.arity == 0:
                factors.append(self.constant.new_ones(*batch_shape, count))
                continue
            if group.arity == 1:
                factors.append(torch.stack([by_element[element] for element in group.scopes[:, 0].tolist()], -2))
                continue
            part = by_shape[sizes][starts[sizes] : starts[sizes] + count]
            starts[sizes] += count
            factors.append(part.transpose(0, 1).reshape(*batch_shape, count, *sizes))
        return Marginals(self.tables.variables, tuple(by_element), tuple(factors))

    def mode(self, singles: Sequence[Tensor]) -> dict[str, Tensor]:
        """The values of greatest probability of each element on its own, by variable `(*batch, *shape)`."""
        like = self.tables.like
        states = torch.zeros(len(self.tables.num_states), self.batch, dtype=torch.long, device=like.device)
        for kind, rows in zip(self.kinds, singles, strict=True):
            states[kind.elements] = rows.argmax(-1).expand(len(rows), self.batch)
        return values_of(self.tables, states.mT.reshape(*self.tables.batch_shape, -1))


def stack(tables: LogTables) -> Stack:
    """Lay out tables."""
    batch, device = tables.batch_shape.numel(), tables.like.device
    num_states = torch.tensor(tables.num_states, dtype=torch.long)
    counts = sorted(set(tables.num_states))
    members = [(num_states == count).nonzero().squeeze(-1) for count in counts]
    place = torch.empty_like(num_states)
    for elements in members:
        place[elements] = torch.arange(len(elements))
    unary = [tables.like.new_zeros(len(m), 1, count) for m, count in zip(members, counts, strict=True)]
    targets: list[list[Tensor]] = [[] for _ in counts]
    by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
    constant = tables.like.new_zeros(1)
    for group in tables.groups:
        rows = _rows_first(group, tables.batch_shape)
        if group.arity > 1:
            by_shape[tuple(group.sizes)].append((group.scopes, rows))
            continue
        if group.arity == 0:
            constant = constant + rows.expand(len(group.scopes), -1).sum(0)
            continue
        kind = counts.index(rows.shape[-1])
        total, target = unary[kind], place[group.scopes[:, 0]].to(device)
        lead = max(total.shape[1], rows.shape[1])
        unary[kind] = total.expand(-1, lead, -1).index_add(0, target, rows.expand(len(target), lead, -1))
    blocks = []
    for sizes, given in by_shape.items():
        scopes = torch.cat([each for each, _ in given])
        ports = []
        for column, size in zip(scopes.unbind(-1), sizes, strict=True):
            kind = counts.index(size)
            ports.append(Port(kind, sum(map(len, targets[kind])), len(column)))
            targets[kind].append(place[column])
        blocks.append(
            Block(_joined([rows for _, rows in given], [len(each) for each, _ in given]), tuple(ports), scopes)
        )
    kinds = [
        Kind(elements.to(device), each, torch.cat([elements.new_empty(0), *ends]).to(device))
        for elements, each, ends in zip(members, unary, targets, strict=True)
    ]
    return Stack(tuple(kinds), tuple(blocks), constant, batch, tables)


def _rows_first(group: TableGroup, batch_shape: Size) -> Tensor:
    """Tables `(*batch, F or 1, K_1, ..., K_r)` as `(F or 1, B or 1, K_1, ..., K_r)`."""
    table, lead = group.log_potentials, group.batch_shape
    rows = table.shape[len(lead) :]
    full = table.expand(*batch_shape, *rows) if lead.numel() > 1 else table
    return full.reshape(-1, *rows).transpose(0, 1)


def _joined(parts: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Tables of several groups in one; those of a single group stay shared among its factors."""
    if len(parts) == 1:
        return parts[0]
    lead = max(part.shape[1] for part in parts)
    return torch.cat([part.expand(count, lead, *part.shape[2:]) for part, count in zip(parts, counts, strict=True)])


def along(rows: Tensor, column: int, arity: int) -> Tensor:
    """`(F, B, K)` as `(F, B, 1, ..., K, ..., 1)`."""
    return rows.reshape(*rows.shape[:2], *[1] * column, rows.shape[-1], *[1] * (arity - column - 1))


def contract(table: Tensor, given: Sequence[Tensor]) -> Tensor:
    """Sum tables over all columns of their scopes but the first, with weights on the states of the others.

    Args:
        table: `(F or 1, B or 1, K_1, ..., K_r)`, best contiguous.
        given: the weights of columns 2 to r, each `(F, B, K)`.

    Returns:
        `(F, B, K_1)`.
    """
    for weights in reversed(given):
        rest, states = table.shape[2:-1], table.shape[-1]
        rows = table.reshape(*table.shape[:2], -1, states)
        if table.shape[1] > 1:
            product = (rows @ weights.unsqueeze(-1)).squeeze(-1)
        elif len(table) > 1:
            product = torch.bmm(rows[:, 0], weights.mT).mT
        else:
            product = weights @ rows[0, 0].mT
        table = product.reshape(*weights.shape[:2], *rest)
    return table


def column_first(table: Tensor, column: int) -> Tensor:
    """Tables with another column of their scopes first, as `contract` wants it."""
    return table.movedim(column + 2, 2).contiguous()
