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


def elimination_order(num_states: Sequence[int], scopes: Iterable[Sequence[int]]) -> list[int]:
    """The cheapest of min-fill, reverse Cuthill-McKee, its reverse, and the order of declaration.

    The cost is the number of entries of all tables that the elimination makes.

    Args:
        num_states: of each variable.
        scopes: the variables of each factor.
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
    best, least = list(range(len(num_states))), math.inf
    for order in (best, banded, banded[::-1], _min_fill(neighbours, weights)):
        cost = _cost(order, neighbours, weights, least)
        if cost < least:
            best, least = order, cost
    return best


def _cost(order: Sequence[int], neighbours: Neighbours, weights: Sequence[float], limit: float) -> float:
    """The number of entries of all tables; infinite once it is above the limit."""
    left = [set(others) for others in neighbours]
    total = 0.0
    for one in order:
        bits = weights[one] + sum(weights[other] for other in left[one])
        total += 2.0**bits if bits < 1000 else math.inf
        if total >= limit:
            return math.inf
        _eliminate(one, left)
    return total


def _eliminate(one: int, left: Neighbours) -> None:
    for other in left[one]:
        left[other] |= left[one]
        left[other] -= {one, other}


def _min_fill(neighbours: Neighbours, weights: Sequence[float]) -> list[int]:
    """Eliminate what adds the fewest edges, and among these what has the smallest table."""
    left = [set(others) for others in neighbours]

    def priority(one: int) -> tuple[int, float]:
        others = left[one]
        present = sum(len(others & left[other]) for other in others)
        missing = (len(others) * (len(others) - 1) - present) // 2
        return missing, weights[one] + sum(weights[other] for other in others)

    present = {one: priority(one) for one in range(len(left))}
    queue = [(value, one) for one, value in present.items()]
    heapq.heapify(queue)
    order = []
    while queue:
        value, one = heapq.heappop(queue)
        if present.get(one) != value:  # eliminated, or in the queue with another priority
            continue
        del present[one]
        order.append(one)
        others = left[one]
        changed = set(others)
        if value[0]:  # edges between the others are new to all that see both ends
            changed |= {far for other in others for far in left[other]}
        _eliminate(one, left)
        for each in changed & present.keys():
            new = priority(each)
            if new != present[each]:
                present[each] = new
                heapq.heappush(queue, (new, each))
    return order
