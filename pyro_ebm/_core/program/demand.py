"""Where a value is needed: rows of it that nothing asks for are not computed.

Of `where(mask, x, y)` a row of x is needed where the mask is true, and one of y where it is false; of `a & b` for
booleans, b only where a is true. What is needed for a value that is not needed itself is not needed either.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from pyro_ebm._core.program.statements import (
    CONJUNCTION,
    SELECT,
    Buffer,
    Guard,
    Statement,
    View,
    covers_rows,
    depends,
)

Guards = frozenset[Guard]


def guard_rows(statements: list[Statement], buffers: list[Buffer]) -> None:
    """Guard the statements whose rows are not all needed; elements that are not needed hold anything."""
    writers: dict[int, list[int]] = {}
    readers: dict[int, list[int]] = {}
    for number, statement in enumerate(statements):
        writers.setdefault(statement.target_view.buffer, []).append(number)
        for view in statement.views():
            readers.setdefault(view.buffer, []).append(number)
    needed: dict[int, Guards] = {}
    for number in range(len(statements) - 1, -1, -1):
        statement = statements[number]
        buffer = statement.target_view.buffer
        needed[number] = statement.guards
        alone = writers[buffer] == [number] and buffers[buffer].role == "local" and not buffers[buffer].constant
        if alone and statement.code is None and isinstance(statement.target, View):
            each = [_asked(statements[r], needed[r], statement) for r in dict.fromkeys(readers.get(buffer, []))]
            needed[number] = frozenset.intersection(*each) if each else frozenset()
        for guard in sorted(needed[number] - statement.guards, key=lambda g: (g.mask.buffer, g.mask.offset, g.wanted)):
            makers = writers.get(guard.mask.buffer, [])
            if covers_rows(guard.mask) and not any(depends(statements, maker, number) for maker in makers):
                guards, after = statements[number].guards | {guard}, statements[number].after | set(makers)
                statements[number] = replace(statements[number], guards=guards, after=after)


def _asked(reader: Statement, needed: Guards, made: Statement) -> Guards:
    """The conditions, over the dims of what makes a value, on which a statement asks for it."""
    found: list[Guards] = []
    if reader.code is not None or any(guard.mask.buffer == made.target_view.buffer for guard in reader.guards):
        return frozenset()
    for place, operand in enumerate(reader.operands):
        source = operand.source
        if isinstance(source, View):
            if source.buffer == made.target_view.buffer:
                asked = needed | _condition(reader, place)
                found.append(frozenset(g for g in (_seen(guard, source, made) for guard in asked) if g is not None))
        elif not isinstance(source, str):
            indices = [source.view, *(index for index, _, _ in source.indices)]
            if any(view.buffer == made.target_view.buffer for view in indices):
                return frozenset()
    return frozenset.intersection(*found) if found else frozenset()


def _condition(reader: Statement, place: int) -> Guards:
    """On what an operation itself makes it depend whether it needs one of its operands."""
    mask = reader.operands[0].source
    if place == 0 or not isinstance(mask, View):
        return frozenset()
    if reader.expression == SELECT:
        return frozenset([Guard(mask, place == 1)])
    booleans = reader.dtype == torch.bool and all(o.dtype == torch.bool for o in reader.operands)
    return frozenset([Guard(mask, True)]) if reader.expression == CONJUNCTION and booleans else frozenset()


def _seen(guard: Guard, read: View, made: Statement) -> Guard | None:
    """A condition over the dims of a reader, over those of what it reads; nothing where it cannot be told."""
    written = made.target_view
    if read.offset != written.offset:
        return None
    dims = {(stride, size): dim for dim, (size, stride) in enumerate(zip(written.sizes, written.strides, strict=True))}
    strides = [0] * len(written.sizes)
    for size, stride, step in zip(read.sizes, read.strides, guard.mask.strides, strict=True):
        if size == 1:
            continue
        dim = dims.get((stride, size)) if stride else None
        if dim is None and (stride or step):
            return None
        if dim is not None:
            strides[dim] = step
    return Guard(View(guard.mask.buffer, guard.mask.offset, written.sizes, tuple(strides)), guard.wanted)
