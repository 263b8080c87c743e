"""Views of a tensor: strides, or a copy where strides cannot say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_ebm._core.program.lowering import Lowering, UnsupportedError, handles
from pyro_ebm._core.program.statements import Indirect, View, contiguous


@handles("view", "_unsafe_view", "reshape")
def _view(lowering: Lowering, n: Any, result: Tensor) -> View:
    if result.dtype != lowering.dtype(n.args[0]):
        raise UnsupportedError("aten::view as another dtype")
    return reshaped(lowering, lowering.view(n.args[0]), result)


def reshaped(lowering: Lowering, source: View, result: Tensor) -> View:
    """The same elements in the shape of a result; copied where strides cannot say it."""
    sizes = tuple(result.shape)
    found = source.reshaped(sizes)
    return found or replace(lowering.copy(source, result.dtype), sizes=sizes, strides=contiguous(0, sizes).strides)


@handles("expand")
def _expand(lowering: Lowering, n: Any, result: Tensor) -> View:
    return lowering.view(n.args[0]).expanded(tuple(result.shape))


@handles("permute", "t", "transpose", "squeeze", "unsqueeze", "select", "slice", "diagonal", "unfold", "mT")
def _strided(lowering: Lowering, n: Any, result: Tensor) -> View:
    """Let torch work out the strides, on a tensor without data."""
    return _on_meta(lowering, n)


def _on_meta(lowering: Lowering, n: Any) -> View:
    source = lowering.view(n.args[0])
    found = n.target(meta(source), *n.args[1:], **n.kwargs)
    return from_meta(found, source)


def meta(view: View) -> Tensor:
    return torch.empty(0, device="meta").as_strided(view.sizes, view.strides, view.offset)


def from_meta(found: Tensor, source: View) -> View:
    return View(source.buffer, int(found.storage_offset()), tuple(found.shape), tuple(found.stride()))


@handles("split", "split_with_sizes", "unbind", "chunk")
def _split(lowering: Lowering, n: Any, result: Sequence[Tensor]) -> Sequence[View]:
    source = lowering.view(n.args[0])
    found = n.target(meta(source), *n.args[1:], **n.kwargs)
    return [from_meta(each, source) for each in found]


@handles("as_strided")
def _as_strided(lowering: Lowering, n: Any, result: Tensor) -> View:
    require_whole(lowering, n)
    source = lowering.copy(lowering.view(n.args[0]), result.dtype)  # in the order that the strides are meant for
    return from_meta(n.target(meta(source), *n.args[1:], **n.kwargs), source)


def require_whole(lowering: Lowering, n: Any) -> None:
    """Strides are those of torch's memory: they can be followed where a tensor has all of its own, in order."""
    source = lowering.example(n.args[0])
    if not source.is_contiguous() or source.storage_offset() or source.untyped_storage().nbytes() != source.nbytes:
        raise UnsupportedError(f"{n.target} of a part of a tensor")


@handles("flip")
def _flip(lowering: Lowering, n: Any, result: Tensor) -> View:
    source = lowering.view(n.args[0])
    offset, strides = source.offset, list(source.strides)
    for dim in n.args[1] if strides else ():
        offset += (source.sizes[dim] - 1) * strides[dim]
        strides[dim] = -strides[dim]
    return lowering.copy(View(source.buffer, offset, source.sizes, tuple(strides)), result.dtype)


def vector(view: View) -> View:
    """A view that has dims: torch takes a number for a vector of one."""
    return view if view.sizes else replace(view, sizes=(1,), strides=(1,))


def along(table: View, dim: int, index: View) -> Indirect:
    """The elements of `table` at `index` along a dim, at the same places along the others."""
    strides = tuple(0 if i == dim else s for i, s in enumerate(table.strides))
    return Indirect(
        View(table.buffer, table.offset, index.sizes, strides), ((index, table.sizes[dim], table.strides[dim]),)
    )
