"""Elementwise operations with arguments of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_ebm._core.program.lowering import Lowering, argument, handles
from pyro_ebm._core.program.pointwise import ARITHMETIC
from pyro_ebm._core.program.statements import SELECT, Operand, View, covers_rows


@handles("where")
def _where(lowering: Lowering, n: Any, result: Tensor) -> View:
    sizes, dtype = tuple(result.shape), result.dtype
    operands = [
        lowering.operand(n.args[0], sizes, torch.bool),
        *(lowering.operand(a, sizes, dtype) for a in n.args[1:]),
    ]
    # A selection of rows lies in memory as those of its operands whose rows are not scattered.
    mask = operands[0].source
    if isinstance(mask, View) and mask.is_scalar:
        lowering.choices.add(n.name)
    whole = [o for o in operands if isinstance(mask, View) and isinstance(o.source, View) and _by_rows(mask, o.source)]
    return lowering.loop(dtype, SELECT, operands, lowering.new_like(dtype, sizes, [*whole, *operands]))


def _by_rows(mask: View, view: View) -> bool:
    order = sorted(range(len(view.sizes)), key=lambda dim: -view.strides[dim])
    return covers_rows(mask.permuted(order))


@handles("clamp")
def _clamp(lowering: Lowering, n: Any, result: Tensor) -> View:
    sizes, dtype = tuple(result.shape), result.dtype
    low, high = argument(n, 1, "min"), argument(n, 2, "max")
    view = lowering.view(n.args[0]).expanded(sizes)
    for bound, name in ((low, "MAXIMUM"), (high, "MINIMUM")):
        if bound is not None:
            operands = [Operand(view, dtype), lowering.operand(bound, sizes, dtype)]
            view = lowering.elementwise(dtype, name + "({0}, {1})", operands, sizes)
    return view


@handles("bitwise_not")
def _bitwise_not(lowering: Lowering, n: Any, result: Tensor) -> View:
    sign = "!" if result.dtype == torch.bool else "~"
    operand = lowering.operand(n.args[0], tuple(result.shape), result.dtype)
    return lowering.elementwise(result.dtype, sign + "{0}", [operand], result.shape)


@handles("logaddexp")
def _logaddexp(lowering: Lowering, n: Any, result: Tensor) -> View:
    dtype, sizes = result.dtype, tuple(result.shape)
    operands = [lowering.operand(a, sizes, dtype) for a in n.args]
    exp = ARITHMETIC["exp"](dtype, "({0} == {1} ? 0 : -fabs({0} - {1}))")
    expression = "MAXIMUM({0}, {1}) + " + ARITHMETIC["log1p"](dtype, exp)
    return lowering.elementwise(dtype, expression, operands, sizes)


@handles("addcmul", "addcdiv")
def _addc(lowering: Lowering, n: Any, result: Tensor) -> View:
    dtype, sizes = result.dtype, tuple(result.shape)
    sign = "*" if "mul" in str(n.target) else "/"
    operands = [lowering.operand(a, sizes, dtype) for a in (*n.args[:3], n.kwargs.get("value", 1))]
    return lowering.elementwise(dtype, f"{{0}} + {{3}} * {{1}} {sign} {{2}}", operands, sizes)
