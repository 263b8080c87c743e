"""Elements that indices decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from pyro_ebm._core.program.lowering import Lowering, UnsupportedError, argument, handles
from pyro_ebm._core.program.operations.views import along, reshaped, vector
from pyro_ebm._core.program.pointwise import literal
from pyro_ebm._core.program.statements import Indirect, Operand, View


def _indexed(lowering: Lowering, table: View, indices: Sequence[Any]) -> Indirect:
    """`table[indices]`, where `None` keeps a dim, and a mask stands for the places where it is true."""
    places: list[View | None] = []
    for index in indices:
        if index is None:
            places.append(None)
        elif lowering.dtype(index) in (torch.bool, torch.uint8):
            places += lowering.places(index)
        else:
            places.append(lowering.view(index))
    views = {i: view for i, view in enumerate(places) if view is not None}
    given = list(views)
    shape = tuple(torch.broadcast_shapes(*(v.sizes for v in views.values())))
    together = given == list(range(given[0], given[-1] + 1))
    before = list(range(given[0])) if together else []
    rest = [i for i in range(len(table.sizes)) if i not in views and i not in before]
    sizes = (*(table.sizes[i] for i in before), *shape, *(table.sizes[i] for i in rest))
    strides = (*(table.strides[i] for i in before), *(0 for _ in shape), *(table.strides[i] for i in rest))

    def spread(view: View) -> View:
        view = view.expanded(shape)
        return View(view.buffer, view.offset, sizes, (*(0 for _ in before), *view.strides, *(0 for _ in rest)))

    return Indirect(
        View(table.buffer, table.offset, sizes, strides),
        tuple((spread(view), table.sizes[i], table.strides[i]) for i, view in views.items()),
    )


@handles("index", "_unsafe_index")
def _index(lowering: Lowering, n: Any, result: Tensor) -> View:
    found = _indexed(lowering, lowering.view(n.args[0]), n.args[1])
    return lowering.loop(
        result.dtype, "{0}", [Operand(found, result.dtype)], lowering.new_view(result.dtype, result.shape)
    )


@handles("index_select")
def _index_select(lowering: Lowering, n: Any, result: Tensor) -> View:
    table, index = (vector(lowering.view(n.args[i])) for i in (0, 2))
    dim = n.args[1] % len(table.sizes)
    sizes = (*table.sizes[:dim], *index.sizes, *table.sizes[dim + 1 :])
    strides = tuple(index.strides[0] if i == dim else 0 for i in range(len(sizes)))
    found = along(table, dim, View(index.buffer, index.offset, sizes, strides))
    return reshaped(lowering, lowering.elementwise(result.dtype, "{0}", [Operand(found, result.dtype)], sizes), result)


@handles("gather")
def _gather(lowering: Lowering, n: Any, result: Tensor) -> View:
    table, index = (vector(lowering.view(n.args[i])) for i in (0, 2))
    found = Operand(along(table, n.args[1] % len(table.sizes), index), result.dtype)
    return reshaped(lowering, lowering.elementwise(result.dtype, "{0}", [found], index.sizes), result)


@handles("scatter", "scatter_add")
def _scatter(lowering: Lowering, n: Any, result: Tensor) -> View:
    if len(n.args) > 4 or n.kwargs:
        raise UnsupportedError("aten::scatter with reduce")
    dtype, index = result.dtype, vector(lowering.view(n.args[2]))
    out = lowering.loop(
        dtype, "{0}", [lowering.operand(n.args[0], tuple(result.shape), dtype)], lowering.new_view(dtype, result.shape)
    )
    source: Any = n.args[3]
    if isinstance(source, fx.Node):
        view = vector(lowering.view(source))
        operand = Operand(replace(view, sizes=index.sizes), dtype)
    else:
        operand = Operand(literal(source, dtype), dtype)
    fold = _sum_of(dtype) if "scatter_add" in str(n.target) else None
    table = vector(out)
    lowering.loop(dtype, "{0}", [operand], along(table, n.args[1] % len(table.sizes), index), fold)
    return out


def _sum_of(dtype: torch.dtype) -> str:
    return "or" if dtype == torch.bool else "sum"


@handles("index_put", "_unsafe_index_put")
def _index_put(lowering: Lowering, n: Any, result: Tensor) -> View:
    dtype = result.dtype
    out = lowering.loop(
        dtype, "{0}", [lowering.operand(n.args[0], tuple(result.shape), dtype)], lowering.new_view(dtype, result.shape)
    )
    target = _indexed(lowering, out, n.args[1])
    fold = _sum_of(dtype) if argument(n, 3, "accumulate", False) else None
    lowering.loop(dtype, "{0}", [lowering.operand(n.args[2], target.view.sizes, dtype)], target, fold)
    return out
