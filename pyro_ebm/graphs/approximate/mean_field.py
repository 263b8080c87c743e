"""Naive mean field: a lower bound on log Z by elements that are independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pyro_ebm.graphs.approximate.approximation import Approximation, conclude, iterate
from pyro_ebm.graphs.approximate.stacking import Stack, along, column_first, contract, stack
from pyro_ebm.graphs.coloring import color, neighbor_pairs
from pyro_ebm.graphs.graph import FactorGraph

# A forbidden state costs this much more than any other while beliefs are found: what is left of it is exactly zero.
_FORBIDDEN = 1e4


def mean_field(
    graph: FactorGraph,
    *,
    num_starts: int = 8,
    max_iterations: int = 1000,
    tolerance: float = 1e-5,
    generator: Generator | None = None,
    progress: bool = False,
) -> Approximation:
    """Bound log Z from below, and approximate marginals, by independent elements.

    `log Z ≥ Σ_x q(x) (-E(x)) + Σ_i H(q_i)` with `q(x) = Π_i q_i(x_i)`, by coordinate ascent: elements that share no
    factor are updated at once, `q_i ∝ exp E[-E(x) | x_i]`, and the bound never falls. It is at all times a bound, and
    `-inf` where every start ends with some mass on a forbidden state.

    Args:
        graph: a discrete graph.
        num_starts: how many starts, all at once, of which the best bound is kept: the first from the elements' own
            factors, the others random.
        max_iterations: after how many sweeps over all elements to give up, with a warning.
        tolerance: the largest change of a probability in a sweep at which to stop.
        generator: for the random starts.
        progress: whether to show a bar.

    Raises:
        GraphError: if a variable is continuous.
        TreewidthError: if a factor over a whole variable has too many states for a table.
        ValueError: if a number does not fit.

    Warns:
        ConvergenceWarning: if beliefs still change at the end.

    References:
        Wainwright and Jordan 2008, Graphical models, exponential families, and variational inference, section 5.

    >>> from pyro_ebm import PottsEnergy
    >>> g = FactorGraph()
    >>> x = g.variable("x", num_states=2, shape=(3,))
    >>> g.factor(PottsEnergy(torch.tensor(1.0)), x[torch.tensor([[0, 1], [1, 2], [2, 0]])])
    >>> bool(mean_field(g).log_partition <= g.log_partition())
    True
    """
    if num_starts < 1:
        raise ValueError(f"mean_field: got num_starts={num_starts}, expected at least 1.")
    stacked = stack(graph.log_tables())
    with torch.no_grad():
        ascent = _Ascent(stacked, num_starts, generator)
        residuals = iterate(
            ascent.sweep,
            max_iterations=max_iterations,
            tolerance=tolerance,
            progress=progress,
            description="mean_field",
        )
        best = _bound(stacked, ascent.beliefs).reshape(num_starts, -1).argmax(0)
        everyone = torch.arange(stacked.batch, device=best.device)
        beliefs = [each.unflatten(1, (num_starts, -1))[:, best, everyone] for each in ascent.beliefs]
    return conclude(
        stacked,
        _bound(stacked, beliefs).reshape(stacked.tables.batch_shape),
        beliefs,
        _joints(stacked, beliefs),
        residuals.unflatten(1, (num_starts, -1))[:, best, everyone],
        tolerance,
        "mean_field",
        "Raise max_iterations; log_partition is a bound all the same.",
    )


@dataclass(frozen=True, eq=False)
class _Source:
    """The factors of a block that have elements of a turn in one column of their scopes.

    Attributes:
        table: log-potentials, `(F or 1, S * B or 1, K_1, ..., K_r)`, this column first.
        others: for each other column the kind of its elements and which of them they are, `(F,)`.
        targets: which elements of the turn these are in the column, `(F,)`.
    """

    table: Tensor
    others: tuple[tuple[int, Tensor], ...]
    targets: Tensor


@dataclass(frozen=True, eq=False)
class _Turn:
    """Elements of one kind and one colour: no two of them share a factor, so that they are updated at once.

    Attributes:
        kind: the kind.
        elements: which of its elements, `(N,)`.
        unary: their own log-potentials, `(N, S * B or 1, K)`.
        sources: the factors that they are in.
    """

    kind: int
    elements: Tensor
    unary: Tensor
    sources: tuple[_Source, ...]


class _Ascent:
    """Beliefs from S starts, by kind `(N, S * B, K)`, and the sweeps that improve them."""

    def __init__(self, stacked: Stack, starts: int, generator: Generator | None) -> None:
        unary = [_repeated(_softened(kind.unary), starts) for kind in stacked.kinds]
        tables = [_repeated(_softened(block.log_potentials), starts) for block in stacked.blocks]
        self.turns = _turns(stacked, unary, tables)
        self.beliefs = []
        for each in unary:
            count, states = len(each), each.shape[-1]
            noise = torch.randn(
                count, starts * stacked.batch, states, dtype=each.dtype, device=each.device, generator=generator
            )
            noise[:, : stacked.batch] = 0
            self.beliefs.append((each + 2 * noise).softmax(-1))

    def sweep(self) -> Tensor:
        """Update all elements, turn by turn, and say how much that has changed, `(S * B,)`."""
        changes = []
        for turn in self.turns:
            old = self.beliefs[turn.kind][turn.elements]
            field = turn.unary.expand_as(old)
            for source in turn.sources:
                given = [self.beliefs[kind][rows] for kind, rows in source.others]
                field = field.index_add(0, source.targets, contract(source.table, given))
            new = field.softmax(-1)
            self.beliefs[turn.kind][turn.elements] = new
            changes.append((new - old).abs().amax((0, 2)))
        return torch.stack(changes).amax(0)


def _turns(stacked: Stack, unary: Sequence[Tensor], tables: Sequence[Tensor]) -> list[_Turn]:
    colours = color(len(stacked.tables.num_states), neighbor_pairs(stacked.tables))
    device = stacked.tables.like.device
    turns = []
    for colour in range(int(colours.max()) + 1):
        for number, kind in enumerate(stacked.kinds):
            members = (colours[kind.elements.cpu()] == colour).nonzero().squeeze(-1).to(device)
            if not len(members):
                continue
            place = members.new_zeros(len(kind.elements))
            place[members] = torch.arange(len(members), device=device)
            sources = []
            for block, table in zip(stacked.blocks, tables, strict=True):
                ends = [(port.kind, port.of([each.targets for each in stacked.kinds])) for port in block.ports]
                for column, (end, targets) in enumerate(ends):
                    mine = (colours[block.scopes[:, column]] == colour).nonzero().squeeze(-1).to(device)
                    if end == number and len(mine):
                        rows = column_first(table if len(table) == 1 else table[mine], column)
                        others = tuple((kind_of, each[mine]) for kind_of, each in ends[:column] + ends[column + 1 :])
                        sources.append(_Source(rows, others, place[targets[mine]]))
            turns.append(_Turn(number, members, unary[number][members], tuple(sources)))
    return turns


def _bound(stacked: Stack, beliefs: Sequence[Tensor]) -> Tensor:
    """The bound at beliefs, by kind `(N, S * B, K)`, `(S * B,)`; differentiable by the tables."""
    starts = beliefs[0].shape[1] // stacked.batch
    total = stacked.constant.expand(stacked.batch).repeat(starts)
    for kind, belief in zip(stacked.kinds, beliefs, strict=True):
        total = total + torch.special.entr(belief).sum((0, -1)) + _mean(kind.unary, [belief], starts)
    for block in stacked.blocks:
        given = [port.of([b[k.targets] for b, k in zip(beliefs, stacked.kinds, strict=True)]) for port in block.ports]
        total = total + _mean(block.log_potentials, given, starts)
    return total


def _mean(table: Tensor, given: Sequence[Tensor], starts: int) -> Tensor:
    """The sum of log-potentials' means over independent elements, `(S * B,)`; `-inf` if one is that has mass."""

    def mean(values: Tensor) -> Tensor:
        values = _repeated(values, starts)
        return (contract(values, given[1:]) * given[0]).sum((0, -1))

    forbidden = table == -torch.inf
    if not bool(forbidden.any()):
        return mean(table)
    return mean(table.masked_fill(forbidden, 0)).masked_fill(mean(forbidden.to(table.dtype)) > 0, -torch.inf)


def _softened(table: Tensor) -> Tensor:
    """Log-potentials whose `-inf` are numbers, far below the others."""
    forbidden = table == -torch.inf
    finite = table.masked_fill(forbidden, 0)
    return finite.masked_fill(forbidden, float(finite.amin()) - _FORBIDDEN) if bool(forbidden.any()) else table


def _repeated(table: Tensor, starts: int) -> Tensor:
    """`(F, B or 1, ...)` as `(F, S * B or 1, ...)`."""
    return table.repeat(1, starts, *[1] * (table.dim() - 2)) if table.shape[1] > 1 else table


def _joints(stacked: Stack, beliefs: Sequence[Tensor]) -> list[Tensor]:
    """The beliefs of factors, by block `(F, B, K_1, ..., K_r)`: products of those of their elements."""
    found = []
    for block in stacked.blocks:
        joint = beliefs[0].new_ones(())
        for column, port in enumerate(block.ports):
            rows = port.of([b[k.targets] for b, k in zip(beliefs, stacked.kinds, strict=True)])
            joint = joint * along(rows, column, len(block.ports))
        found.append(joint)
    return found
