"""In which order to eliminate variables: the cheapest of a few, none of which wins everywhere.

References:
    Koller and Friedman 2009, Probabilistic Graphical Models, section 9.4.3.
    Cuthill and McKee 1969, Reducing the bandwidth of sparse symmetric matrices.
"""

import heapq
import math
from collections.abc import Iterable, Sequence

import networkx as nx
from networkx.utils import reverse_cuthill_mckee_ordering

Neighbours = list[set[int]]


def elimination_order(num_states: Sequence[int], scopes: Iterable[Sequence[int]], most_entries: float) -> list[int]:
    """The cheapest of min-fill, reverse Cuthill-McKee, its reverse, and the order of declaration.

    The cost is the number of entries of all tables that the elimination makes.

    Args:
        num_states: of each variable.
        scopes: the variables of each factor.
        most_entries: of a table that can be made. Min-fill, the slowest of them, ends where it needs a larger one.
    """
    neighbours: Neighbours = [set() for _ in num_states]
    for scope in set(map(tuple, scopes)):
        for one in scope:
            neighbours[one].update(scope)
    for one, others in enumerate(neighbours):
        others.discard(one)
    graph = nx.Graph()
    graph.add_nodes_from(range(len(num_states)))
    graph.add_edges_from((one, other) for one, others in enumerate(neighbours) for other in others if one < other)
    banded = list(reverse_cuthill_mckee_ordering(graph))
    weights = [math.log2(count) for count in num_states]
    best, least = banded, _cost(banded, neighbours, weights, math.inf)
    for order in (banded[::-1], list(range(len(num_states)))):
        cost = _cost(order, neighbours, weights, least)
        if cost < least:
            best, least = order, cost
    return _min_fill(neighbours, weights, least, most_entries) or best


def _cost(order: Sequence[int], neighbours: Neighbours, weights: Sequence[float], limit: float) -> float:
    """The number of entries of all tables; infinite once it is above the limit."""
    rank = [0] * len(order)
    for position, one in enumerate(order):
        rank[one] = position
    passed: list[list[set[int]]] = [[] for _ in order]  # by variable that goes next, the messages over it
    total = 0.0
    for one in order:
        rest = {other for other in neighbours[one] if rank[other] > rank[one]}.union(*passed[one])
        rest.discard(one)
        passed[one] = []
        total += _entries(one, rest, weights)
        if total >= limit:
            return math.inf
        if rest:
            passed[min(rest, key=rank.__getitem__)].append(rest)
    return total


def _entries(one: int, others: set[int], weights: Sequence[float]) -> float:
    bits = weights[one] + sum([weights[other] for other in others])
    return 2.0**bits if bits < 1000 else math.inf


def _min_fill(neighbours: Neighbours, weights: Sequence[float], least: float, most_entries: float) -> list[int] | None:
    """Eliminate what adds the fewest edges, and among these what has the smallest table.

    Nothing where that costs as much as the best of other orders, or needs a table that is too large.
    """
    # Whatever goes first makes a table over its neighbours; of a dense graph priorities alone would take minutes.
    if min((_entries(one, others, weights) for one, others in enumerate(neighbours)), default=0) > most_entries:
        return None
    left = [set(others) for others in neighbours]

    def priority(one: int) -> tuple[int, float]:
        others = left[one]
        present = sum([len(others & left[other]) for other in others])
        missing = (len(others) * (len(others) - 1) - present) // 2
        return missing, weights[one] + sum([weights[other] for other in others])

    present = {one: priority(one) for one in range(len(left))}
    queue = [(value, one) for one, value in present.items()]
    heapq.heapify(queue)
    order: list[int] = []
    cost = 0.0
    while queue:
        value, one = heapq.heappop(queue)
        if present.get(one) != value:  # eliminated, or in the queue with another priority
            continue
        others = left[one]
        entries = _entries(one, others, weights)
        cost += entries
        if cost >= least or entries > most_entries:
            return None
        del present[one]
        order.append(one)
        changed = set(others)
        if value[0]:  # edges between the others are new to all that see both ends
            changed |= {far for other in others for far in left[other]}
        for other in others:
            left[other] |= others
            left[other] -= {one, other}
        for each in changed & present.keys():
            new = priority(each)
            if new != present[each]:
                present[each] = new
                heapq.heappush(queue, (new, each))
    return order
