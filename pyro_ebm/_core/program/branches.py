"""Branches: what is needed only where one boolean says so, is made only then.

Guards of rows (`demand`) are for one statement that makes a value. Where one boolean decides over all rows, whatever
makes the value can wait for it: statements that write a part each, and opaque code too.
"""

from __future__ import annotations

from dataclasses import replace

from pyro_ebm._core.program.statements import Buffer, Guard, Statement, View, depends

# A boolean, by its buffer and its offset there, and what it must be.
_Condition = tuple[int, int, bool]


def guard_whole(statements: list[Statement], buffers: list[Buffer]) -> None:
    """Guard the statements that no one needs unless some booleans hold."""
    writers: dict[int, set[int]] = {}
    for number, statement in enumerate(statements):
        writers.setdefault(statement.target_view.buffer, set()).add(number)
    needed: dict[int, frozenset[_Condition]] = {}

    def need(view: View, conditions: frozenset[_Condition]) -> None:
        needed[view.buffer] = needed.get(view.buffer, conditions) & conditions

    for number in range(len(statements) - 1, -1, -1):
        statement = statements[number]
        target = buffers[statement.target_view.buffer]
        if target.constant:
            continue
        conditions = needed.get(target.index, frozenset()) if target.role == "local" else frozenset()
        for guard in statement.guards:
            need(guard.mask, conditions)
        own = {(g.mask.buffer, g.mask.offset, g.wanted) for g in statement.guards if g.mask.is_scalar}
        conditions = conditions | own
        for view in replace(statement, guards=frozenset()).views():
            need(view, conditions | _chosen_if(statement, view, buffers))
        for buffer, offset, wanted in sorted(conditions - own):
            makers = writers.get(buffer, set())
            if not any(depends(statements, maker, number) for maker in makers):
                mask = View(buffer, offset, statement.sizes, (0,) * len(statement.sizes))
                guards, after = statements[number].guards | {Guard(mask, wanted)}, statements[number].after | makers
                statements[number] = replace(statements[number], guards=guards, after=after)


def _chosen_if(statement: Statement, view: View, buffers: list[Buffer]) -> frozenset[_Condition]:
    """When a statement that chooses all or nothing needs what it reads."""
    if not statement.chooses:
        return frozenset()
    mask, *branches = (operand.source for operand in statement.operands)
    places = [place for place, source in enumerate((mask, *branches)) if isinstance(source, View) and source == view]
    if len(places) != 1 or places[0] == 0 or not isinstance(mask, View):
        return frozenset()
    if buffers[mask.buffer].role == "input" and not buffers[mask.buffer].constant:
        return frozenset()  # a carry may be overwritten by then
    return frozenset({(mask.buffer, mask.offset, places[0] == 1)})
