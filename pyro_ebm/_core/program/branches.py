"""Branches: what is needed only where a condition of one element holds is computed only then.

`torch.where(ended, new, old)` computes `new` whatever `ended` says. Where `ended` is one element, and so decides for all
of `new`, the statements that nothing else needs become a branch; and where `old` is what is there already, nothing is
written otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from pyro_ebm._core.program.pointwise import literal
from pyro_ebm._core.program.statements import Buffer, Condition, Operand, Statement, View

# What `torch.where` is lowered to where one element decides. A check of the program forces such choices: see `forced`.
CHOICE = "({0} | forced) ? {1} : {2}"


def is_scalar(view: View) -> bool:
    """Whether a view shows one element, however often."""
    return all(size == 1 or stride == 0 for size, stride in zip(view.sizes, view.strides, strict=True))


def conditional(copy: Statement, statements: Sequence[Statement], held: Collection[int], *, zeros: bool) -> Statement:
    """A copy whose source is a choice between something new and what its target holds: one made where new is chosen.

    Args:
        copy: the statement, which copies one view to another.
        statements: those before it.
        held: the buffers of the carry, which is what the target holds unless it holds zeros.
        zeros: whether the target holds zeros.

    Returns:
        A copy that is the same, with conditions as far as there are any.
    """
    kept = literal(0, copy.dtype) if zeros else copy.target
    while True:
        source = copy.operands[0].source
        if not isinstance(source, View):
            return copy
        writers = [s for s in statements if s.target_view.buffer == source.buffer]
        if len(writers) != 1 or writers[0].target != source or writers[0].expression != CHOICE:
            return copy
        condition, new, old = writers[0].operands
        if old.source != kept or old.dtype != copy.dtype or not isinstance(condition.source, View):
            return copy
        if condition.source.buffer in held or not isinstance(new.source, View | str) or new.dtype != copy.dtype:
            return copy
        if not zeros and isinstance(new.source, View) and new.source.buffer in held:
            return copy  # it may be overwritten by then
        place = (condition.source.buffer, condition.source.offset)
        copy = replace(copy, operands=(Operand(new.source, new.dtype),), conditions=(*copy.conditions, place))


def find_branches(statements: Sequence[Statement], buffers: Sequence[Buffer], held: Collection[int]) -> None:
    """Give statements the conditions that everything shares for which they are made.

    Args:
        statements: in an order that is right; some may have conditions already.
        buffers: all buffers.
        held: the buffers of the carry, which do not keep a condition: they are overwritten.
    """
    needed: dict[int, frozenset[Condition]] = {}
    writers: dict[int, set[int]] = {}
    for number, statement in enumerate(statements):
        writers.setdefault(statement.target_view.buffer, set()).add(number)

    def need(view: View, conditions: frozenset[Condition]) -> None:
        needed[view.buffer] = needed.get(view.buffer, conditions) & conditions

    for statement in reversed(statements):
        target = buffers[statement.target_view.buffer]
        if target.constant:
            continue
        for number, place in enumerate(statement.conditions):  # the first decides whether the next is known
            need(View(*place, (), ()), frozenset(statement.conditions[:number]))
        conditions = frozenset(statement.conditions)
        if target.role == "local":
            conditions = needed.get(target.index, conditions)
            statement.conditions = tuple(sorted(conditions))
        for view in statement.views():
            need(view, conditions if not _is_chosen(statement, view) else conditions | _condition(statement, held))
        if statement.expression == CHOICE:
            for operand in (statement.operands[0], statement.operands[2]):
                if isinstance(operand.source, View):
                    need(operand.source, conditions)
    for number, statement in enumerate(statements):
        for buffer, _ in statement.conditions:
            statement.after |= writers.get(buffer, set()) - {number}


def _is_chosen(statement: Statement, view: View) -> bool:
    return statement.expression == CHOICE and view == statement.operands[1].source


def _condition(statement: Statement, held: Collection[int]) -> frozenset[Condition]:
    source = statement.operands[0].source
    if not isinstance(source, View) or source.buffer in held:
        return frozenset()
    return frozenset({(source.buffer, source.offset)})


def branch(conditions: Sequence[Condition]) -> str:
    """The C code that enters a branch."""
    return f"if ({' && '.join(f'(b{buffer}[{offset}] | forced)' for buffer, offset in conditions)}) " * bool(conditions)


def decided_by_one(condition: torch.Tensor, view: View) -> bool:
    """Whether one boolean decides a choice."""
    return condition.dtype == torch.bool and is_scalar(view)
