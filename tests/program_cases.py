"""What the tests of programs run: a table of operations, and a generator of random steps."""

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_ebm._core.program.pointwise import ARITHMETIC, COMPARISONS

aten = torch.ops.aten
Case = tuple[str, Callable[[Any], Any]]

BITS = {"__and__", "__or__", "__xor__", "bitwise_and", "bitwise_or", "bitwise_xor"}
BINARY = BITS | {
    *("add", "sub", "mul", "div", "maximum", "minimum", "clamp_min", "clamp_max", "fmod", "remainder", "atan2", "pow"),
    *("hypot", "copysign", "fmax", "fmin"),
    *(
        "__lshift__",
        "__rshift__",
        "bitwise_left_shift",
        "bitwise_right_shift",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "logical_and",
    ),
    *("logical_or", "logical_xor"),
}


def inputs(dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """Tensors of many shapes, and pairs of special values."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "s": (),
        "v": (5,),
        "m": (3, 4),
        "r": (4, 1),
        "n": (3, 3),
        "one": (1, 1),
        "t": (2, 3, 4),
        "q": (2, 3, 1, 4),
    }
    shapes |= {"e": (0, 4), "big": (40, 30)}
    if dtype == torch.bool:
        made = {k: torch.rand(v, generator=generator) < 0.5 for k, v in shapes.items()}
        special = [True, False]
    elif dtype.is_floating_point:
        made = {k: torch.randn(v, generator=generator, dtype=dtype) for k, v in shapes.items()}
        special = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0, 1e-30, -1e30, 20.5, -7.0]
    else:
        made = {k: torch.randint(-9, 10, v, generator=generator, dtype=dtype) for k, v in shapes.items()}
        special = [0, 1, -1, 2, -2, 63, 64, -64, 7, torch.iinfo(dtype).max, torch.iinfo(dtype).min]
    row = torch.tensor(special, dtype=dtype).roll(seed)
    made |= {"a": row.repeat_interleave(len(row)), "b": row.repeat(len(row)), "special": row}
    ties = torch.randint(0, 3, (4, 6), generator=generator).to(dtype)
    made["ties"] = (
        torch.where(torch.rand(4, 6, generator=generator) < 0.1, math.nan, ties) if dtype.is_floating_point else ties
    )
    made["i"] = torch.randint(-3, 3, (2, 5), generator=generator)
    made["j"] = torch.randint(0, 3, (2, 4), generator=generator)
    made["p"] = made["m"].clone()
    made["k"] = made["j"] % 2
    made["mask"] = torch.rand(3, 4, generator=generator) < 0.5
    return made


def _binary(name: str) -> Iterator[Case]:
    call = getattr(aten, name)
    pairs: list[Callable[[Any], tuple[Any, Any]]] = [
        (lambda d: (d.a, d.b))
        if name not in ("fmod", "remainder")
        else lambda d: (d.m, d.r),  # torch's own is off where it is vectorised
        lambda d: (d.m, d.m.t().reshape(3, 4)),
        lambda d: (d.n.t(), d.n),
        lambda d: (d.t, d.s) if name not in ("clamp_min", "clamp_max") else (d.t, d.m),
        lambda d: (d.q, d.r.t()),
        lambda d: (d.v.expand(2, 5), d.v),
        lambda d: (d.m[:, ::2], d.m[:, 1::2]),
        lambda d: (d.e, d.e),
        lambda d: (d.one, d.s),
    ]
    scalars = {"atan2", "hypot", "maximum", "minimum", "fmax", "fmin"}
    for pair in pairs if name in ("add", "lt", "div") else [pairs[0], pairs[1 + hash_of(name) % (len(pairs) - 1)]]:
        yield name, lambda d, pair=pair: call(*pair(d))
    for number in () if name in scalars or name.startswith("logical") else (2, -1, 0.5, 3, 0):
        yield name, lambda d, number=number: call(d.special, number)


def hash_of(name: str) -> int:
    return sum(map(ord, name))


def _unary(name: str) -> Iterator[Case]:
    call = getattr(aten, name)
    yield name, lambda d: call(d.special)
    yield name, lambda d: call(d.m.t())
    yield name, lambda d: call(d.big[:7, 3:] / 3 if d.big.is_floating_point() else d.big[:7, 3:])  # long: vector math


def _spd(d: Any) -> Tensor:
    """Three matrices of which the second is not positive definite."""
    square = d.n.mm(d.n.t()) + torch.eye(3, dtype=d.n.dtype)
    return aten.cat([square.unsqueeze(0), -square.unsqueeze(0), 2 * square.unsqueeze(0)])


def _lower(d: Any) -> Tensor:
    return d.n + 4 * torch.eye(3, dtype=d.n.dtype)


def table() -> list[Case]:
    """The operations by name, each a function of `inputs`."""
    cases: list[Case] = []
    for name in [*ARITHMETIC, *COMPARISONS]:
        cases += _binary(name) if name in BINARY else _unary(name)
    for name in ("sum", "mean", "prod", "amax", "amin", "any", "all", "max", "min"):
        call = getattr(aten, name)
        several = name in ("sum", "mean", "amax", "amin", "any", "all")
        cases += [
            (name, lambda d, c=call: c(d.m.t())),
            (name, lambda d, c=call: c(d.t, 1)),
            (name, lambda d, c=call: c(d.s, 0)),
            (name, lambda d, c=call: c(d.ties, -1, True)),
            (name, lambda d, c=call: c(d.t.transpose(0, 2), -2)),
            (name, lambda d, c=call: c(d.e, 1)),
            (name, lambda d, c=call: c(d.big, 0)),
            (name, lambda d, c=call: c(d.special)),
        ]
        cases += [(name, lambda d, c=call, k=k: c(d.q, [0, -1], k)) for k in (False, True) if several]
        cases += [(name, lambda d, c=call: c(d.r.expand(2, 4, 3), [0, 2])) for _ in range(several)]
        cases += [(name, lambda d, c=call: c(d.e)) for _ in range(name not in ("amax", "amin", "max", "min"))]
        cases += [(name, lambda d, c=call: c(d.m > 0)), (name, lambda d, c=call: c(d.m > 0, 0))]
    cases += [
        ("sum", lambda d: aten.sum(d.e, [0])),
        ("any", lambda d: aten.any(d.t, [])),
        ("sum", lambda d: aten.sum(d.t, [])),
    ]
    cases += [
        ("sum", lambda d: aten.sum(d.m, dtype=torch.float64)),
        ("mean", lambda d: aten.mean(d.j, dtype=d.m.dtype)),
    ]
    for order in (2, 1, 0, 3, 0.5, math.inf, -math.inf):
        for case in (lambda d: (d.m.t(),), lambda d: (d.t, [0, -1], True), lambda d: (d.special, [0])):
            cases.append(
                ("linalg_vector_norm", lambda d, c=case, p=order: aten.linalg_vector_norm(c(d)[0], p, *c(d)[1:]))
            )
    cases += [
        ("linalg_vector_norm", lambda d: aten.linalg_vector_norm(d.s)),
        ("linalg_vector_norm", lambda d: aten.linalg_vector_norm(d.e, 2, [1])),
        ("linalg_vector_norm", lambda d: aten.linalg_vector_norm(d.big, dtype=torch.float64)),
    ]
    for name in ("argmax", "argmin"):
        call = getattr(aten, name)
        cases += [
            (name, lambda d, c=call: c(d.ties, 1)),
            (name, lambda d, c=call: c(d.ties.t(), -1, True)),
            (name, lambda d, c=call: c(d.ties)),
            (name, lambda d, c=call: c(d.s)),
            (name, lambda d, c=call: c(d.q, 1)),
            (name, lambda d, c=call: c(d.ties.t())),
        ]
    for name in ("cumsum", "cumprod"):
        call = getattr(aten, name)
        cases += [(name, lambda d, c=call, dim=dim: c(d.t.transpose(1, 2), dim)) for dim in (0, 1, -1)]
        cases += [(name, lambda d, c=call: c(d.s, 0)), (name, lambda d, c=call: c(d.e, 0))]
        cases += [(name, lambda d, c=call: c(d.special, 0)), (name, lambda d, c=call: c(d.r.expand(4, 3), 1))]
    for f in (lambda x: x + 1 > x, lambda x: x * 2 < x, lambda x: -x < 0, lambda x: abs(x) < 0, lambda x: x - 1 < x):
        cases.append(("neg", lambda d, f=f: f(d.special)))  # integers wrap around
    for mode in ("floor", "trunc"):
        cases += [("div", lambda d, m=mode: aten.div(d.m, d.r, rounding_mode=m))]
        cases += [("div", lambda d, m=mode: aten.div(d.a / 1, d.b, rounding_mode=m))]  # torch falls over min / -1
        cases += [("div", lambda d, m=mode, y=y: aten.div(d.special, y, rounding_mode=m)) for y in (3, -0.7, 0.0)]
    for name in ("add", "sub"):
        call = getattr(aten, name)
        cases += [(name, lambda d, c=call, k=k: c(d.m, d.r, alpha=k)) for k in (-2, 0.5)]
        cases += [(name, lambda d, c=call: c(d.m, 3, 2))]
    cases += [("mul", lambda d: aten.sqrt(d.m * d.m - d.p * d.p)), ("flip", lambda d: aten.flip(d.s, [0]))]
    return cases + VIEWS + FILLED + JOINS + INDEXING + PRODUCTS


VIEWS: list[Case] = [
    ("view", lambda d: aten.view(d.m, [2, -1])),
    ("_unsafe_view", lambda d: aten._unsafe_view(d.t, [6, 4])),
    ("reshape", lambda d: aten.reshape(d.t.transpose(0, 1), [-1])),
    ("reshape", lambda d: aten.reshape(d.r.expand(4, 3), [2, 6])),
    ("reshape", lambda d: aten.reshape(d.e, [4, 0])),
    ("expand", lambda d: aten.expand(d.r, [2, -1, 3])),
    ("permute", lambda d: aten.permute(d.q, [-1, 0, 2, 1])),
    ("t", lambda d: aten.t(d.m)),
    ("mT", lambda d: aten.mT(d.t)),
    ("transpose", lambda d: aten.transpose(d.t, 0, -1)),
    ("squeeze", lambda d: aten.squeeze(d.q)),
    ("squeeze", lambda d: aten.squeeze(d.q, -2)),
    ("squeeze", lambda d: aten.squeeze(d.one, [0, 1])),
    ("unsqueeze", lambda d: aten.unsqueeze(d.m.t(), -2)),
    ("select", lambda d: aten.select(d.t, -1, -2)),
    ("slice", lambda d: aten.slice(d.t, 2, 1, None, 2)),
    ("slice", lambda d: aten.slice(d.m, -2, -2, 99)),
    ("slice", lambda d: aten.slice(d.m, 0, 2, 1)),
    ("diagonal", lambda d: aten.diagonal(d.t, 1, -2, -1)),
    ("unfold", lambda d: aten.unfold(d.v, 0, 3, 1)),
    ("as_strided", lambda d: aten.as_strided(aten.clone(d.m), [2, 3], [5, 1], 2)),
    ("as_strided", lambda d: aten.as_strided(aten.clone(d.m), [2, 2], [4, 1])),
    ("split", lambda d: aten.split(d.m, 3, 1)),
    ("split_with_sizes", lambda d: aten.split_with_sizes(d.t, [1, 0, 3], -1)),
    ("unbind", lambda d: aten.unbind(d.t, 1)),
    ("chunk", lambda d: aten.chunk(d.v, 2)),
    ("flip", lambda d: aten.flip(d.t, [0, -1])),
    ("flip", lambda d: aten.flip(d.m.t(), [1])),
    ("flip", lambda d: aten.flip(d.e, [0])),
    ("detach", lambda d: aten.detach(d.m)),
    ("alias", lambda d: aten.alias(d.m.t())),
    ("lift_fresh", lambda d: aten.lift_fresh(d.s)),
    ("clone", lambda d: aten.clone(d.m.t())),
    ("lift_fresh_copy", lambda d: aten.lift_fresh_copy(d.v)),
    ("contiguous", lambda d: aten.contiguous(d.m.t())),
    ("copy", lambda d: aten.copy(d.m, d.one[0])),
    ("copy", lambda d: aten.copy(d.m, d.mask)),
    ("detach_", lambda d: aten.detach_(aten.clone(d.m))),
]
for _dtype in (torch.float64, torch.float32, torch.int64, torch.int32, torch.bool):
    VIEWS.append(("to", lambda d, dtype=_dtype: aten.to(d.m * 2, dtype)))
    VIEWS.append(("_to_copy", lambda d, dtype=_dtype: aten._to_copy(d.m.t(), dtype=dtype)))

FILLED: list[Case] = [
    ("full_like", lambda d: aten.full_like(d.m, 1) + d.m),
    ("full_like", lambda d: aten.full_like(d.m, 2.5, dtype=torch.float64)),
    ("full_like", lambda d: aten.full_like(d.m, -math.inf, dtype=torch.float32) * aten.ones_like(d.m)),
    ("new_full", lambda d: aten.new_full(d.m, [2, 0, 3], 1)),
    ("zeros_like", lambda d: aten.zeros_like(d.e)),
    ("ones_like", lambda d: aten.ones_like(d.t).transpose(0, 1).sum(0)),
    ("new_zeros", lambda d: aten.detach(aten.new_zeros(d.m, [])).expand(2, 3)),
    ("new_ones", lambda d: aten.new_ones(d.m, [3], dtype=torch.int64)),
    ("empty_like", lambda d: aten.copy(aten.empty_like(d.m), d.m)),
    ("new_empty", lambda d: aten.new_empty(d.m, [0, 2])),
    ("new_empty_strided", lambda d: aten.copy(aten.new_empty_strided(d.m, [3, 4], [1, 3]), d.m)),
    ("where", lambda d: aten.where(d.mask, d.m, d.one)),
    ("where", lambda d: aten.where(d.mask.t(), d.r, d.s)),
    ("where", lambda d: aten.where(d.mask, d.m, d.j[:1, :1])),
    ("clamp", lambda d: aten.clamp(d.special, -1, 1)),
    ("clamp", lambda d: aten.clamp(d.special, None, 1.5)),
    ("clamp", lambda d: aten.clamp(d.a, d.b, d.special[2])),
    ("clamp", lambda d: aten.clamp(d.t, d.m, d.r.t())),
    ("bitwise_not", lambda d: aten.bitwise_not(d.special)),
    ("logaddexp", lambda d: aten.logaddexp(d.a, d.b)),
    ("logaddexp", lambda d: aten.logaddexp(d.t, d.m)),
    ("addcmul", lambda d: aten.addcmul(d.m, d.r.t(), d.one, value=2)),
    ("addcmul", lambda d: aten.addcmul(d.a, d.a, d.b)),
    ("addcdiv", lambda d: aten.addcdiv(d.m, d.r.t(), d.one, value=-0.5)),
]

JOINS: list[Case] = [
    ("cat", lambda d: aten.cat([d.m, d.m.t().reshape(3, 4), d.m[:0]], 0)),
    ("cat", lambda d: aten.cat([d.t.transpose(1, 2), d.one.expand(2, 4, 2)], -1)),
    ("cat", lambda d: aten.cat([d.v[:0], d.v, d.j[0]])),
    ("slice_scatter", lambda d: aten.slice_scatter(d.m, d.one, 1, 0, None, 4)[:, :0]),
    ("slice_scatter", lambda d: aten.slice_scatter(d.m.t(), d.m[:, ::2].t(), 0, 1, 4, 2)),
    ("slice_scatter", lambda d: aten.slice_scatter(d.m.expand(2, 3, 4), d.t[..., -1:], -1, -1)),
    ("select_scatter", lambda d: aten.select_scatter(d.m, d.m[:, 0], -1, -1)),
    ("diagonal_scatter", lambda d: aten.diagonal_scatter(d.n.t(), d.n[:2, 0], 1)),
    ("as_strided_scatter", lambda d: aten.as_strided_scatter(aten.clone(d.m), d.n[:2], [2, 3], [5, 1], 1)),
    ("constant_pad_nd", lambda d: aten.constant_pad_nd(d.m.t(), [1, 2, 0, 1], 1)),
    ("constant_pad_nd", lambda d: aten.constant_pad_nd(d.t, [-1, 2, 1, -2])),
    ("constant_pad_nd", lambda d: aten.constant_pad_nd(d.e, [0, 1, 2, 0])),
    ("repeat", lambda d: aten.repeat(d.m.t(), [2, 1, 3])),
    ("repeat", lambda d: aten.repeat(d.s, [3])),
    ("repeat", lambda d: aten.repeat(d.m, [0, 2])),
]

INDEXING: list[Case] = [
    ("index", lambda d: aten.index(d.m, [d.i])),
    ("index", lambda d: aten.index(d.t, [None, d.i[0], d.j[:1, 0] - 1])),
    ("index", lambda d: aten.index(d.t.transpose(0, 2), [d.j[0], None, d.k[1]])),
    ("index", lambda d: aten.index(d.q, [None, d.i[:0]])),
    ("index", lambda d: aten.index(d.t, [d.mask.to(torch.int64)[:1], d.j.to(torch.int32)[:1], d.j])),
    ("_unsafe_index", lambda d: aten._unsafe_index(d.t, [None, None, d.j])),
    ("index_select", lambda d: aten.index_select(d.t, -2, d.j[0])),
    ("index_select", lambda d: aten.index_select(d.m.t(), 1, d.j[1, :0])),
    ("index_select", lambda d: aten.index_select(d.v, 0, d.j[0, 0])),
    ("gather", lambda d: aten.gather(d.m, 1, d.j)),
    ("gather", lambda d: aten.gather(d.m.t(), -2, d.j[:, :3])),
    ("gather", lambda d: aten.gather(d.v, 0, d.j.reshape(-1)[::2])),
    ("gather", lambda d: aten.gather(d.v, 0, d.j.reshape(-1)[:0])),
    ("scatter", lambda d: aten.scatter(d.m, 0, d.j[:1], d.m.t().reshape(3, 4))),
    ("scatter", lambda d: aten.scatter(d.t, 1, d.j.unsqueeze(-1), 1)),
    ("scatter", lambda d: aten.scatter(d.t.transpose(0, 1), -1, d.j[:, :2].unsqueeze(1), True)),
    ("scatter_add", lambda d: aten.scatter_add(d.m.t(), 0, d.j.t()[:, :2], d.n.repeat(2, 1))),
    ("scatter_add", lambda d: aten.scatter_add(d.v, 0, d.j[0], d.m[0])),
    ("index_put", lambda d: aten.index_put(d.m, [d.j[0, :1] - 3], d.m[1])),
    ("index_put", lambda d: aten.index_put(d.m.t(), [None, d.i[0]], d.one[0], True)),
    ("index_put", lambda d: aten.index_put(d.t, [d.k, None, d.j], d.v[:3], True)),
    ("index_put", lambda d: aten.index_put(d.v, [d.i], d.s, True)),
    ("_unsafe_index_put", lambda d: aten._unsafe_index_put(d.t, [None, d.i[1]], d.t[:, :1], True)),
]

PRODUCTS: list[Case] = [
    ("mm", lambda d: aten.mm(d.m, d.m.t())),
    ("mm", lambda d: aten.mm(d.m.t(), d.m[:, :2])),
    ("mm", lambda d: aten.mm(d.e, d.r)),
    ("mm", lambda d: aten.mm(d.e.t(), d.e)),
    ("mm", lambda d: aten.mm(d.big, d.big.t())),
    ("mm", lambda d: aten.mm(d.big[::2, ::3], d.big.reshape(10, 120))),
    ("mm", lambda d: aten.mm(d.big.reshape(120, 10), d.big[:10, 3:18])),
    ("mm", lambda d: aten.mm(d.big[:, :1].expand(40, 30), d.big.t())),
    ("mm", lambda d: aten.mm(d.big.reshape(1200, 1), d.big[:1, 2:12])),
    ("bmm", lambda d: aten.bmm(d.t, d.t.transpose(1, 2))),
    ("bmm", lambda d: aten.bmm(d.t.transpose(1, 2), d.t[:, :, :1])),
    ("bmm", lambda d: aten.bmm(d.big.expand(3, 40, 30), d.big.reshape(3, 20, 20).repeat(1, 2, 1)[:, :30])),
    ("bmm", lambda d: aten.bmm(d.big.reshape(2, 20, 30), d.big.t().expand(2, 30, 40))),
    ("bmm", lambda d: aten.bmm(d.big.reshape(1, 40, 30), d.big.t().unsqueeze(0))),
    ("linalg_cholesky_ex", lambda d: torch.linalg.cholesky(_spd(d))),
    ("linalg_cholesky_ex", lambda d: aten.linalg_cholesky_ex(_spd(d)[0].t())),
    ("linalg_cholesky_ex", lambda d: aten.linalg_cholesky_ex(_spd(d))[1]),
    *(
        (
            "linalg_solve_triangular",
            lambda d, u=upper, left=left: aten.linalg_solve_triangular(_lower(d), d.t[..., 1:], upper=u, left=left),
        )
        for upper in (False, True)
        for left in (False, True)
    ),
    (
        "linalg_solve_triangular",
        lambda d: aten.linalg_solve_triangular(_lower(d).t().expand(2, 3, 3), d.n[:, :1].expand(2, 3, 1), upper=True),
    ),
]


# -- random steps ------------------------------------------------------------------------------------------------------


def _like(rng: random.Random, pool: list[Tensor], sizes: Sequence[int]) -> Tensor:
    """A tensor of the pool that broadcasts to a shape, or one of its elements."""
    fitting = [x for x in pool if x.dim() <= len(sizes) and _broadcasts(x, sizes)]
    return rng.choice(fitting) if fitting else rng.choice(pool).reshape(-1)[-1]


def _broadcasts(x: Tensor, sizes: Sequence[int]) -> bool:
    return all(old in (1, new) for old, new in zip(reversed(x.shape), reversed(sizes), strict=False))


def _fitted(rng: random.Random, x: Tensor, sizes: Sequence[int]) -> Tensor:
    """A tensor made to have a shape, by one of several ways."""
    count = math.prod(sizes)
    if tuple(x.shape) == tuple(sizes):
        return x
    if x.numel() == count:
        return x.reshape(tuple(sizes))
    if x.dim() <= len(sizes) and _broadcasts(x, sizes):
        return x.expand(tuple(sizes))
    flat = x.reshape(-1)
    return flat.repeat(-(-count // flat.numel()))[:count].reshape(tuple(sizes))


def _pointwise(rng: random.Random, pool: list[Tensor], raw: list[Tensor]) -> Tensor:
    x = rng.choice(pool)
    y = _like(rng, pool, x.shape)
    functions: list[Callable[[], Tensor]] = [
        lambda: x.tanh(),
        lambda: x.sin() * 0.9,
        lambda: (x + y) * 0.5,
        lambda: x - y * 0.25,
        lambda: (x * y).clamp(-2, 2),
        lambda: torch.maximum(x, y),
        lambda: torch.minimum(y, x),
        lambda: torch.sigmoid(x - y),
        lambda: torch.nn.functional.softplus(x) - y,
        lambda: (1 + x.square()).log(),
        lambda: (1 + x * x).rsqrt(),
        lambda: torch.addcmul(x, y.tanh(), y, value=0.5),
        lambda: torch.logaddexp(x, y) * 0.5,
        lambda: (x.abs() + 0.1).sqrt().clamp(max=3) + y,
        lambda: torch.where(_like(rng, raw, x.shape) > 0.1, x, y),
        lambda: torch.where(x.isfinite(), -x, y),
        lambda: x.masked_fill(_like(rng, raw, x.shape) < 0, 0.25),
        lambda: torch.full_like(x, 0.5) * y,
        lambda: x.relu() - (-y).clone(),
        lambda: torch.exp(-x.abs()),
    ]
    return rng.choice(functions)()


def _shaped(rng: random.Random, pool: list[Tensor], raw: list[Tensor]) -> Tensor:
    x = rng.choice([x for x in pool if x.dim()])
    dim = rng.randrange(-x.dim(), x.dim())
    size = x.shape[dim]
    functions: list[Callable[[], Tensor]] = [
        lambda: x.transpose(0, dim),
        lambda: x.movedim(dim, 0),
        lambda: x.unsqueeze(dim) if x.dim() < 4 else x.flatten(),
        lambda: x.squeeze(),
        lambda: x.select(dim, rng.randrange(-size, size)),
        lambda: x.narrow(dim, rng.randrange(size), 1),
        lambda: x[..., ::2],
        lambda: x.flip(dim),
        lambda: x.roll(1, dim),
        lambda: x.reshape(-1),
        lambda: x.expand(2, *x.shape) if x.dim() < 4 else x[0],
        lambda: torch.cat([x, x.flip(dim)], dim) if x.numel() < 60 else x.sum(dim),
        lambda: torch.nn.functional.pad(x, (1, 0), value=0.5) if x.numel() < 60 else x.amax(dim),
        lambda: x.unfold(0, 1, 1) if x.dim() < 4 else x.squeeze(),
        lambda: x.diagonal(0, -2, -1) if x.dim() > 1 else x,
        lambda: x.split([1, size - 1], dim)[0],
    ]
    return rng.choice(functions)()


def _folded(rng: random.Random, pool: list[Tensor], raw: list[Tensor]) -> Tensor:
    x = rng.choice([x for x in pool if x.dim()])
    dim, keep = rng.randrange(-x.dim(), x.dim()), rng.random() < 0.6
    functions: list[Callable[[], Tensor]] = [
        lambda: x.sum(dim, keep).tanh(),
        lambda: x.sum().sin(),
        lambda: x.mean(dim, keep),
        lambda: x.mean() - x,
        lambda: x.amax(dim, keep),
        lambda: x.min(dim, keep).values,
        lambda: x.logsumexp(dim, keep),
        lambda: x.softmax(dim),
        lambda: x.sigmoid().prod(dim, keep),
        lambda: x.cumsum(dim).tanh(),
        lambda: torch.where((x > 40).any(dim, True), 0.0, x),
        lambda: torch.where((x < 40).all(), x, 1.0),
    ]
    return rng.choice(functions)()


def _indexed(rng: random.Random, pool: list[Tensor], raw: list[Tensor]) -> Tensor:
    x, source = rng.choice([x for x in pool if x.dim()]), rng.choice(raw)
    dim = rng.randrange(-x.dim(), x.dim())
    size = x.shape[dim]
    places = (source.reshape(-1)[: rng.choice([6, size, size])] * 7).to(torch.int64).abs().fmod(size)
    spread = places.reshape([-1 if i == dim % x.dim() else 1 for i in range(x.dim())])
    picked = spread.expand([-1 if i == dim % x.dim() else n for i, n in enumerate(x.shape)])
    first = (source.reshape(-1)[:2] * 5).to(torch.int64).abs().fmod(x.shape[0]) - x.shape[0]
    functions: list[Callable[[], Tensor]] = [
        lambda: x.index_select(dim, places),
        lambda: x.gather(dim, picked),
        lambda: x.scatter_add(dim, picked, x.index_select(dim, places) * 0.1),
        lambda: x.scatter(dim, picked, 0.5),
        lambda: x[first],
        lambda: x.index_put((first,), _like(rng, pool, x.shape[1:]) * 0.1, accumulate=True),
        lambda: x.slice_scatter(x.narrow(dim, 0, 1) * 0.5, dim, size - 1),
        lambda: x.select_scatter(x.select(dim, 0).sin(), dim, -1),
        lambda: torch.where(x.argmax(dim, True) >= 0, x, 1.0),
        lambda: _changed(x + 0 * raw[0].sum(), dim),
    ]
    return rng.choice(functions)()


def _changed(x: Tensor, dim: int) -> Tensor:
    """Changed in place, which a trace undoes."""
    x = x.clone()
    x.select(dim, 0).mul_(0.5)
    return x.add_(0.125)


def _multiplied(rng: random.Random, pool: list[Tensor], raw: list[Tensor]) -> Tensor:
    x = rng.choice([x for x in pool if x.dim() > 1])
    x = x.reshape(-1, x.shape[-1])[:24]
    functions: list[Callable[[], Tensor]] = [
        lambda: (x @ x.t()).tanh(),
        lambda: (x.t() @ x).sin(),
        lambda: torch.einsum("ij,kj->ki", x, x.flip(0)).tanh(),
        lambda: (x @ x.mean(0)).tanh(),
        lambda: torch.linalg.cholesky(x @ x.t() * 0.1 + 2 * torch.eye(len(x), dtype=x.dtype)),
        lambda: torch.linalg.solve_triangular(x @ x.t() * 0.05 + 3 * torch.eye(len(x), dtype=x.dtype), x, upper=False),
    ]
    return rng.choice(functions)()


class RandomStep:
    """A step that depends on its seed alone; its carries read each other, or are passed on as they are."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64) -> None:
        self.seed = seed
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)

        def drawn(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator, dtype=dtype)

        rows, columns = rng.choice([(3, 4), (5, 2), (1, 6), (4, 4), (16, 24)])
        shapes = [(rows, columns), (rows, columns), (columns, rows), (rows,), (), (2, rows, columns)]
        self.carry = [drawn(*rng.choice(shapes)) for _ in range(rng.randint(2, 6))]
        self.xs = [drawn(5, *rng.choice(shapes)) for _ in range(rng.randint(1, 3))]
        self.constants = [drawn(rows, columns).t(), drawn(columns)]
        self.captured = [drawn(columns, rows).t(), drawn()]

    def __call__(self, carry: list[Tensor], x: list[Tensor], constants: list[Tensor]) -> tuple[Any, Any]:
        """The step."""
        rng = random.Random(self.seed)
        raw = [*carry, *x, *constants, *self.captured]
        pool = list(raw)
        kinds = [_pointwise] * 6 + [_shaped] * 3 + [_folded] * 2 + [_indexed, _multiplied]
        for _ in range(rng.randint(20, 40)):
            recent = pool if rng.random() < 0.5 else [*raw, *pool[-4:]]
            made = rng.choice(kinds)(rng, recent, raw)
            pool.append(made if 0 < made.numel() <= 800 and made.dim() <= 4 else made.sum().tanh())
        new = []
        for old in carry:
            alike = [other for other in carry if other.shape == old.shape]
            choices = [
                old,
                rng.choice(alike),
                _fitted(rng, rng.choice(raw), old.shape),
                old.flip(0) if old.dim() else old,
            ]
            choices += [_fitted(rng, rng.choice(pool), old.shape).tanh(), _fitted(rng, rng.choice(pool), old.shape)]
            new.append(rng.choice([*choices, *choices[-2:], choices[-1]]))
        y = {"last": pool[-1], "some": rng.sample(pool, 4), "carry": rng.choice(carry), "new": rng.choice(new)}
        return new, y


def repeated_part(text: str) -> str:
    """Of a program's source, the bodies of the functions that are called in every repetition."""
    called = re.findall(r"part\d+", text.partition("for (int64_t repetition")[2])
    bodies = (text.partition(f"void {name}(")[2].partition("{")[2].partition("\nstatic ")[0] for name in called)
    return "".join(bodies)
