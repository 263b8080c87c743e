"""A compiled function as one operation of the steps that use it.

A short function is traced into them, where it shares their loops, and what no one asks for is not computed. One that
takes long to compile is compiled once: steps call it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from pyro_ebm._core.program.lowering import Lowering, handles
from pyro_ebm._core.program.pointwise import C_TYPES
from pyro_ebm._core.program.statements import Operand, Statement, View


class Callee(Protocol):
    """What a C program calls."""

    @property
    def addresses(self) -> Sequence[int]:
        """Pointers that it is called by."""
        ...

    def take_errors(self) -> list[BaseException]:
        """What went wrong in calls since, and could not leave C."""
        ...


class Linkable(Callee, Protocol):
    """A C program of one step without a carry: from x to y.

    Attributes:
        results: shapes and dtypes of its y.
    """

    results: list[tuple[torch.Size, torch.dtype]]

    @property
    def addresses(self) -> tuple[int, int, int, int]:
        """Of its function, of its own `library`, of the pointers to what it captures, and of its scratch memory."""
        ...

    @property
    def num_captured(self) -> int:
        """How many of these pointers there are."""
        ...

    def __call__(self, carry: Any, xs: Any, constants: Any) -> tuple[Any, Any]:
        """See `Program`."""
        ...


_programs: WeakValueDictionary[int, Any] = WeakValueDictionary()
_keys = itertools.count()


def linked(program: Linkable) -> Callable[..., tuple[Tensor, ...]] | None:
    """A program as a function that tracers see as one operation; nothing if its results are of several dtypes."""
    if len({dtype for _, dtype in program.results}) > 1:
        return None
    key = next(_keys)
    _programs[key] = program
    sizes = [shape.numel() for shape, _ in program.results]

    def function(*x: Tensor) -> tuple[Tensor, ...]:
        flat = call(key, list(x)).split(sizes)
        return tuple(part.view(shape) for part, (shape, _) in zip(flat, program.results, strict=True))

    return function


@torch.library.custom_op("pyro_ebm::call", mutates_args=())
def call(key: int, arguments: list[Tensor]) -> Tensor:
    """All results of a program, one after the other."""
    _, results = _programs[key]((), tuple(each.unsqueeze(0) for each in arguments), ())
    return torch.cat([y[0].flatten() for y in results])


@call.register_fake
def _fake_call(key: int, arguments: list[Tensor]) -> Tensor:
    results = _programs[key].results
    return arguments[0].new_empty(sum(shape.numel() for shape, _ in results), dtype=results[0][1])


@handles("pyro_ebm::call")
def _call(lowering: Lowering, n: Any, result: Tensor) -> View:
    key, arguments = n.args
    program: Linkable = _programs[key]
    first = lowering.link(program)
    operands = [lowering.copy(lowering.view(each), lowering.example(each).dtype) for each in arguments]
    out = lowering.new_view(result.dtype, tuple(result.shape))
    offsets = itertools.accumulate((shape.numel() for shape, _ in program.results[:-1]), initial=0)
    given = [*(f"{{{i}}}" for i in range(len(operands))), *(f"{{out}} + {offset}" for offset in offsets)]
    function = f"((void (*)(void**, void**, char*, int64_t, int))library[{first}])"
    code = (
        f"{{{{ void* given[{len(given) + program.num_captured}] = {{{{{', '.join(given)}}}}};"
        f" memcpy(given + {len(given)}, library[{first + 2}], {program.num_captured} * sizeof(void*));"
        f" memset({{out}}, 0, {math.prod(out.sizes)} * sizeof({C_TYPES[result.dtype]}));"
        f" {function}(given, library[{first + 1}], library[{first + 3}], 1, 0); }}}}"
    )
    made = tuple(Operand(each, lowering.buffers[each.buffer].dtype) for each in operands)
    lowering.emit(Statement((), made, out, result.dtype, code=code))
    return out
