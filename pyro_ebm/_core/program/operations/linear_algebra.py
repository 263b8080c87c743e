"""Products of matrices, and triangular factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_ebm._core.program.lowering import SMALL_PRODUCT, Lowering, UnsupportedError, argument, handles
from pyro_ebm._core.program.pointwise import C_TYPES, literal
from pyro_ebm._core.program.statements import Operand, Statement, View

# Loops of this length are long enough: what is read across memory would cost more than longer ones save.
_LONG = 64


@handles("mm", "bmm")
def _product(lowering: Lowering, n: Any, result: Tensor) -> View:
    dtype = result.dtype
    left, right = (lowering.view(a) for a in n.args[:2])
    rows, columns, inner = *result.shape[-2:], left.sizes[-1]
    if rows > columns and columns < _LONG:  # (a b)ᵀ = bᵀ aᵀ: the result lies along its longer side
        left, right, rows, columns = _swapped(right), _swapped(left), columns, rows
        out = lowering.new_view(dtype, (*result.shape[:-2], rows, columns))
        found = _swapped(out)
    else:
        found = out = lowering.new_view(dtype, result.shape)
    batch = result.shape[0] if result.dim() == 3 else 1
    if rows * columns * inner < SMALL_PRODUCT or dtype not in (torch.float64, torch.float32):
        # A sum over the middle dim of (rows, inner, columns): its loops run along the result.
        sizes = (*out.sizes[:-2], rows, inner, columns)
        a = View(left.buffer, left.offset, sizes, (*left.strides, 0))
        b = View(right.buffer, right.offset, sizes, (*right.strides[:-2], 0, *right.strides[-2:]))
        c = View(out.buffer, out.offset, sizes, (*out.strides[:-2], out.strides[-2], 0, out.strides[-1]))
        operands = (Operand(a, dtype), Operand(b, dtype))
        lowering.emit(Statement(sizes, operands, c, dtype, "{0} * {1}", "sum", literal(0, dtype), ordered=True))
        return found
    left, right = (_blas_ready(lowering, v, dtype) for v in (left, right))
    (left_flag, left_step), (right_flag, right_step) = (_layout(v) for v in (left, right))
    name = "dgemm" if dtype == torch.float64 else "sgemm"
    steps = [v.strides[0] if batch > 1 else 0 for v in (left, right, out)]
    code = (
        f"{{{{ const int m = {columns}, n = {rows}, k = {inner}, a = {right_step}, b = {left_step}, c = {columns};"
        f" const {C_TYPES[dtype]} one = 1, zero = 0; for (int64_t i = 0; i < {batch}; i++)"
        f' {name}("{right_flag}", "{left_flag}", &m, &n, &k, &one, {{1}} + i * {steps[1]}, &a, {{0}} + i * {steps[0]},'
        f" &b, &zero, {{out}} + i * {steps[2]}, &c); }}}}"
    )
    lowering.emit(Statement((), (Operand(left, dtype), Operand(right, dtype)), out, dtype, code=code))
    return found


def _swapped(view: View) -> View:
    sizes, strides = list(view.sizes), list(view.strides)
    sizes[-2], sizes[-1], strides[-2], strides[-1] = sizes[-1], sizes[-2], strides[-1], strides[-2]
    return View(view.buffer, view.offset, tuple(sizes), tuple(strides))


def _layout(view: View) -> tuple[str, int]:
    """Whether a matrix is to be transposed for a column-major library, and its leading step."""
    rows, columns = view.strides[-2:]
    return ("N", max(rows, view.sizes[-1])) if columns == 1 else ("T", max(columns, view.sizes[-2]))


def _blas_ready(lowering: Lowering, view: View, dtype: torch.dtype) -> View:
    rows, columns = view.strides[-2:]
    if (columns == 1 and rows >= view.sizes[-1]) or (rows == 1 and columns >= view.sizes[-2]):
        return view
    return lowering.copy(view, dtype)


@handles("linalg_cholesky_ex")
def _cholesky(lowering: Lowering, n: Any, result: Any) -> Sequence[View]:
    """Row by row; where a pivot is not positive the factor is NaN and the info is its number."""
    if argument(n, 1, "upper", False):
        raise UnsupportedError("aten::linalg_cholesky_ex with upper")
    dtype = result[0].dtype
    source = lowering.copy(lowering.view(n.args[0]), dtype)
    out = lowering.loop(dtype, literal(0, dtype), [], lowering.new_view(dtype, result[0].shape))
    info = lowering.loop(torch.int32, literal(0, torch.int32), [], lowering.new_view(torch.int32, result[1].shape))
    size, batch = result[0].shape[-1], math.prod(result[0].shape[:-2])
    square = size * size
    code = (
        f"for (int64_t c = 0; c < {batch}; c++) {{{{ const {C_TYPES[dtype]}* a = {{0}} + c * {square};"
        f" {C_TYPES[dtype]}* l = {{out}} + c * {square}; for (int64_t i = 0; i < {size}; i++)"
        f" for (int64_t j = 0; j <= i; j++) {{{{ {C_TYPES[dtype]} s = a[i * {size} + j];"
        f" for (int64_t k = 0; k < j; k++) s -= l[i * {size} + k] * l[j * {size} + k];"
        f" l[i * {size} + j] = i == j ? sqrt(s) : s / l[j * {size} + j]; }}}} }}}}"
    )
    lowering.emit(Statement((), (Operand(source, dtype),), out, dtype, code=code))
    check = (
        f"for (int64_t c = 0; c < {batch}; c++) for (int64_t i = {size - 1}; i >= 0; i--)"
        f" if (!({{0}}[c * {square} + i * {size + 1}] > 0)) {{out}}[c] = i + 1;"
    )
    lowering.emit(Statement((), (Operand(out, dtype),), info, torch.int32, code=check))
    return [out, info]


@handles("linalg_solve_triangular")
def _solve_triangular(lowering: Lowering, n: Any, result: Tensor) -> View:
    left, unit = n.kwargs.get("left", True), n.kwargs.get("unitriangular", False)
    if unit:
        raise UnsupportedError("aten::linalg_solve_triangular with unitriangular")
    dtype, upper = result.dtype, n.kwargs["upper"]
    matrix, right = lowering.view(n.args[0]), lowering.view(n.args[1])
    if not left:  # x a = b is aᵀ xᵀ = bᵀ
        matrix, right, upper = _swapped(matrix), _swapped(right), not upper
    lead = tuple(result.shape[:-2])
    matrix = lowering.copy(matrix.expanded((*lead, *matrix.sizes[-2:])), dtype)
    out = lowering.copy(right.expanded((*lead, *right.sizes[-2:])), dtype)
    size, columns = out.sizes[-2:]
    rows = f"int64_t i = {size - 1}; i >= 0; i--" if upper else f"int64_t i = 0; i < {size}; i++"
    known = f"int64_t k = i + 1; k < {size}; k++" if upper else "int64_t k = 0; k < i; k++"
    code = (
        f"for (int64_t c = 0; c < {math.prod(lead)}; c++) {{{{ const {C_TYPES[dtype]}* a = {{0}} + c * {size * size};"
        f" {C_TYPES[dtype]}* x = {{out}} + c * {size * columns}; for ({rows}) {{{{ for ({known})"
        f" for (int64_t j = 0; j < {columns}; j++) x[i * {columns} + j] -= a[i * {size} + k] * x[k * {columns} + j];"
        f" for (int64_t j = 0; j < {columns}; j++) x[i * {columns} + j] /= a[i * {size} + i]; }}}} }}}}"
    )
    lowering.emit(Statement((), (Operand(matrix, dtype),), out, dtype, code=code))
    return out if left else _swapped(out)
