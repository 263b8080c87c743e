"""Operations that C programs do not know: they call torch back, for that one operation.

A call is one for all chains: it takes longer than a loop of a small model, and far less than to give up the program for
it. What goes wrong in a call cannot leave C as an exception: its results are then NaN, or zero, and the exception is
raised when the program returns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pyro_ebm._core.program.lowering import Lowering, UnsupportedError, handles
from pyro_ebm._core.program.statements import Operand, Statement, View

_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_void_p))
_DYNAMIC = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}


class Callback:
    """One operation of torch, to be called from C with pointers to its tensors; each result is then asked for.

    Args:
        function: the operation.
        arguments: its arguments, with an example in the place of each tensor: the tree, its leaves, and which of these
            are tensors.
        results: examples of its results, by their number.
    """

    def __init__(self, function: Any, arguments: pytree.PyTree, results: Mapping[int, Tensor]) -> None:
        self._function = function
        leaves, self._structure = pytree.tree_flatten(arguments)
        self._fixed = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self._kinds = [(leaf.shape, leaf.dtype) for leaf in leaves if isinstance(leaf, Tensor)]
        self._tensors: dict[tuple[int, int], Tensor] = {}  # by their number and where they are
        self._found: Sequence[Tensor] = ()
        self._error: BaseException | None = None
        copies = [self._copies(number, each.shape, each.dtype) for number, each in results.items()]
        self._pointers = [_FUNCTION(self._call), *map(_FUNCTION, copies)]

    @property
    def addresses(self) -> list[int]:
        """Of the call, and of what copies each of its results."""
        return [ctypes.cast(each, ctypes.c_void_p).value or 0 for each in self._pointers]

    def _tensor(self, number: int, address: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """The memory at an address: a program uses the same again and again."""
        known = self._tensors.get((number, address))
        if known is None:
            size = shape.numel() * dtype.itemsize
            memory = (ctypes.c_char * size).from_address(address) if size else None
            known = torch.empty(shape, dtype=dtype) if memory is None else torch.frombuffer(memory, dtype=dtype)
            self._tensors[number, address] = known = known.view(shape)
        return known

    def _call(self, pointers: Any) -> None:
        self._found = ()
        try:
            leaves = list(self._fixed)
            for number, place in enumerate(self._places):
                leaves[place] = self._tensor(number, pointers[number], *self._kinds[number])
            args, kwargs = pytree.tree_unflatten(leaves, self._structure)
            found = self._function(*args, **kwargs)
            self._found = [found] if isinstance(found, Tensor) else found
        except BaseException as error:  # it must not be lost, Ctrl-C included, and cannot pass through C
            self._error = self._error or error

    def _copies(self, number: int, shape: torch.Size, dtype: torch.dtype) -> Any:
        def copy(pointers: Any) -> None:
            try:
                out = self._tensor(-1 - number, pointers[1], shape, dtype)
                if self._found:
                    out.copy_(self._found[number])
                else:  # the call has failed
                    out.fill_(torch.nan if dtype.is_floating_point else 0)
            except BaseException as error:
                self._error = self._error or error

        return copy

    def take_errors(self) -> list[BaseException]:
        """See `Callee`."""
        error, self._error = self._error, None
        return [] if error is None else [error]


@handles("*")
def _call_back(lowering: Lowering, n: Any, result: Any) -> View | Sequence[View | None]:
    schema = n.target._schema
    several = not isinstance(result, Tensor)
    results = {i: each for i, each in enumerate(result if several else [result]) if each is not None}
    aliases = any(each.alias_info is not None for each in (*schema.arguments, *schema.returns))
    if aliases or _DYNAMIC & set(n.target.tags) or not all(isinstance(each, Tensor) for each in results.values()):
        raise UnsupportedError(schema.name)
    nodes = [leaf for leaf in pytree.tree_leaves((n.args, n.kwargs)) if isinstance(leaf, fx.Node)]
    operands = [lowering.copy(lowering.view(each), lowering.dtype(each)) for each in nodes]
    arguments = pytree.tree_map(lowering.example, (n.args, n.kwargs), is_leaf=lambda leaf: isinstance(leaf, fx.Node))
    first = lowering.link(Callback(n.target, arguments, results))
    called = lowering.new_view(torch.uint8, ())  # written with the call, and read by what must come after it
    _emit(lowering, first, operands, called, "{out}[0] = 1;")
    parts: list[View | None] = [None] * (max(results) + 1)
    for place, (number, each) in enumerate(results.items(), first + 1):
        parts[number] = out = lowering.new_view(each.dtype, tuple(each.shape))
        _emit(lowering, place, [called], out)
    return parts if several else out


def _emit(lowering: Lowering, place: int, read: Sequence[View], out: View, then: str = "") -> None:
    """A call of the function at a place in the library, with pointers to what it reads and to what it is for."""
    pointers = ", ".join([*(f"{{{i}}}" for i in range(len(read))), "{out}"])
    code = f"{{{{ void* given[] = {{{{ {pointers} }}}}; ((void (*)(void**))library[{place}])(given); {then} }}}}"
    operands = tuple(Operand(each, lowering.buffers[each.buffer].dtype) for each in read)
    lowering.emit(Statement((), operands, out, lowering.buffers[out.buffer].dtype, code=code))
