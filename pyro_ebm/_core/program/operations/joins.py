"""Joins: tensors made of parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_ebm._core.program.lowering import Lowering, argument, handles
from pyro_ebm._core.program.operations.views import from_meta, meta, require_whole
from pyro_ebm._core.program.pointwise import literal
from pyro_ebm._core.program.statements import View, contiguous


@handles("cat")
def _cat(lowering: Lowering, n: Any, result: Tensor) -> View:
    out, dim = lowering.new_view(result.dtype, result.shape), argument(n, 1, "dim", 0) % result.dim()
    start = 0
    for part in n.args[0]:
        source = lowering.view(part)
        if source.sizes == (0,):
            continue
        offset = out.offset + start * out.strides[dim]
        lowering.copy(source, result.dtype, View(out.buffer, offset, source.sizes, out.strides))
        start += source.sizes[dim]
    return out


@handles("slice_scatter", "select_scatter", "diagonal_scatter", "as_strided_scatter")
def _scatter_view(lowering: Lowering, n: Any, result: Tensor) -> View:
    """A copy of the base, with a view of it overwritten."""
    sizes, dtype = tuple(result.shape), result.dtype
    name = n.target._schema.name.removeprefix("aten::")
    if name == "as_strided_scatter":
        require_whole(lowering, n)
    base = lowering.operand(n.args[0], sizes, dtype)
    out = lowering.loop(dtype, "{0}", [base], lowering.new_view(dtype, sizes))
    view = getattr(torch.ops.aten, name.removesuffix("_scatter"))(meta(out), *n.args[2:], **n.kwargs)
    target = from_meta(view, out)
    lowering.loop(dtype, "{0}", [lowering.operand(n.args[1], target.sizes, dtype)], target)
    return out


@handles("constant_pad_nd")
def _pad(lowering: Lowering, n: Any, result: Tensor) -> View:
    source, pads = lowering.view(n.args[0]), list(n.args[1])
    value = literal(argument(n, 2, "value", 0), result.dtype)
    out = lowering.loop(result.dtype, value, [], lowering.new_view(result.dtype, result.shape))
    offset, sizes, inner = out.offset, list(source.sizes), source
    for i in range(len(pads) // 2):
        dim, low, high = len(sizes) - 1 - i, pads[2 * i], pads[2 * i + 1]
        offset += max(low, 0) * out.strides[dim]
        sizes[dim] += min(low, 0) + min(high, 0)
        shift = inner.offset - min(low, 0) * inner.strides[dim]
        inner = View(inner.buffer, shift, tuple(sizes), inner.strides)
    lowering.copy(inner, result.dtype, View(out.buffer, offset, tuple(sizes), out.strides))
    return out


@handles("repeat")
def _repeat(lowering: Lowering, n: Any, result: Tensor) -> View:
    source = lowering.view(n.args[0])
    lead = result.dim() - len(source.sizes)
    old = (1,) * lead + source.sizes
    counts = [new // max(size, 1) for new, size in zip(result.shape, old, strict=True)]
    strides = (0,) * lead + source.strides
    pairs = [(c, s) for c, s in zip(counts, old, strict=True)]
    tiled = View(
        source.buffer, source.offset, tuple(x for p in pairs for x in p), tuple(x for s in strides for x in (0, s))
    )
    return replace(
        lowering.copy(tiled, result.dtype),
        sizes=tuple(result.shape),
        strides=contiguous(0, tuple(result.shape)).strides,
    )
