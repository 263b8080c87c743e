"""The carry, overwritten in place: whole rows that a step leaves as they are, are neither read nor written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from pyro_ebm._core.program.lowering import Lowering
from pyro_ebm._core.program.statements import (
    SELECT,
    Guard,
    Indirect,
    Operand,
    Statement,
    View,
    covers_rows,
    depends,
    sort,
)


def replace_carry(lowering: Lowering, old: list[View], new: list[View]) -> None:
    """Put the results where the carry was, once nothing reads it any more.

    A result that is made of the carry by selections of rows, `where(mask, x, carry)`, is so made in place: each of
    them becomes a store of `x` under a guard. The others are copied.

    Args:
        lowering: the statements of a step; they are changed.
        old: the views of the carry.
        new: the views of the results.
    """
    inputs = {view.buffer for view in old}
    new = [
        lowering.copy(result, lowering.buffers[result.buffer].dtype)
        if result.buffer in inputs and result != place
        else result
        for place, result in zip(old, new, strict=True)
    ]
    changes = [(place, result) for place, result in zip(old, new, strict=True) if result != place]
    in_place = _InPlace(lowering, [result for _, result in changes])
    copied = [(place, result) for place, result in changes if not in_place.make(place, result)]
    for place, result in copied:
        dtype = lowering.buffers[place.buffer].dtype
        statement = Statement(place.sizes, (Operand(result, dtype),), place, dtype)
        statement.replaces = set(in_place.readers.get(place.buffer, ()))
        lowering.emit(statement)
    in_place.rename()
    sort(lowering.statements)


@dataclass
class _Version:
    """What the memory of a carry holds for a while: what a statement makes of the version before.

    Attributes:
        number: of the statement.
        buffer: where it would put it.
        branch: the operand of its selection that is not the version before; 0 where there is none before.
        guards: where it takes that.
    """

    number: int
    buffer: int
    branch: int
    guards: frozenset[Guard] = frozenset()


class _InPlace:
    """Turns selections into guarded stores.

    Attributes:
        readers: the statements that read each buffer.
    """

    def __init__(self, lowering: Lowering, results: list[View]) -> None:
        self._lowering, self._statements, self._buffers = lowering, lowering.statements, lowering.buffers
        self._counts = Counter(result.buffer for result in results)
        self._places: dict[int, int] = {}  # buffers that are to be a carry's memory
        self._overwrites: dict[int, int] = {}  # by statement: the buffer that it replaces there
        self._writers: dict[int, list[int]] = {}
        self.readers: dict[int, set[int]] = {}
        for number, statement in enumerate(self._statements):
            self._writers.setdefault(statement.target_view.buffer, []).append(number)
            for view in statement.views():
                self.readers.setdefault(view.buffer, set()).add(number)

    def make(self, place: View, result: View) -> bool:
        """Have a result made in place, if it can be; it is `True` if it is."""
        if self._counts[result.buffer] > 1 or place.access[1:] != result.access[1:] or not place.is_dense:
            return False
        versions = self._versions(result.buffer, place) or self._versions(result.buffer, None)
        if versions is None or not versions[-1].branch:
            return False
        if not self._follow(place, versions):
            for version in versions:
                self._set_apart(version)
            if not self._follow(place, versions):
                return False
        for version in versions:
            self._places[version.buffer] = place.buffer
            if version.branch:
                self._store(version)
        return True

    def _follow(self, place: View, versions: list[_Version]) -> bool:
        """Have each version wait for those who read the one before; `False` if they would wait for it."""
        befores = [place.buffer, *(version.buffer for version in versions)]
        kept = [self._statements[version.number].replaces for version in versions]
        for version, before in zip(versions, befores, strict=False):
            readers = self.readers.get(before, set()) - {version.number}
            self._statements[version.number].replaces = self._statements[version.number].replaces | readers
        for version, before in zip(versions, befores, strict=False):
            readers = self.readers.get(before, set()) - {version.number}
            if any(depends(self._statements, reader, version.number) for reader in readers):
                for each, replaces in zip(versions, kept, strict=True):
                    self._statements[each.number].replaces = replaces
                return False
        self._overwrites.update((version.number, before) for version, before in zip(versions, befores, strict=False))
        return True

    def _set_apart(self, version: _Version) -> None:
        """Have what a selection stores copied before, so that it can be overwritten by then."""
        number, statement = version.number, self._statements[version.number]
        mask, stored = (statement.operands[i].source for i in (0, version.branch))
        if not version.branch or not isinstance(mask, View) or not isinstance(stored, View):
            return
        made, copy = len(self._statements), statement.target_view
        copy = replace(copy, buffer=self._lowering.new_buffer(statement.dtype, copy.numel))
        self._statements.append(
            replace(
                statement,
                operands=(statement.operands[version.branch],),
                target=copy,
                expression="{0}",
                guards=version.guards,
            )
        )
        operands = list(statement.operands)
        operands[version.branch] = Operand(copy, statement.dtype)
        self._statements[number] = replace(statement, operands=tuple(operands), after=statement.after | {made})
        self.readers[copy.buffer] = {number}
        self.readers[mask.buffer].add(made)
        self.readers[stored.buffer].add(made)
        if all(view.buffer != stored.buffer for view in self._statements[number].views()):
            self.readers[stored.buffer].discard(number)
        for other, before in self._overwrites.items():
            if before in (mask.buffer, stored.buffer):
                self._statements[other].replaces = self.readers[before] - {other}

    def _versions(self, buffer: int, place: View | None) -> list[_Version] | None:
        """The selections that lead from the carry, or where none is named from another value, to a buffer's."""
        if place is not None and buffer == place.buffer:
            return []
        number = self._plain_writer(buffer)
        if number is None:
            return None
        statement = self._statements[number]
        mask = statement.operands[0].source if statement.operands else None
        if statement.expression == SELECT and isinstance(mask, View) and covers_rows(mask):
            for kept in (2, 1):
                source = statement.operands[kept].source
                if isinstance(source, View) and source.access[1:] == statement.target_view.access[1:]:
                    if self._counts[source.buffer] or self._buffers[source.buffer].constant:
                        continue
                    before = self._versions(source.buffer, place)
                    if before is not None:
                        return [*before, _Version(number, buffer, 3 - kept, frozenset([Guard(mask, kept == 2)]))]
        return [_Version(number, buffer, 0)] if place is None else None

    def _plain_writer(self, buffer: int) -> int | None:
        """The statement that alone writes all of a local buffer, element by element."""
        numbers = self._writers.get(buffer, [])
        if len(numbers) != 1 or buffer in self._places or self._buffers[buffer].role != "local":
            return None
        statement = self._statements[numbers[0]]
        whole = statement.is_plain and not statement.guards and statement.target_view.is_dense
        whole = whole and statement.target_view.numel == self._buffers[buffer].numel
        return numbers[0] if whole and not self._buffers[buffer].constant else None

    def _store(self, version: _Version) -> None:
        statement = self._statements[version.number]
        stored = statement.operands[version.branch]
        self._statements[version.number] = replace(
            statement, operands=(stored,), expression="{0}", guards=version.guards
        )

    def rename(self) -> None:
        """Put the names of the carry's memory in the place of those of the buffers that it replaces."""

        def renamed(view: View) -> View:
            return replace(view, buffer=self._places.get(view.buffer, view.buffer))

        def moved(place: View | Indirect) -> View | Indirect:
            if isinstance(place, View):
                return renamed(place)
            return Indirect(renamed(place.view), tuple((renamed(v), n, s) for v, n, s in place.indices))

        def operand(given: Operand) -> Operand:
            return given if isinstance(given.source, str) else Operand(moved(given.source), given.dtype)

        for number, statement in enumerate(self._statements):
            self._statements[number] = replace(
                statement,
                operands=tuple(map(operand, statement.operands)),
                target=moved(statement.target),
                guards=frozenset(Guard(renamed(guard.mask), guard.wanted) for guard in statement.guards),
            )
