"""What a traced graph is lowered to: loops over strided views of buffers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch


@dataclass
class Buffer:
    """A stretch of memory.

    Attributes:
        index: its number.
        dtype: of its elements.
        numel: their number.
        role: `"input"` (what the program is given), `"output"` (what it writes for the caller) or `"local"`.
        constant: whether it holds the same values in every repetition.
    """

    index: int
    dtype: torch.dtype
    numel: int
    role: str
    constant: bool = False


@dataclass(frozen=True)
class View:
    """A strided view of a buffer, in elements."""

    buffer: int
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements of the view."""
        count = 1
        for size in self.sizes:
            count *= size
        return count

    def expanded(self, sizes: tuple[int, ...]) -> View:
        """Broadcast to `sizes`, as torch does."""
        lead = len(sizes) - len(self.sizes)
        strides = (0,) * lead + tuple(
            0 if old == 1 and new != 1 else stride
            for old, new, stride in zip(self.sizes, sizes[lead:], self.strides, strict=True)
        )
        return View(self.buffer, self.offset, sizes, strides)

    def reshaped(self, sizes: tuple[int, ...]) -> View | None:
        """The same elements in another shape, or `None` where strides cannot say it."""
        meta = torch.empty(0, device="meta").as_strided(self.sizes, self.strides)
        try:
            strides = meta.view(sizes).stride()
        except RuntimeError:
            return None
        return View(self.buffer, self.offset, sizes, tuple(strides))

    @property
    def is_scalar(self) -> bool:
        """Whether it shows one element, however often."""
        return all(size == 1 or stride == 0 for size, stride in zip(self.sizes, self.strides, strict=True))

    @property
    def is_dense(self) -> bool:
        """Whether it meets each element of a stretch of memory once."""
        order = sorted((d for d, size in enumerate(self.sizes) if size != 1), key=lambda d: -self.strides[d])
        step = 1
        for dim in reversed(order):
            if self.strides[dim] != step:
                return False
            step *= self.sizes[dim]
        return True

    def permuted(self, order: Sequence[int]) -> View:
        """With its dims in another order."""
        sizes, strides = (tuple(each[i] for i in order) for each in (self.sizes, self.strides))
        return View(self.buffer, self.offset, sizes, strides)

    @property
    def access(self) -> tuple[int, int, tuple[tuple[int, int], ...]]:
        """What decides which element is met at which point of a loop over `sizes`."""
        kept = tuple((size, stride) for size, stride in zip(self.sizes, self.strides, strict=True) if size != 1)
        return self.buffer, self.offset, kept


def contiguous(buffer: int, sizes: tuple[int, ...], offset: int = 0) -> View:
    """A view in C order."""
    strides, step = [], 1
    for size in reversed(sizes):
        strides.append(step)
        step *= size
    return View(buffer, offset, sizes, tuple(reversed(strides)))


@dataclass(frozen=True)
class Indirect:
    """A view of which some dims are indexed by the elements of others.

    Attributes:
        view: over the loop's dims, with stride 0 where indices decide.
        indices: for each indexed dim: a view of its index over the loop's dims, the dim's size and its stride.
    """

    view: View
    indices: tuple[tuple[View, int, int], ...]

    def permuted(self, order: Sequence[int]) -> Indirect:
        """With the loop's dims in another order."""
        return Indirect(self.view.permuted(order), tuple((v.permuted(order), n, s) for v, n, s in self.indices))


@dataclass(frozen=True)
class Operand:
    """What an elementwise operation reads: an element of a view, or a C constant; cast to `dtype` before use."""

    source: View | Indirect | str
    dtype: torch.dtype


# The expressions of operations that do not need all of their operands everywhere.
SELECT, CONJUNCTION = "{0} ? {1} : {2}", "{0} & {1}"


@dataclass(frozen=True)
class Guard:
    """A condition for a part of a loop.

    Attributes:
        mask: a view of booleans over the loop's dims.
        wanted: what they must be.
    """

    mask: View
    wanted: bool


@dataclass
class Statement:
    """One operation: a loop, or opaque code.

    A loop over `sizes` stores `expression` of the operands at `target`; a fold combines it with what is there, over the
    dims where `target` has stride 0. Where a guard does not hold, nothing is read or stored.

    Attributes:
        sizes: of the loop.
        operands: what it reads, each over the loop's dims.
        target: where the result goes, over the loop's dims.
        dtype: of the result.
        expression: a C expression with `{0}`, `{1}`, ... for the operands.
        fold: `"sum"`, `"prod"`, `"max"`, `"min"`, `"or"` or `"and"`; nothing for a plain store.
        initial: the C constant that a fold starts from; nothing to start from what is there.
        code: opaque C code in which `{0}`, `{1}`, ... are the operands' first elements and `{out}` is the target's.
        after: numbers of statements that must be complete before.
        replaces: numbers of statements that read what this one overwrites: they come before, or in the same place of
            the same loop.
        ordered: whether the dims are in the order in which to loop already.
        guards: the conditions under which it is run, each for whole rows of the loop.
    """

    sizes: tuple[int, ...]
    operands: tuple[Operand, ...]
    target: View | Indirect
    dtype: torch.dtype
    expression: str = "{0}"
    fold: str | None = None
    initial: str = ""
    code: str | None = None
    after: set[int] = field(default_factory=set)
    replaces: set[int] = field(default_factory=set)
    ordered: bool = False
    guards: frozenset[Guard] = frozenset()

    @property
    def chooses(self) -> bool:
        """Whether it is a selection of all or nothing, by one boolean: a check of the program can force it."""
        mask = self.operands[0].source if self.expression == SELECT else ""
        return isinstance(mask, View) and mask.is_scalar

    @property
    def is_plain(self) -> bool:
        """Whether it stores an expression in each element of a view."""
        return self.code is None and self.fold is None and isinstance(self.target, View)

    @property
    def target_view(self) -> View:
        """The target, without its indices."""
        return self.target.view if isinstance(self.target, Indirect) else self.target

    def in_memory_order(self) -> Statement:
        """With its dims in the order in which memory is laid out: of the target, or of what a fold reads."""
        if self.code is not None or len(self.sizes) < 2:
            return self
        guide = self.target_view
        if self.fold is not None:
            read = [o.source for o in self.operands if isinstance(o.source, View)]
            guide = max(read, key=lambda v: sum(s != 0 for s in v.strides), default=guide)
        order = sorted(range(len(self.sizes)), key=lambda d: -abs(guide.strides[d]) if self.sizes[d] != 1 else 0)
        return replace(
            self,
            sizes=tuple(self.sizes[i] for i in order),
            operands=tuple(
                o if isinstance(o.source, str) else Operand(o.source.permuted(order), o.dtype) for o in self.operands
            ),
            target=self.target.permuted(order),
            guards=frozenset(Guard(guard.mask.permuted(order), guard.wanted) for guard in self.guards),
        )

    @property
    def searched(self) -> set[int]:
        """Buffers of which it reads elements that an index decides."""
        return {o.source.view.buffer for o in self.operands if isinstance(o.source, Indirect)}

    def views(self) -> list[View]:
        """Every view that is read."""
        found: list[View] = [guard.mask for guard in self.guards]
        for operand in self.operands:
            if isinstance(operand.source, View):
                found.append(operand.source)
            elif isinstance(operand.source, Indirect):
                found += [operand.source.view, *(index for index, _, _ in operand.source.indices)]
        if isinstance(self.target, Indirect):
            found += [index for index, _, _ in self.target.indices]
        return found


def covers_rows(mask: View) -> bool:
    """Whether a mask over a loop's dims says the same for whole rows, the innermost dims, or for all of the loop."""
    varies = [stride != 0 for size, stride in zip(mask.sizes, mask.strides, strict=True) if size != 1]
    return not any(varies) or (not varies[-1] and varies == sorted(varies, reverse=True))


def depends(statements: Sequence[Statement], later: int, earlier: int) -> bool:
    """Whether a statement must wait for another, be it for one in between."""
    seen, waiting = {later}, [later]
    while waiting:
        number = waiting.pop()
        if number == earlier:
            return True
        new = (statements[number].after | statements[number].replaces) - seen
        seen |= new
        waiting += new
    return False


def sort(statements: list[Statement]) -> None:
    """Put statements, in place, in an order in which each comes after those that it must wait for.

    Raises:
        ValueError: if there is none.
    """
    order: list[int] = []
    done: set[int] = set()
    while len(order) < len(statements):
        before = len(order)
        for number, statement in enumerate(statements):
            if number not in done and (statement.after | statement.replaces) - {number} <= done:
                done.add(number)
                order.append(number)
        if len(order) == before:
            raise ValueError("statements that wait for one another")
    renumber(statements, order)


def renumber(statements: list[Statement], order: Sequence[int]) -> None:
    """Keep, in place, the statements of these numbers, in this order."""
    number_of = {old: new for new, old in enumerate(order)}
    statements[:] = [statements[i] for i in order]
    for statement in statements:
        statement.after = {number_of[i] for i in statement.after if i in number_of}
        statement.replaces = {number_of[i] for i in statement.replaces if i in number_of}
