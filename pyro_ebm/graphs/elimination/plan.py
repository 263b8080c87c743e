"""The static plan of an elimination: made once for a structure, and executed for any tables of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pyro_ebm._core.concrete import to_numpy
from pyro_ebm._core.errors import TreewidthError
from pyro_ebm.graphs.elimination.ordering import elimination_order
from pyro_ebm.graphs.tables import MAX_TABLE_ENTRIES, LogTables

# Entries of all tables that an exact answer may hold at a time: four gigabytes in float64.
MAX_ENTRIES = 2**29


@dataclass(frozen=True)
class Step:
    """One variable's elimination.

    Attributes:
        variable: which.
        inputs: numbers of the tables that have it: factors first, then the messages of earlier steps.
        views: for each input, the index that lays it out over the clique, `(batch, variable, *rest)`.
        absent: for each input, the dims of the clique that it lacks.
        rest: the other variables of the clique, in the order of their elimination: the message's dims.
        members: for each input, which of `rest` it has.
    """

    variable: int
    inputs: tuple[int, ...]
    views: tuple[tuple[slice | None, ...], ...]
    absent: tuple[tuple[int, ...], ...]
    rest: tuple[int, ...]
    members: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Plan:
    """An elimination, step by step.

    Attributes:
        steps: in order; none where the largest table is too large to be made.
        permutations: for each factor, the permutation of its dims into the order of elimination, batch dim included;
            nothing where they are in it.
        outputs: numbers of the messages over nothing, which add up to log Z.
        width: the treewidth of this order: variables in the largest clique, less one.
        largest: entries of the largest table, for one element of the batch.
        peak: entries of the tables that are needed at one time, where each message goes once it has been used.
        total: entries of all tables that are needed at one time, where all messages stay.
    """

    steps: tuple[Step, ...]
    permutations: tuple[tuple[int, ...] | None, ...]
    outputs: tuple[int, ...]
    width: int
    largest: int
    peak: int
    total: int

    def require_affordable(self, batch: int, element_size: int, keeps_messages: bool) -> None:
        """Check the size of tables before any is made.

        Args:
            batch: elements of the batch.
            element_size: bytes of an entry.
            keeps_messages: whether all messages stay until the answer is there.

        Raises:
            TreewidthError: if the largest has more than `MAX_TABLE_ENTRIES` entries, or all more than `MAX_ENTRIES`.
        """
        largest = self.largest * batch
        held = (self.total if keeps_messages else self.peak) * batch
        if largest > MAX_TABLE_ENTRIES or held > MAX_ENTRIES:
            raise TreewidthError(
                f"FactorGraph: the exact answer needs a table of {_about(largest)} entries (width {self.width}) and "
                f"about {_about(held * element_size, 2**30)} GiB for all of them, expected at most "
                f"{MAX_TABLE_ENTRIES:.3g} entries and {_about(MAX_ENTRIES * element_size, 2**30)} GiB. Condition on "
                "some variables (g.condition), approximate (belief_propagation, tree_reweighted, mean_field), or "
                "sample (MCMC with Gibbs or GibbsWithGradients)."
            )


def _about(count: int, unit: int = 1) -> str:
    """A number of units in few digits; one that is too large for a float, as a power of two."""
    return f"{count / unit:.3g}" if count.bit_length() < 1000 else f"2**{(count // unit).bit_length() - 1}"


def plan_of(tables: LogTables) -> Plan:
    """The plan for the structure of some tables; plans are kept, by structure."""
    scopes = tuple((group.scopes.shape, to_numpy(group.scopes).tobytes()) for group in tables.groups)
    return _plan(tables.num_states, scopes)


@lru_cache(maxsize=64)
def _plan(num_states: tuple[int, ...], packed: tuple[tuple[tuple[int, int], bytes], ...]) -> Plan:
    scopes: list[list[int]] = []
    for shape, data in packed:
        scopes += np.frombuffer(data, dtype=np.int64).reshape(shape).tolist()
    return make_plan(num_states, scopes, elimination_order(num_states, scopes, MAX_TABLE_ENTRIES))


def make_plan(num_states: Sequence[int], scopes: Sequence[Sequence[int]], order: Sequence[int]) -> Plan:
    """The plan of an elimination in a given order.

    Args:
        num_states: of each variable.
        scopes: the variables of each factor.
        order: all variables, the first to be eliminated first.
    """
    rank = {variable: position for position, variable in enumerate(order)}
    tables: list[tuple[int, ...]] = []  # the variables of each, in the order of elimination
    permutations: list[tuple[int, ...] | None] = []
    waiting: list[list[int]] = [[] for _ in num_states]  # by variable that goes first
    outputs: list[int] = []

    def put(scope: tuple[int, ...]) -> None:
        (waiting[scope[0]] if scope else outputs).append(len(tables))
        tables.append(scope)

    for scope in scopes:
        positions = sorted(range(len(scope)), key=lambda k: rank[scope[k]])
        in_order = positions == list(range(len(scope)))
        permutations.append(None if in_order else (0, *(k + 1 for k in positions)))
        put(tuple(scope[k] for k in positions))

    steps, width, largest = [], 0, 1
    kept, live, peak, total = 0, 0, 0, 0
    sizes: list[int] = [0] * len(tables)  # entries of each message; factors' tables are there in any case
    for variable in order:
        inputs = waiting[variable]
        inputs.sort(key=lambda number: len(tables[number]))
        rest = tuple(sorted({each for n in inputs for each in tables[n][1:]}, key=rank.__getitem__))
        entries = math.prod([num_states[each] for each in rest])
        clique = entries * num_states[variable]
        kept += entries
        live += entries
        peak, total = max(peak, live + clique), max(total, kept + clique)
        live -= sum([sizes[number] for number in inputs])
        sizes.append(entries)
        largest = max(largest, clique)
        width = max(width, len(rest))
        put(rest)
        if largest <= MAX_TABLE_ENTRIES:
            steps.append(_step(variable, inputs, rest, tables))
    affordable = tuple(steps) if len(steps) == len(order) else ()
    return Plan(affordable, tuple(permutations), tuple(outputs), width, largest, peak, total)


def _step(variable: int, inputs: Sequence[int], rest: tuple[int, ...], tables: Sequence[tuple[int, ...]]) -> Step:
    views, absent, members = [], [], []
    for number in inputs:
        has = set(tables[number])
        views.append((slice(None), slice(None), *(slice(None) if each in has else None for each in rest)))
        absent.append(tuple(k + 2 for k, each in enumerate(rest) if each not in has))
        members.append(tuple(k for k, each in enumerate(rest) if each in has))
    return Step(variable, tuple(inputs), tuple(views), tuple(absent), rest, tuple(members))
