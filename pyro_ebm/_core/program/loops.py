"""From statements to C: those over the same sizes share one loop, and hand their results on in registers."""

from __future__ import annotations

import heapq
import re
from dataclasses import dataclass, field

import torch

from pyro_ebm._core.program.pointwise import C_TYPES
from pyro_ebm._core.program.statements import Buffer, Indirect, Operand, Statement, View

_FOLDS = {
    "sum": "{0} + {1}",
    "prod": "{0} * {1}",
    "max": "MAXIMUM({0}, {1})",
    "min": "MINIMUM({0}, {1})",
    "or": "{0} | {1}",
    "and": "{0} & {1}",
}
_SIMD_FOLDS = {"sum": "+", "prod": "*", "or": "|", "and": "&"}

# Loops no longer than this are unrolled, and the loop around them is what is vectorised.
_SHORT = 4

Access = tuple[int, int, tuple[tuple[int, int], ...]]

# The names in a line of C: variables, buffers and loop indices.
_NAMES = re.compile(r"\b[vbi]\d+\b")


def _trimmed(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in sizes if size != 1)


@dataclass
class Loop:
    """Statements that share a loop nest over `sizes`, and its guards; one opaque statement is a loop of its own."""

    sizes: tuple[int, ...]
    guards: frozenset[tuple[Access, bool]] = frozenset()
    statements: list[int] = field(default_factory=list)


def group(statements: list[Statement], chosen: list[int]) -> list[Loop]:
    """Arrange statements in loops: each as early as its operands allow, in the company of others of its sizes."""
    done, loops = set(range(len(statements))) - set(chosen), []
    ready = _Ready(statements, chosen)
    while (seed := ready.first(done)) is not None:
        loop = Loop(*ready.nests[seed])
        if statements[seed].code is not None:
            ready.take(seed)
            loop.statements.append(seed)
        else:
            _fill(loop, statements, ready, seed, done)
        loops.append(loop)
        done.update(loop.statements)
    return loops


class _Ready:
    """Statements whose operands are there: programs are long, so that it is not looked for them among all others.

    Args:
        statements: all statements.
        chosen: those that are to be arranged; the others are done.

    Attributes:
        nests: the sizes and guards of each.
    """

    def __init__(self, statements: list[Statement], chosen: list[int]) -> None:
        self.nests = {i: (_trimmed(statements[i].sizes), _guards(statements[i])) for i in chosen}
        self._statements = statements
        self._missing = {i: len(statements[i].after & self.nests.keys()) for i in chosen}
        self._dependants: dict[int, list[int]] = {}
        for i in chosen:
            for each in statements[i].after & self.nests.keys():
                self._dependants.setdefault(each, []).append(i)
        self._ready = sorted(i for i, count in self._missing.items() if not count)
        self._by_nest: dict[object, set[int]] = {}
        for i in self._ready:
            self._by_nest.setdefault(self.nests[i], set()).add(i)

    def first(self, done: set[int]) -> int | None:
        """The first that overwrites nothing that others have still to read; nothing at the end.

        Raises:
            RuntimeError: if those that are left wait for each other.
        """
        refused, found = [], None
        while self._ready and found is None:
            i = heapq.heappop(self._ready)
            if i not in self._missing:
                continue  # taken
            refused.append(i)
            found = i if self._statements[i].replaces - {i} <= done else None
        for i in refused:
            heapq.heappush(self._ready, i)
        if found is None and self._missing:
            raise RuntimeError(f"got {len(self._missing)} statements that wait for each other, expected an order")
        return found

    def like(self, seed: int) -> list[int]:
        """Those of the same sizes and guards, in order."""
        return sorted(self._by_nest[self.nests[seed]])

    def take(self, number: int) -> list[int]:
        """Take one away; those that were waiting for it alone."""
        del self._missing[number]
        self._by_nest[self.nests[number]].discard(number)
        freed = []
        for each in self._dependants.get(number, ()):
            self._missing[each] -= 1
            if not self._missing[each]:
                freed.append(each)
                heapq.heappush(self._ready, each)
                self._by_nest.setdefault(self.nests[each], set()).add(each)
        return freed


def _fill(loop: Loop, statements: list[Statement], ready: _Ready, seed: int, done: set[int]) -> None:
    """Take all statements into a loop that can be there, in an order that they can have."""
    # What this loop writes: where, and whether a later statement of it may read it in the same place.
    written: dict[int, Access | None] = {}
    members: set[int] = set()
    joined = True
    while joined:
        joined = False
        candidates = ready.like(seed)
        while candidates:
            i = heapq.heappop(candidates)
            if not _fits(statements, i, members, done, written):
                continue
            members.add(i)
            loop.statements.append(i)
            joined = True
            statement = statements[i]
            plain = statement.fold is None and isinstance(statement.target, View)
            written[statement.target_view.buffer] = statement.target_view.access if plain else None
            for each in ready.take(i):
                if each > i and ready.nests[each] == ready.nests[i]:
                    heapq.heappush(candidates, each)


def _guards(statement: Statement) -> frozenset[tuple[Access, bool]]:
    return frozenset((guard.mask.access, guard.wanted) for guard in statement.guards)


def _fits(
    statements: list[Statement],
    number: int,
    members: set[int],
    done: set[int],
    written: dict[int, Access | None],
) -> bool:
    statement = statements[number]
    if statement.code is not None:
        return False
    if any(guard.mask.buffer in written for guard in statement.guards):
        return False
    if statement.target_view.buffer in written:  # a second writer waits
        return False
    for view in statement.views():
        if view.buffer in written and (written[view.buffer] != view.access or view.buffer in statement.searched):
            return False
    for reader in statement.replaces - {number} - done:
        place = statement.target_view
        if reader not in members or place.buffer in statements[reader].searched:
            return False
        if any(view.buffer == place.buffer and view.access != place.access for view in statements[reader].views()):
            return False
    return True


def _collapsed(views: list[View], sizes: tuple[int, ...]) -> tuple[tuple[int, ...], list[list[int]]]:
    """Merge neighbouring dims along which every view steps evenly; returns sizes and the strides of each view."""
    strides = [[s for size, s in zip(v.sizes, v.strides, strict=True) if size != 1] for v in views]
    merged = list(sizes)
    for dim in range(len(merged) - 2, -1, -1):
        if all(each[dim] == each[dim + 1] * merged[dim + 1] for each in strides):
            merged[dim] *= merged.pop(dim + 1)
            for each in strides:
                each.pop(dim)
    return tuple(merged), strides


class LoopWriter:
    """Writes one loop nest in C.

    Args:
        statements: all statements.
        loop: the loop.
        buffers: all buffers.
        needed: buffers whose values are read elsewhere; the others never leave the registers.
    """

    def __init__(self, statements: list[Statement], loop: Loop, buffers: list[Buffer], needed: set[int]) -> None:
        self._members = [statements[i] for i in loop.statements]
        self._buffers, self._needed = buffers, needed
        self._names: dict[object, str] = {}
        self._lines: list[str] = []
        self._count = 0
        views = [v for s in self._members for v in [*s.views(), s.target_view]]
        self._sizes, strides = _collapsed(views, loop.sizes)
        self._strides = {v.access: tuple(each) for v, each in zip(views, strides, strict=True)}

    def write(self) -> str:
        """The C code."""
        if self._members[0].code is not None:
            return self._opaque(self._members[0], self._members[0].code)
        rank = len(self._sizes)
        simple = all(isinstance(s.target, View) for s in self._members)
        folds: list[tuple[Statement, int, str]] = []  # statement, rank of its result, name of its accumulator
        before: list[str] = []
        stores: list[str] = []
        for statement in self._members:
            value = self._value(statement)
            kind = C_TYPES[statement.dtype]
            if statement.fold is None:
                if statement.target_view.buffer in self._needed:
                    stores.append(self._store(statement.target, value))
                if isinstance(statement.target, View):
                    self._names[statement.target.access] = value
                continue
            strides = self._strides[statement.target_view.access]
            kept = next((d for d in range(rank, 0, -1) if strides[d - 1] != 0), 0)
            if isinstance(statement.target, View) and statement.initial and all(strides[:kept]) and kept < rank:
                name = self._new()
                self._lines.append(f"{name} = ({kind})({_FOLDS[statement.fold].format(name, value)});")
                folds.append((statement, kept, name))
            else:
                place = self._address(statement.target)
                if statement.initial:
                    count = self._buffers[statement.target_view.buffer].numel
                    name = f"b{statement.target_view.buffer}"
                    before.append(f"for (int64_t i = 0; i < {count}; i++) {name}[i] = {statement.initial};")
                simple = simple and (rank == 0 or strides[-1] != 0)
                stores.append(self._store(statement.target, f"({kind})({_FOLDS[statement.fold].format(place, value)})"))
        text: list[str] = []
        short = rank > 1 and self._sizes[-1] <= _SHORT
        wide = rank - 2 if short else rank - 1  # the depth of the loop that the vectors of the processor run along
        conditions = self._conditions()
        for depth in range(rank + 1):
            text += [f"if ({' && '.join(conditions[depth])}) {{"] if depth in conditions else []
            text += before if depth == 0 else []
            text += [f"{C_TYPES[s.dtype]} {name} = {s.initial};" for s, kept, name in folds if kept == depth]
            if depth < rank:
                if depth == rank - 1:
                    text += self._hoisted(f"i{depth}")
                if depth == wide and simple and self._sizes[depth] > 1 and max(conditions, default=0) <= depth:
                    across = [(s, name) for s, kept, name in folds if kept <= depth]
                    clauses = "".join(
                        f" reduction({_SIMD_FOLDS[s.fold or '']}:{name})" for s, name in across if s.fold in _SIMD_FOLDS
                    )
                    if all(s.fold in _SIMD_FOLDS for s, _ in across):
                        text.append(f"\n#pragma omp simd{clauses}\n")
                if depth > wide:
                    text.append(f"\n#pragma GCC unroll {_SHORT}\n")
                text.append(f"for (int64_t i{depth} = 0; i{depth} < {self._sizes[depth]}; i{depth}++) {{")
        text += self._lines + stores
        for depth in range(rank, -1, -1):
            if depth < rank:
                text.append("}")
            text += [f"{self._address(s.target)} = {name};" for s, kept, name in folds if kept == depth]
            text += ["}"] if depth in conditions else []
        return "{" + "\n".join(text) + "}"

    def _conditions(self) -> dict[int, list[str]]:
        """The guards, by how many of the outer dims they depend on."""
        found: dict[int, list[str]] = {}
        for guard in self._members[0].guards:
            depth = max((d + 1 for d, s in enumerate(self._strides[guard.mask.access]) if s != 0), default=0)
            place = self._address(guard.mask)
            holds = f"({place} | forced)" if guard.mask.is_scalar else place
            found.setdefault(depth, []).append(("" if guard.wanted else "!") + holds)
        return {depth: sorted(each) for depth, each in found.items()}

    def _hoisted(self, index: str) -> list[str]:
        """Take out the lines that the innermost loop only repeats: a compiler cannot, as stores might change them."""
        written = {f"b{statement.target_view.buffer}" for statement in self._members}
        hoisted: list[str] = []
        names: set[str] = set()
        for line in self._lines:
            name, used = _NAMES.findall(line)[0], set(_NAMES.findall(line)[1:])
            own = {each for each in used if each[0] == "v"}
            if line.startswith("const") and index not in used and own <= names and not used & written:
                hoisted.append(line)
                names.add(name)
        self._lines = [line for line in self._lines if line not in set(hoisted)]
        return hoisted

    def _new(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def _opaque(self, statement: Statement, code: str) -> str:
        names = [self._pointer(o.source) for o in statement.operands if isinstance(o.source, View)]
        whole = "".join(f"if ({' && '.join(each)}) " for each in self._conditions().values())
        return whole + code.format(*names, out=self._pointer(statement.target_view))

    def _pointer(self, view: View) -> str:
        return f"(b{view.buffer} + {view.offset})"

    def _index(self, view: View) -> str:
        strides = self._strides[view.access]
        terms = [f"i{d} * {s}" if s != 1 else f"i{d}" for d, s in enumerate(strides) if s != 0]
        return " + ".join([*terms, *([str(view.offset)] if view.offset or not terms else [])])

    def _address(self, place: View | Indirect) -> str:
        if isinstance(place, View):
            return f"b{place.buffer}[{self._index(place)}]"
        terms = [self._index(place.view), *(f"{self._place(v, n)} * {stride}" for v, n, stride in place.indices)]
        return f"b{place.view.buffer}[{' + '.join(terms)}]"

    def _place(self, index: View, size: int) -> str:
        """The place along a dim that an index says: a negative one counts from the end."""
        key = ("place", index.access, size)
        if key not in self._names:
            given = self._load(index)
            self._names[key] = name = self._new()
            self._lines.append(f"const int64_t {name} = {given} < 0 ? (int64_t){given} + {size} : {given};")
        return self._names[key]

    def _within(self, place: Indirect) -> str:
        """Whether the indices are: there is no exception to raise here, and no memory beyond to read."""
        return " && ".join(f"(uint64_t){self._place(v, n)} < {n}" for v, n, _ in place.indices)

    def _store(self, place: View | Indirect, value: str) -> str:
        where = f"if ({self._within(place)}) " if isinstance(place, Indirect) else ""
        return f"{where}{self._address(place)} = {value};"

    def _load(self, source: View | Indirect) -> str:
        key: object = source.access if isinstance(source, View) else source
        if key not in self._names:
            address = self._address(source)
            buffer = self._buffers[source.buffer if isinstance(source, View) else source.view.buffer]
            if isinstance(source, Indirect):
                missing = "NAN" if buffer.dtype.is_floating_point else "0"
                address = f"{self._within(source)} ? {address} : {missing}"
            self._names[key] = name = self._new()
            self._lines.append(f"const {C_TYPES[buffer.dtype]} {name} = {address};")
        return self._names[key]

    def _operand(self, operand: Operand) -> str:
        if isinstance(operand.source, str):
            return operand.source
        name = self._load(operand.source)
        view = operand.source if isinstance(operand.source, View) else operand.source.view
        if self._buffers[view.buffer].dtype == operand.dtype:
            return name
        key = ("cast", name, operand.dtype)
        if key not in self._names:
            self._names[key] = cast = self._new()
            test = " != 0" if operand.dtype == torch.bool else ""
            self._lines.append(f"const {C_TYPES[operand.dtype]} {cast} = ({C_TYPES[operand.dtype]})({name}{test});")
        return self._names[key]

    def _value(self, statement: Statement) -> str:
        operands = [self._operand(operand) for operand in statement.operands]
        if statement.chooses:
            operands[0] = f"({operands[0]} | forced)"
        expression = statement.expression.format(*operands)
        name = self._new()
        self._lines.append(f"const {C_TYPES[statement.dtype]} {name} = ({C_TYPES[statement.dtype]})({expression});")
        return name
