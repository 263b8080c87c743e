"""Elimination with plates: what lies in a plate is one factor graph for each of its elements, batched.

From the deepest plates outward, the variables of a plate are summed out for each of its elements; what is left is a
function of variables further out, and is multiplied over the plate: `m(w) = Σ_n log Σ_z exp Σ_f f(z, w, n)`.

References:
    Obermeyer et al. 2019, Tensor variable elimination for plated factor graphs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Size, Tensor

from pyro_ebm._core.errors import GraphError
from pyro_ebm.graphs.elimination import elimination
from pyro_ebm.graphs.tables import LogTables, TableGroup


@dataclass(frozen=True)
class PlatedVariable:
    """A discrete variable, one copy of it for each element of its plates.

    Attributes:
        num_states: the number K of its states.
        plates: the dims of its plates, negative.
    """

    num_states: int
    plates: frozenset[int]


@dataclass(frozen=True, eq=False)
class PlatedFactor:
    """A factor, one copy of it for each element of its plates.

    Attributes:
        scope: the names of its variables.
        plates: the dims of its plates, negative.
        log_potentials: `(*lead, K_1, ..., K_r, *plates)`, with a dim for every plate that there is, of size one where
            the factor is outside.
    """

    scope: tuple[str, ...]
    plates: frozenset[int]
    log_potentials: Tensor


@dataclass(frozen=True, eq=False)
class _Part:
    """Variables of the same plates that hang together: inside of the plates a graph without plates."""

    own: tuple[str, ...]
    outer: tuple[str, ...]
    tables: LogTables  # over `own`, with batch dims (*lead, *plates, *outer)


@dataclass(frozen=True)
class PlatedGraph:
    """Factors over variables in plates.

    Attributes:
        variables: by name.
        num_plates: how many plate dims there are.
    """

    variables: Mapping[str, PlatedVariable]
    num_plates: int

    def log_partition(self, factors: Iterable[PlatedFactor]) -> Tensor:
        """The log of the sum over all variables, `(*lead,)`, differentiable.

        Raises:
            GraphError: if plates cross, so that no sum can be taken inside of them.
            TreewidthError: if the tables would be too large.
        """
        total, _ = self._sum_out(factors)
        return total

    def sample(self, factors: Iterable[PlatedFactor], generator: Generator | None = None) -> dict[str, Tensor]:
        """One exact draw of state numbers for each element of `lead`, by variable `(*lead, *plates)`.

        Raises:
            GraphError: as `log_partition`; `TreewidthError` likewise.
        """
        with torch.no_grad():
            _, parts = self._sum_out(factors)
            states: dict[str, Tensor] = {}
            for part in reversed(parts):
                drawn = elimination.sample(part.tables, Size(), generator)
                lead = part.tables.batch_shape[: len(part.tables.batch_shape) - len(part.outer)]
                drawn = drawn.reshape(*lead, -1, len(part.own))  # one for each joint state of the outer variables
                chosen = torch.zeros(lead, dtype=torch.long, device=drawn.device)
                for name in part.outer:
                    chosen = chosen * self.variables[name].num_states + states[name]
                index = chosen[..., None, None].expand(*lead, 1, len(part.own))
                rows = drawn.gather(-2, index).squeeze(-2).unbind(-1)
                states.update(zip(part.own, rows, strict=True))
        return states

    def _sum_out(self, factors: Iterable[PlatedFactor]) -> tuple[Tensor, list[_Part]]:
        left = list(factors)
        total: Tensor | float = 0.0
        parts: list[_Part] = []
        while left:
            plates = max((factor.plates for factor in left), key=len)
            here = [factor for factor in left if factor.plates == plates]
            left = [factor for factor in left if factor.plates != plates]
            for own, members in self._components(here, plates):
                outer = tuple(dict.fromkeys(n for factor in members for n in factor.scope if n not in own))
                target = frozenset[int]().union(*(self.variables[name].plates for name in outer))
                if not own and target == plates:
                    raise GraphError(
                        f"a factor over {list(outer)} lies in plates that cross (dims {sorted(plates)}), and couples "
                        "every element of one with every element of the other: expected plates that nest. Loop over "
                        "one of them (for i in pyro.plate(...)), so that its elements are sites of their own."
                    )
                if own:
                    part = self._part(own, outer, members)
                    parts.append(part)
                    message = elimination.log_partition(part.tables)  # (*lead, *plates, *outer)
                else:
                    (factor,) = members
                    message = self._laid_out(factor, outer, ()).squeeze(-1)
                lead = message.dim() - len(outer) - self.num_plates
                gone = [lead + self.num_plates + dim for dim in plates - target]
                message = message.sum(gone, keepdim=True) if gone else message
                order = (*range(lead), *range(lead + self.num_plates, message.dim()))
                message = message.permute([*order, *range(lead, lead + self.num_plates)])
                if outer:
                    left.append(PlatedFactor(outer, target, message))
                else:
                    total = total + message.reshape(message.shape[:lead])
        return torch.as_tensor(total), parts

    def _components(
        self, factors: Sequence[PlatedFactor], plates: frozenset[int]
    ) -> list[tuple[tuple[str, ...], list[PlatedFactor]]]:
        """Factors that share variables of these plates, with those variables."""
        groups: list[tuple[dict[str, None], list[PlatedFactor]]] = []
        for factor in factors:
            own = {name: None for name in factor.scope if self.variables[name].plates == plates}
            members = [factor]
            apart = []
            for group in groups:
                if own.keys() & group[0].keys():
                    own, members = {**group[0], **own}, [*group[1], *members]
                else:
                    apart.append(group)
            groups = [*apart, (own, members)]
        return [(tuple(own), members) for own, members in groups]

    def _part(self, own: tuple[str, ...], outer: tuple[str, ...], factors: Sequence[PlatedFactor]) -> _Part:
        numbers = {name: number for number, name in enumerate(own)}
        groups = []
        for factor in factors:
            scope = torch.tensor([[numbers[name] for name in factor.scope if name in numbers]])
            groups.append(TableGroup(scope, self._laid_out(factor, outer, own)))
        sizes = tuple(self.variables[name].num_states for name in own)
        batch = torch.broadcast_shapes(
            *(group.batch_shape for group in groups),
            tuple(self.variables[name].num_states for name in outer),
        )
        return _Part(own, outer, LogTables((), sizes, tuple(groups), batch))

    def _laid_out(self, factor: PlatedFactor, outer: Sequence[str], own: Sequence[str]) -> Tensor:
        """A factor as `(*lead, *plates, *outer, 1, *own of its scope)`, with ones for what it lacks of `outer`."""
        table, scope = factor.log_potentials, factor.scope
        lead = table.dim() - len(scope) - self.num_plates
        places = {name: lead + number for number, name in enumerate(scope)}
        before = (*range(lead), *range(lead + len(scope), table.dim()))
        table = table.permute(
            [*before, *(places[n] for n in outer if n in places), *(places[n] for n in scope if n in own)]
        )
        has = [slice(None) if name in places else None for name in outer]
        return table[(*(slice(None),) * len(before), *has, None)]


def joint_states(names: Iterable[str], variables: Mapping[str, PlatedVariable]) -> int:
    """How many joint states some variables have."""
    return math.prod(variables[name].num_states for name in names)
