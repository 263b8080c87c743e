"""Cheap constants that are far larger than what they are made of: computed where they are read, and never stored."""

import re
from dataclasses import replace

import torch

from pyro_ebm._core.program.pointwise import C_TYPES
from pyro_ebm._core.program.statements import Buffer, Operand, Statement, View

# From this size on, and this many times as large as its operands, a value costs more to load than to compute.
_LARGE, _LARGER = 256, 4
_CALL = re.compile(r"[a-z0-9_]\(")


def inline_constants(statements: list[Statement], buffers: list[Buffer]) -> None:
    """Put the expressions of such constants in the place of what reads them: then nothing reads the constants.

    A broadcast scalar, say, would otherwise be a matrix in memory that is read in every repetition.
    """
    writers: dict[int, list[int]] = {}
    for number, statement in enumerate(statements):
        writers.setdefault(statement.target_view.buffer, []).append(number)
    cheap: dict[int, Statement] = {}
    for number, statement in enumerate(statements):
        if statement.code is None:
            for operand in statement.operands:
                source = operand.source
                if isinstance(source, View) and source.buffer in cheap:
                    statement = _inlined(statement, operand, source, cheap[source.buffer])
            statements[number] = statement
        if writers[statement.target_view.buffer] == [number] and _is_cheap(statement, buffers):
            cheap[statement.target_view.buffer] = statement


def _is_cheap(statement: Statement, buffers: list[Buffer]) -> bool:
    target = statement.target
    if not isinstance(target, View) or not buffers[target.buffer].constant or not target.is_dense:
        return False
    if statement.code is not None or statement.fold is not None or _CALL.search(statement.expression):
        return False
    if not all(isinstance(o.source, View | str) for o in statement.operands):
        return False
    given = max((buffers[view.buffer].numel for view in statement.views()), default=1)
    return target.numel >= max(_LARGE, _LARGER * given)


def _inlined(statement: Statement, operand: Operand, source: View, made: Statement) -> Statement:
    """The statement with the expression of `made` in the place of an operand, where their loops match."""
    read, written = source, made.target_view
    dims = {(stride, size): dim for dim, (size, stride) in enumerate(zip(written.sizes, written.strides, strict=True))}
    order = [dims.get((s, n), -1) if n != 1 and s != 0 else -1 for n, s in zip(read.sizes, read.strides, strict=True)]
    missing = {dim for dim, size in enumerate(written.sizes) if size != 1} - set(order)
    if missing or read.offset != written.offset:
        return statement

    def follow(view: View) -> View:
        strides = tuple(0 if dim < 0 else view.strides[dim] for dim in order)
        return View(view.buffer, view.offset, read.sizes, strides)

    first = len(statement.operands)
    added = [Operand(follow(o.source) if isinstance(o.source, View) else o.source, o.dtype) for o in made.operands]
    names = [f"{{{first + i}}}" for i in range(len(added))]
    value = f"(({C_TYPES[made.dtype]})({made.expression.format(*names)}))"
    if operand.dtype != made.dtype:
        value = f"(({C_TYPES[operand.dtype]})({value}{' != 0' if operand.dtype == torch.bool else ''}))"
    old = [f"{{{i}}}" for i in range(first)]
    kept = list(statement.operands)
    for i, each in enumerate(kept):
        if each == operand:
            old[i], kept[i] = value, Operand("0", each.dtype)
    expression = statement.expression.format(*old)
    return replace(statement, operands=(*kept, *added), expression=expression, after=statement.after | made.after)
