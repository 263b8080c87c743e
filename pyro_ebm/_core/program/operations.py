"""How the operations that are not elementwise are lowered: views, reductions, joins, indexing, linear algebra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from pyro_ebm._core.program.lowering import SMALL_PRODUCT, Lowering, UnsupportedError, handles
from pyro_ebm._core.program.pointwise import ARITHMETIC, C_TYPES, literal
from pyro_ebm._core.program.statements import SELECT, Indirect, Operand, Statement, View, contiguous, covers_rows

# Loops of this length are long enough: what is read across memory would cost more than longer ones save.
_LONG = 64


def _argument(n: Any, position: int, name: str, default: Any = None) -> Any:
    return n.args[position] if len(n.args) > position else n.kwargs.get(name, default)


# -- views -----------------------------------------------------------------------------------------------------------


@handles("view", "_unsafe_view", "reshape")
def _view(lowering: Lowering, n: Any, result: Tensor) -> View:
    if result.dtype != lowering.dtype(n.args[0]):
        raise UnsupportedError("aten::view as another dtype")
    return _reshaped(lowering, lowering.view(n.args[0]), result)


def _reshaped(lowering: Lowering, source: View, result: Tensor) -> View:
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
    found = n.target(_meta(source), *n.args[1:], **n.kwargs)
    return _from_meta(found, source)


def _meta(view: View) -> Tensor:
    return torch.empty(0, device="meta").as_strided(view.sizes, view.strides, view.offset)


def _from_meta(found: Tensor, source: View) -> View:
    return View(source.buffer, int(found.storage_offset()), tuple(found.shape), tuple(found.stride()))


@handles("split", "split_with_sizes", "unbind", "chunk")
def _split(lowering: Lowering, n: Any, result: Sequence[Tensor]) -> Sequence[View]:
    source = lowering.view(n.args[0])
    found = n.target(_meta(source), *n.args[1:], **n.kwargs)
    return [_from_meta(each, source) for each in found]


@handles("as_strided")
def _as_strided(lowering: Lowering, n: Any, result: Tensor) -> View:
    _require_whole(lowering, n)
    source = lowering.copy(lowering.view(n.args[0]), result.dtype)  # in the order that the strides are meant for
    return _from_meta(n.target(_meta(source), *n.args[1:], **n.kwargs), source)


def _require_whole(lowering: Lowering, n: Any) -> None:
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


# -- elementwise, with arguments of their own -------------------------------------------------------------------------


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
    low, high = _argument(n, 1, "min"), _argument(n, 2, "max")
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


# -- reductions ------------------------------------------------------------------------------------------------------

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
        source = _vector(lowering.view(n.args[0]))
        places = _extreme_places(lowering, source, n.args[1], name)
        found = _along(source, n.args[1] % len(places.sizes), places)
        values = lowering.elementwise(result[0].dtype, "{0}", [Operand(found, result[0].dtype)], places.sizes)
        return [_reshaped(lowering, values, result[0]), _reshaped(lowering, places, result[1])]
    source, dtype = lowering.view(n.args[0]), result.dtype
    dims = _argument(n, 1, "dim")
    rank = len(source.sizes)
    fold = _FOLDS[name]
    everything = dims is None or (dims == [] and fold not in ("or", "and"))
    dims = range(rank) if everything else [dims] if isinstance(dims, int) else dims
    reduced = {dim % rank for dim in dims} if rank else set()
    kept = tuple(1 if i in reduced else size for i, size in enumerate(source.sizes))
    alike = all(source.strides[i] == 0 or source.sizes[i] == 1 for i in reduced)  # the same value, many times over
    if alike and fold in _IDEMPOTENT and source.numel and dtype == lowering.dtype(n.args[0]):
        return _reshaped(lowering, replace(source, sizes=kept), result)
    start = {
        "sum": 0,
        "prod": 1,
        "or": 0,
        "and": 1,
        "max": -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min if dtype != torch.bool else 0,
        "min": math.inf if dtype.is_floating_point else torch.iinfo(dtype).max if dtype != torch.bool else 1,
    }[fold]
    target = lowering.new_view(dtype, kept)
    over = target.expanded(source.sizes)
    over = replace(over, strides=tuple(0 if i in reduced else s for i, s in enumerate(over.strides)))
    lowering.emit(
        Statement(
            source.sizes,
            (Operand(source, torch.bool if fold in ("or", "and") else dtype),),
            over,
            dtype,
            "{0}",
            fold,
            literal(start, dtype),
        )
    )
    if name == "mean":
        count = math.prod(source.sizes) / max(math.prod(kept), 1)
        mean = lowering.new_view(dtype, kept)
        target = lowering.loop(dtype, f"{{0}} / {count}", [Operand(target, dtype)], mean)
    return _reshaped(lowering, target, result)


@handles("argmax", "argmin")
def _argument_of_extreme(lowering: Lowering, n: Any, result: Tensor) -> View:
    source, dim = _vector(lowering.view(n.args[0])), _argument(n, 1, "dim")
    if dim is None:
        source, dim = lowering.copy(source, lowering.dtype(n.args[0])), 0
        source = View(source.buffer, source.offset, (source.numel,), (1,))
    name = n.target._schema.name.removeprefix("aten::arg")
    return _reshaped(lowering, _extreme_places(lowering, source, dim, name), result)


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


# -- joins -----------------------------------------------------------------------------------------------------------


@handles("cat")
def _cat(lowering: Lowering, n: Any, result: Tensor) -> View:
    out, dim = lowering.new_view(result.dtype, result.shape), _argument(n, 1, "dim", 0) % result.dim()
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
        _require_whole(lowering, n)
    base = lowering.operand(n.args[0], sizes, dtype)
    out = lowering.loop(dtype, "{0}", [base], lowering.new_view(dtype, sizes))
    view = getattr(torch.ops.aten, name.removesuffix("_scatter"))(_meta(out), *n.args[2:], **n.kwargs)
    target = _from_meta(view, out)
    lowering.loop(dtype, "{0}", [lowering.operand(n.args[1], target.sizes, dtype)], target)
    return out


@handles("constant_pad_nd")
def _pad(lowering: Lowering, n: Any, result: Tensor) -> View:
    source, pads = lowering.view(n.args[0]), list(n.args[1])
    value = literal(_argument(n, 2, "value", 0), result.dtype)
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


# -- indexing --------------------------------------------------------------------------------------------------------


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
    table, index = (_vector(lowering.view(n.args[i])) for i in (0, 2))
    dim = n.args[1] % len(table.sizes)
    sizes = (*table.sizes[:dim], *index.sizes, *table.sizes[dim + 1 :])
    strides = tuple(index.strides[0] if i == dim else 0 for i in range(len(sizes)))
    found = _along(table, dim, View(index.buffer, index.offset, sizes, strides))
    return _reshaped(lowering, lowering.elementwise(result.dtype, "{0}", [Operand(found, result.dtype)], sizes), result)


def _vector(view: View) -> View:
    """A view that has dims: torch takes a number for a vector of one."""
    return view if view.sizes else replace(view, sizes=(1,), strides=(1,))


def _along(table: View, dim: int, index: View) -> Indirect:
    """The elements of `table` at `index` along a dim, at the same places along the others."""
    strides = tuple(0 if i == dim else s for i, s in enumerate(table.strides))
    return Indirect(
        View(table.buffer, table.offset, index.sizes, strides), ((index, table.sizes[dim], table.strides[dim]),)
    )


@handles("gather")
def _gather(lowering: Lowering, n: Any, result: Tensor) -> View:
    table, index = (_vector(lowering.view(n.args[i])) for i in (0, 2))
    found = Operand(_along(table, n.args[1] % len(table.sizes), index), result.dtype)
    return _reshaped(lowering, lowering.elementwise(result.dtype, "{0}", [found], index.sizes), result)


@handles("scatter", "scatter_add")
def _scatter(lowering: Lowering, n: Any, result: Tensor) -> View:
    if len(n.args) > 4 or n.kwargs:
        raise UnsupportedError("aten::scatter with reduce")
    dtype, index = result.dtype, _vector(lowering.view(n.args[2]))
    out = lowering.loop(
        dtype, "{0}", [lowering.operand(n.args[0], tuple(result.shape), dtype)], lowering.new_view(dtype, result.shape)
    )
    source: Any = n.args[3]
    if isinstance(source, fx.Node):
        view = _vector(lowering.view(source))
        operand = Operand(replace(view, sizes=index.sizes), dtype)
    else:
        operand = Operand(literal(source, dtype), dtype)
    fold = _sum_of(dtype) if "scatter_add" in str(n.target) else None
    table = _vector(out)
    lowering.loop(dtype, "{0}", [operand], _along(table, n.args[1] % len(table.sizes), index), fold)
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
    fold = _sum_of(dtype) if _argument(n, 3, "accumulate", False) else None
    lowering.loop(dtype, "{0}", [lowering.operand(n.args[2], target.view.sizes, dtype)], target, fold)
    return out


# -- linear algebra --------------------------------------------------------------------------------------------------


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
    if _argument(n, 1, "upper", False):
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
