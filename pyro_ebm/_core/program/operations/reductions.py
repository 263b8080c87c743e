"""Reductions along dims, and what runs along one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_ebm._core.program.lowering import Lowering, argument, handles
from pyro_ebm._core.program.operations.views import along, reshaped, vector
from pyro_ebm._core.program.pointwise import ARITHMETIC, C_TYPES, literal
from pyro_ebm._core.program.statements import Operand, Statement, View

_FOLDS = {
    "sum": "sum",
    "mean": "sum",
    "prod": "prod",
    "amax": "max",
    "amin": "min",
    "any": "or",
    "all": "and",
    "max": "max",
    "min": "min",
}


_IDEMPOTENT = {"or", "and", "max", "min"}


@handles(*_FOLDS)
def _reduce(lowering: Lowering, n: Any, result: Any) -> View | Sequence[View]:
    name = n.target._schema.name.removeprefix("aten::")
    if not isinstance(result, Tensor):
        source = vector(lowering.view(n.args[0]))
        places = _extreme_places(lowering, source, n.args[1], name)
        found = along(source, n.args[1] % len(places.sizes), places)
        values = lowering.elementwise(result[0].dtype, "{0}", [Operand(found, result[0].dtype)], places.sizes)
        return [reshaped(lowering, values, result[0]), reshaped(lowering, places, result[1])]
    source, dtype = lowering.view(n.args[0]), result.dtype
    fold = _FOLDS[name]
    reduced = _dims(source, argument(n, 1, "dim"), none_is_all=fold not in ("or", "and"))
    kept = tuple(1 if i in reduced else size for i, size in enumerate(source.sizes))
    alike = all(source.strides[i] == 0 or source.sizes[i] == 1 for i in reduced)  # the same value, many times over
    if alike and fold in _IDEMPOTENT and source.numel and dtype == lowering.dtype(n.args[0]):
        return reshaped(lowering, replace(source, sizes=kept), result)
    target = _folded(lowering, source, reduced, fold, dtype)
    if name == "mean":
        count = math.prod(source.sizes) / max(math.prod(kept), 1)
        mean = lowering.new_view(dtype, kept)
        target = lowering.loop(dtype, f"{{0}} / {count}", [Operand(target, dtype)], mean)
    return reshaped(lowering, target, result)


def _dims(source: View, given: Any, *, none_is_all: bool = True) -> set[int]:
    """The dims that a reduction takes away; by default all, and if they are none, likewise."""
    rank = len(source.sizes)
    everything = given is None or (given == [] and none_is_all)
    dims = range(rank) if everything else [given] if isinstance(given, int) else given
    return {dim % rank for dim in dims} if rank else set()


def _folded(
    lowering: Lowering, source: View, reduced: set[int], fold: str, dtype: torch.dtype, each: str = "{0}"
) -> View:
    """A fold of an expression in each element, along dims that are kept with size one."""
    start = {
        "sum": 0,
        "prod": 1,
        "or": 0,
        "and": 1,
        "max": -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min if dtype != torch.bool else 0,
        "min": math.inf if dtype.is_floating_point else torch.iinfo(dtype).max if dtype != torch.bool else 1,
    }[fold]
    target = lowering.new_view(dtype, tuple(1 if i in reduced else size for i, size in enumerate(source.sizes)))
    over = target.expanded(source.sizes)
    over = replace(over, strides=tuple(0 if i in reduced else s for i, s in enumerate(over.strides)))
    operand = Operand(source, torch.bool if fold in ("or", "and") else dtype)
    lowering.emit(Statement(source.sizes, (operand,), over, dtype, each, fold, literal(start, dtype)))
    return target


@handles("linalg_vector_norm")
def _vector_norm(lowering: Lowering, n: Any, result: Tensor) -> View:
    """`(Σ |x|^p)^(1/p)`, and its limits for p = ∞, -∞ and 0."""
    order, dtype = argument(n, 1, "ord", 2), result.dtype
    size, power, root = ARITHMETIC["abs"](dtype, "{0}"), ARITHMETIC["pow"], literal(1 / order if order else 0, dtype)
    fold, each, whole = {
        math.inf: ("max", size, "{0}"),
        -math.inf: ("min", size, "{0}"),
        0: ("sum", "({0} != 0)", "{0}"),
        1: ("sum", size, "{0}"),
        2: ("sum", "{0} * {0}", ARITHMETIC["sqrt"](dtype, "{0}")),
    }.get(order, ("sum", power(dtype, size, literal(order, dtype)), power(dtype, "{0}", root)))
    source = lowering.view(n.args[0])
    total = _folded(lowering, source, _dims(source, argument(n, 2, "dim")), fold, dtype, each)
    norm = lowering.loop(dtype, whole, [Operand(total, dtype)], lowering.new_view(dtype, total.sizes))
    return reshaped(lowering, norm, result)


@handles("argmax", "argmin")
def _argument_of_extreme(lowering: Lowering, n: Any, result: Tensor) -> View:
    source, dim = vector(lowering.view(n.args[0])), argument(n, 1, "dim")
    if dim is None:
        source, dim = lowering.copy(source, lowering.dtype(n.args[0])), 0
        source = View(source.buffer, source.offset, (source.numel,), (1,))
    name = n.target._schema.name.removeprefix("aten::arg")
    return reshaped(lowering, _extreme_places(lowering, source, dim, name), result)


def _extreme_places(lowering: Lowering, source: View, dim: int, name: str) -> View:
    """Where along a dim the first greatest or least element is; NaN is both. The dim is kept, with size one."""
    dim = dim % len(source.sizes)
    dtype = lowering.buffers[source.buffer].dtype
    copied = lowering.copy(source, dtype)
    sizes = (*source.sizes[:dim], 1, *source.sizes[dim + 1 :])
    out = lowering.new_view(torch.int64, sizes)
    kind, length = C_TYPES[dtype], source.sizes[dim]
    outer, inner = math.prod(source.sizes[:dim]), math.prod(source.sizes[dim + 1 :])
    code = (
        f"for (int64_t i = 0; i < {outer}; i++) for (int64_t k = 0; k < {inner}; k++) {{{{"
        f" const {kind}* x = {{0}} + i * {length * inner} + k; int64_t best = 0;"
        f" for (int64_t j = 1; j < {length}; j++) {{{{ const {kind} a = x[j * {inner}], b = x[best * {inner}];"
        f" if (b == b && (a {'>' if name == 'max' else '<'} b || a != a)) best = j; }}}}"
        f" {{out}}[i * {inner} + k] = best; }}}}"
    )
    lowering.emit(Statement((), (Operand(copied, dtype),), out, torch.int64, code=code))
    return out


@handles("cumsum", "cumprod")
def _cumulate(lowering: Lowering, n: Any, result: Tensor) -> View:
    dtype, dim = result.dtype, n.args[1] % result.dim() if result.dim() else 0
    out = lowering.copy(lowering.view(n.args[0]), dtype)
    sizes = out.sizes or (1,)
    outer, length, inner = math.prod(sizes[:dim]), sizes[dim], math.prod(sizes[dim + 1 :])
    sign = "+" if "cumsum" in str(n.target) else "*"
    code = (
        f"for (int64_t i = 0; i < {outer}; i++) for (int64_t j = 1; j < {length}; j++) for (int64_t k = 0; k < {inner};"
        f" k++) {{out}}[(i * {length} + j) * {inner} + k] {sign}= {{out}}[(i * {length} + j - 1) * {inner} + k];"
    )
    lowering.emit(Statement((), (), out, dtype, code=code))
    return out
