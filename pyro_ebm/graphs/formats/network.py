"""A network as a file has it, made a factor graph of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_ebm._core.errors import GraphError
from pyro_ebm.energies import TableEnergy
from pyro_ebm.graphs.graph import FactorGraph

Evidence = Mapping[int, int]
"""States by variable, both by number."""


@dataclass(frozen=True, eq=False)
class Tables:
    """What a file says: variables, and tables of weights over them.

    Attributes:
        names: of the variables, in the order of the file.
        states: of each variable the names of its states.
        factors: the numbers of a factor's variables, and its weights `(K_1, ..., K_r)` in float64.
        named: whether the names are the network's own, and not numbers.
    """

    names: tuple[str, ...]
    states: tuple[tuple[str, ...], ...]
    factors: list[tuple[tuple[int, ...], Tensor]]
    named: bool = False


@dataclass(frozen=True, eq=False)
class Network:
    """A factor graph read from a file, and where in it the file's variables are.

    Observed variables are not in the graph: its tables are cut at their states, so that log Z is that of the evidence.

    Attributes:
        graph: the graph.
        names: the names of the file's variables, in the order of the file; a number where it has no names.
        states: the names of each variable's states; numbers where the file has no names.
        places: for each variable the name of the graph's variable and the number of the element that it is; nothing
            where it is observed.
        observed: the state numbers of observed variables, by number of the variable.
    """

    graph: FactorGraph
    names: tuple[str, ...]
    states: tuple[tuple[str, ...], ...]
    places: tuple[tuple[str, int] | None, ...]
    observed: Evidence

    def probabilities(self, marginals: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Marginals of the graph in the order of the file, `(*batch, K)` for each variable; an observed one is sure."""
        found: list[Tensor | None] = []
        for place in self.places:
            if place is None:
                found.append(None)
            else:
                name, element = place
                table = marginals[name]
                lead = table.dim() - len(self.graph[name].shape) - 1
                found.append(table.flatten(lead, -2)[..., element, :] if self.graph[name].shape else table)
        like = next(each for each in found if each is not None)
        return tuple(self._sure(number, like) if each is None else each for number, each in enumerate(found))

    def _sure(self, number: int, like: Tensor) -> Tensor:
        row = like.new_zeros(*like.shape[:-1], len(self.states[number]))
        row[..., self.observed[number]] = 1
        return row

    def assignment(self, values: Mapping[str, Tensor]) -> Tensor:
        """Values of the graph as state numbers in the order of the file, `(*lead, n)`; of observed ones as observed."""
        columns: list[Tensor | int] = []
        for number, place in enumerate(self.places):
            if place is None:
                columns.append(self.observed[number])
            else:
                name, element = place
                shape = self.graph[name].shape
                value = values[name]
                columns.append(value.reshape(*value.shape[: value.dim() - len(shape)], -1)[..., element])
        like = next(each for each in columns if isinstance(each, Tensor))
        return torch.stack([each if isinstance(each, Tensor) else torch.full_like(like, each) for each in columns], -1)

    def values(self, assignment: Tensor) -> dict[str, Tensor]:
        """State numbers in the order of the file, `(*lead, n)`, as values of the graph, `(*lead, *shape)`."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.graph.variables}
        for place, column in zip(self.places, assignment.unbind(-1), strict=True):
            if place is not None:
                found[place[0]].append(column)
        lead = assignment.shape[:-1]
        return {name: torch.stack(row, -1).reshape(*lead, *self.graph[name].shape) for name, row in found.items()}


def numbered_evidence(tables: Tables, evidence: Mapping[int | str, int | str]) -> dict[int, int]:
    """Evidence by names, or by the numbers that are names in a file without any, by number.

    Raises:
        GraphError: if there is no such variable, or no such state.
    """
    position = {name: number for number, name in enumerate(tables.names)}
    found = {}
    for name, state in evidence.items():
        number = position.get(str(name))
        if number is None:
            raise GraphError(f'evidence: got the variable "{name}", expected one of {_few(tables.names)}.')
        if str(state) not in tables.states[number]:
            raise GraphError(
                f'evidence: got the state "{state}" of variable "{name}", expected one of '
                f"{_few(tables.states[number])}."
            )
        found[number] = tables.states[number].index(str(state))
    return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 10 else f"{', '.join(names[:9])}, ..., {names[-1]}"


def make_network(tables: Tables, observed: Evidence) -> Network:
    """The factor graph of a file's tables.

    Raises:
        GraphError: if all variables are observed, or there are none.
    """
    sizes = [len(states) for states in tables.states]
    free = [number for number in range(len(sizes)) if number not in observed]
    if not free:
        raise GraphError(
            f"got {len(observed)} variables observed of {len(sizes)}, expected one left to make a graph over. Evaluate "
            "the energy at these states instead: network.graph(network.values(states))."
        )
    graph = FactorGraph()
    places: list[tuple[str, int] | None] = [None] * len(sizes)
    if tables.named:
        for number in free:
            places[number] = (tables.names[number], 0)
            graph.variable(tables.names[number], num_states=sizes[number])
    else:
        for size in sorted({sizes[number] for number in free}):
            members = [number for number in free if sizes[number] == size]
            name = f"x{size}" if len(set(sizes)) > 1 else "x"
            graph.variable(name, num_states=size, shape=(len(members),))
            for element, number in enumerate(members):
                places[number] = (name, element)
    _add_factors(graph, tables, places, observed)
    return Network(graph, tables.names, tables.states, tuple(places), dict(observed))


def _add_factors(
    graph: FactorGraph, tables: Tables, places: Sequence[tuple[str, int] | None], observed: Evidence
) -> None:
    """Cut the tables at what is observed, and batch those over elements of the same arrays."""
    groups: dict[tuple[str, ...], list[tuple[list[int], Tensor]]] = defaultdict(list)
    constants = []
    for scope, weights in tables.factors:
        energies = -weights[tuple(observed.get(number, slice(None)) for number in scope)].log()
        wired = [place for number in scope if (place := places[number]) is not None]
        if wired:
            groups[tuple(name for name, _ in wired)].append(([element for _, element in wired], energies))
        else:
            constants.append(energies)
    if constants:  # a table over one variable that is the same everywhere
        name, element = next(place for place in places if place is not None)
        total = torch.stack(constants).sum()
        groups[name,].append(([element], total.expand(graph[name].num_states or 0)))
    for names, members in groups.items():
        index = torch.tensor([elements for elements, _ in members])
        energy = TableEnergy(torch.stack([table for _, table in members]), arity=len(names))
        graph.factor(energy, *(graph[name][column] for name, column in zip(names, index.unbind(-1), strict=True)))
