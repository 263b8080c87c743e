"""From a traced graph to statements: views become strides, everything else a loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from pyro_ebm._core.program.pointwise import ALIASES, ARITHMETIC, C_TYPES, COMPARISONS, COPIES, ROUNDED, literal
from pyro_ebm._core.program.statements import Buffer, Indirect, Operand, Statement, View, contiguous

# Products smaller than this are loops of their own, larger ones go to the linear-algebra library.
SMALL_PRODUCT = 8192

Number = float | int | bool


class UnsupportedError(Exception):
    """A graph has an operation that C programs do not know."""


# The first pointers of `library`.
NUM_PRODUCTS = 2


class Lowering(fx.Interpreter):
    """Lowers a graph node by node.

    Running it on example tensors computes the graph, for shapes and for a check of the program, and fills in:

    Args:
        graph_module: the graph.
        num_varying: how many of its inputs, the first, differ between repetitions.

    Attributes:
        buffers: the memory.
        statements: in an order that is right.
        inputs: the views of the graph's inputs, in order.
        captured: tensors that the graph holds, by buffer.
        linked: programs and callbacks that this one calls.
        addresses: theirs, which follow those of matrix products in `library`.
        choices: names of the nodes that choose by one boolean: a check can force them.
    """

    def __init__(self, graph_module: fx.GraphModule, num_varying: int) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self._num_varying = num_varying
        self.buffers: list[Buffer] = []
        self.statements: list[Statement] = []
        self.inputs: list[View] = []
        self.captured: dict[int, Tensor] = {}
        self.linked: list[Any] = []
        self.addresses: list[int] = []
        self.choices: set[str] = set()
        self._views: dict[fx.Node, View] = {}
        self._numbers: dict[fx.Node, Number] = {}
        self._parts: dict[fx.Node, Sequence[View | None]] = {}
        self._writers: dict[int, list[int]] = {}
        self._static: set[int] = set()  # buffers that are made of nothing but captured tensors and numbers

    # -- memory and statements ---------------------------------------------------------------------------------------

    def new_buffer(self, dtype: torch.dtype, numel: int, role: str = "local") -> int:
        """Set memory aside."""
        if dtype not in C_TYPES:
            raise UnsupportedError(f"tensors of {dtype}")
        self.buffers.append(Buffer(len(self.buffers), dtype, max(numel, 1), role))
        return self.buffers[-1].index

    def new_view(self, dtype: torch.dtype, sizes: Sequence[int], role: str = "local") -> View:
        """Set contiguous memory aside."""
        return contiguous(self.new_buffer(dtype, math.prod(sizes), role), tuple(sizes))

    def new_like(self, dtype: torch.dtype, sizes: Sequence[int], operands: Sequence[Operand]) -> View:
        """Set memory aside in the layout of an operand that is as large and dense, so that loops run along memory.

        Of several, the first that differs between repetitions: one that does not is read in any order, or not at all.
        """
        view = self.new_view(dtype, sizes)
        dense = [o.source for o in operands if isinstance(o.source, View) and o.source.is_dense]
        dense.sort(key=lambda source: self.buffers[source.buffer].constant)
        return replace(view, strides=dense[0].strides) if dense else view

    def _given(self, value: Tensor) -> View:
        """A buffer of the caller's, with the strides of an example."""
        if value.layout != torch.strided:
            raise UnsupportedError(f"tensors of layout {value.layout}")
        span = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
        return View(self.new_buffer(value.dtype, span, "input"), 0, tuple(value.shape), tuple(value.stride()))

    def _capture(self, value: Tensor) -> View:
        view = self._given(value)
        self.buffers[view.buffer].constant = True
        self.captured[view.buffer] = value
        self._static.add(view.buffer)
        return view

    def link(self, callee: Any) -> int:
        """Where the `addresses` of a program or callback are in `library`: the place of the first."""
        self.linked.append(callee)
        self.addresses += callee.addresses
        return NUM_PRODUCTS + len(self.addresses) - len(callee.addresses)

    def places(self, mask: Any) -> list[View]:
        """Where a boolean mask is true: a view of indices for each of its dims.

        Raises:
            UnsupportedError: if the mask depends on an input, so that the number of places does.
        """
        if self.view(mask).buffer not in self._static:
            raise UnsupportedError("a boolean mask that depends on values, as an index")
        return [self._capture(index.contiguous()) for index in self.example(mask).bool().nonzero(as_tuple=True)]

    def emit(self, statement: Statement) -> None:
        """Append a statement, to be run after those that write what it reads or writes."""
        if not statement.ordered:
            statement = statement.in_memory_order()
        for view in [*statement.views(), statement.target_view]:
            statement.after.update(self._writers.get(view.buffer, ()))
        target = self.buffers[statement.target_view.buffer]
        constant = target.role == "local" and all(self.buffers[v.buffer].constant for v in statement.views())
        target.constant = constant and (target.constant or target.index not in self._writers)
        static = target.role == "local" and all(view.buffer in self._static for view in statement.views())
        if static and (target.index in self._static or target.index not in self._writers):
            self._static.add(target.index)
        else:
            self._static.discard(target.index)
        self._writers.setdefault(statement.target_view.buffer, []).append(len(self.statements))
        self.statements.append(statement)

    def loop(
        self,
        dtype: torch.dtype,
        expression: str,
        operands: Sequence[Operand],
        target: View | Indirect,
        fold: str | None = None,
    ) -> View:
        """Emit a loop over the target's sizes."""
        view = target.view if isinstance(target, Indirect) else target
        self.emit(Statement(view.sizes, tuple(operands), target, dtype, expression, fold))
        return view

    def elementwise(
        self, dtype: torch.dtype, expression: str, operands: Sequence[Operand], sizes: Sequence[int]
    ) -> View:
        """Emit a loop into new memory."""
        return self.loop(dtype, expression, operands, self.new_like(dtype, sizes, operands))

    def copy(self, source: View, dtype: torch.dtype, target: View | None = None) -> View:
        """Copy a view, into new memory unless a target is given."""
        return self.loop(dtype, "{0}", [Operand(source, dtype)], target or self.new_view(dtype, source.sizes))

    # -- arguments ---------------------------------------------------------------------------------------------------

    def view(self, argument: Any) -> View:
        """The view of an argument that is a tensor."""
        if argument in self._numbers:
            dtype, sizes = self.env[argument].dtype, tuple(self.env[argument].shape)
            target = self.new_view(dtype, sizes)
            self._views[argument] = self.loop(dtype, literal(self._numbers.pop(argument), dtype), [], target)
        return self._views[argument]

    def dtype(self, argument: fx.Node) -> torch.dtype:
        """The dtype of an argument that is a tensor."""
        value: Tensor = self.env[argument]
        return value.dtype

    def operand(self, argument: Any, sizes: tuple[int, ...], dtype: torch.dtype) -> Operand:
        """An argument, broadcast and cast."""
        if not isinstance(argument, fx.Node):
            return Operand(literal(argument, dtype), dtype)
        if argument in self._numbers:
            return Operand(literal(self._numbers[argument], dtype), dtype)
        return Operand(self._views[argument].expanded(sizes), dtype)

    def example(self, argument: Any) -> Any:
        """The example's value of an argument."""
        return self.env[argument] if isinstance(argument, fx.Node) else argument

    # -- the interpreter ---------------------------------------------------------------------------------------------

    def run_node(self, n: Any) -> Any:
        """Compute a node, and lower it."""
        result = super().run_node(n)
        self.env[n] = result
        if n.op == "placeholder":
            self._views[n] = self._given(result)
            self.buffers[self._views[n].buffer].constant = len(self.inputs) >= self._num_varying
            self.inputs.append(self._views[n])
        elif n.op == "get_attr":
            self._views[n] = self._capture(result)
        elif n.op == "call_function":
            self._lower(n, result)
        return result

    def outputs(self, nodes: Sequence[fx.Node]) -> list[View]:
        """The views of the graph's outputs."""
        return [self.view(node) for node in nodes]

    def _lower(self, n: Any, result: Any) -> None:
        if not isinstance(n.target, torch._ops.OpOverload):
            part = self._parts[n.args[0]][n.args[1]] if n.args and n.args[0] in self._parts else None
            if part is None:
                raise UnsupportedError(str(n.target))
            self._views[n] = part
            return
        name = n.target._schema.name.removeprefix("aten::")
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor) and each.dtype not in C_TYPES:
                raise UnsupportedError(f"tensors of {each.dtype}")
        if torch.Tag.nondeterministic_seeded in n.target.tags:
            raise UnsupportedError(f"aten::{name}: random numbers come from outside")
        if not any(isinstance(each, Tensor) for each in n.all_input_nodes and map(self.env.get, n.all_input_nodes)):
            self._views[n] = self._capture(result)  # made of numbers alone: the same every time
        elif name in FILLS:
            self._numbers[n] = FILLS[name](n)
        elif name in ALIASES or (name in COPIES and self._is_alias(n, result)):
            self._alias(n, n.args[0])
        elif name in ARITHMETIC:
            self._arithmetic(n, name, result)
        elif name in COMPARISONS:
            operands = [self.example(a) for a in n.args]
            common = torch.result_type(*operands) if len(operands) == 2 else operands[0].dtype
            names = (f"{{{i}}}" for i in range(len(operands)))
            self._elementwise(n, result, COMPARISONS[name](common, *names), common)
        elif name in COPIES:
            self._elementwise(n, result, "{0}", result.dtype)
        else:
            made = self._handled(n, name, result)
            if isinstance(made, View):
                self._views[n] = made
            else:
                self._parts[n] = made

    def _handled(self, n: Any, name: str, result: Any) -> View | Sequence[View | None]:
        if name in HANDLERS:
            try:
                return HANDLERS[name](self, n, result)
            except UnsupportedError as error:
                reason = error
            try:
                return HANDLERS["*"](self, n, result)
            except UnsupportedError:
                raise reason from None
        return HANDLERS["*"](self, n, result)

    def _is_alias(self, n: Any, result: Tensor) -> bool:
        source = n.args[-1] if n.target._schema.name == "aten::copy" else n.args[0]
        return source is n.args[0] and self.example(source).dtype == result.dtype

    def _alias(self, n: Any, source: Any) -> None:
        if source in self._numbers:
            self._numbers[n] = self._numbers[source]
        else:
            self._views[n] = self._views[source]

    def _elementwise(self, n: Any, result: Tensor, expression: str, dtype: torch.dtype) -> None:
        """`expression` of the arguments, each cast to `dtype` first."""
        sizes = tuple(result.shape)
        arguments = n.args[1:2] if n.target._schema.name == "aten::copy" else n.args
        operands = [self.operand(a, sizes, dtype) for a in arguments if isinstance(a, fx.Node | float | int)]
        self._views[n] = self.elementwise(result.dtype, expression, operands, sizes)

    def _arithmetic(self, n: Any, name: str, result: Tensor) -> None:
        dtype = result.dtype
        names = [f"{{{i}}}" for i, a in enumerate(n.args) if isinstance(a, fx.Node | float | int)]
        if name in ("add", "sub"):
            alpha = n.args[2] if len(n.args) > 2 else n.kwargs.get("alpha", 1)
            names = [names[0], names[1] if alpha == 1 else f"{literal(alpha, dtype)} * {names[1]}"]
        if n.kwargs.get("rounding_mode") is not None:
            name = f"div_{n.kwargs['rounding_mode']}"
        if n.kwargs.get("decimals", 0) != 0:
            raise UnsupportedError("aten::round with decimals")
        if name == "pow" and isinstance(n.args[1], (int, float)) and dtype.is_floating_point:
            known = {
                1: "{0}",
                2: "{0} * {0}",
                3: "{0} * {0} * {0}",
                0.5: ARITHMETIC["sqrt"](dtype, "{0}"),
                -0.5: ARITHMETIC["rsqrt"](dtype, "{0}"),
                -1: "1 / {0}",
            }
            if n.args[1] in known:
                operand = self.operand(n.args[0], tuple(result.shape), dtype)
                self._views[n] = self.elementwise(dtype, known[n.args[1]], [operand], result.shape)
                return
        self._elementwise(n, result, (ROUNDED.get(name) or ARITHMETIC[name])(dtype, *names), dtype)


def argument(n: Any, position: int, name: str, default: Any = None) -> Any:
    """An argument of a node, given by position or by name."""
    return n.args[position] if len(n.args) > position else n.kwargs.get(name, default)


# Operations that make a tensor of one number, whatever the tensor they are given.
FILLS: dict[str, Callable[[Any], Number]] = {
    "full_like": lambda n: n.args[1],
    "new_full": lambda n: n.args[2],
    "zeros_like": lambda n: 0,
    "new_zeros": lambda n: 0,
    "ones_like": lambda n: 1,
    "new_ones": lambda n: 1,
    "empty_like": lambda n: 0,
    "new_empty": lambda n: 0,
    "new_empty_strided": lambda n: 0,
}

Handler = Callable[[Lowering, Any, Any], View | Sequence[View | None]]
HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register what lowers the operations of these names; `"*"` are those without a handler of their own."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register
