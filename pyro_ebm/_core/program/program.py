"""A step repeated: `carry, y = step(carry, x, constants)` for each x, on the highest rung of a ladder that holds it.

The rungs, from the top: a C function that repeats the whole step (CPU), or a CUDA graph that is replayed for each step
(GPU); Inductor's kernels, called for each step; the traced graph; the function itself. All get the same random numbers
from outside, so all give the same results up to rounding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_ebm._core.program.c_library import BuildError, build, is_long, linear_algebra
from pyro_ebm._core.program.c_source import write_source
from pyro_ebm._core.program.cuda_graph import CudaGraphProgram
from pyro_ebm._core.program.linking import linked
from pyro_ebm._core.program.rounding import Forced, agree, spreads
from pyro_ebm._core.program.traced_step import Step, TracedStep, own


class Program(Protocol):
    """A step that repeats itself: once, if there are no tensors among the `xs`."""

    @property
    def rung(self) -> str:
        """What runs it: `"C"`, `"CUDA graph"`, `"Inductor"`, `"traced"` or `"eager"`."""
        ...

    def __call__(self, carry: Any, xs: Any, constants: Any) -> tuple[Any, Any]:
        """Repeat the step for each of the stacked `xs`, `(steps, ...)`.

        Returns:
            The last carry, in new memory, and the stacked y, `(steps, ...)`.
        """
        ...


class EagerProgram:
    """The function itself, called for each step."""

    rung = "eager"

    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self, carry: Any, xs: Any, constants: Any) -> tuple[Any, Any]:
        """See `Program`."""
        flat, structure = pytree.tree_flatten(xs)
        ys = []
        for x in _rows(flat):
            carry, y = self._step(carry, pytree.tree_unflatten(x, structure), constants)
            ys.append(y)
        return carry, pytree.tree_map(lambda *each: torch.stack(each), *ys)


class GraphProgram:
    """A compiled, or merely traced, step that is called for each x."""

    def __init__(self, traced: TracedStep, function: Callable[..., Sequence[Tensor]], rung: str) -> None:
        self._traced, self.function, self.rung = traced, function, rung
        self.graph = traced.graph

    def __call__(self, carry: Any, xs: Any, constants: Any) -> tuple[Any, Any]:
        """See `Program`."""
        state = self._traced.leaves(carry)
        stacked, fixed = ([leaf.contiguous() for leaf in self._traced.leaves(tree)] for tree in (xs, constants))
        rows = []
        for x in _rows(stacked):
            out = self.function(*(leaf.contiguous() for leaf in state), *x, *fixed)
            state = list(out[: len(state)])
            rows.append(out[len(state) :])
        return self._traced.result(state, [torch.stack(y) for y in zip(*rows, strict=True)])


class CProgram:
    """A C function that repeats the whole step.

    Raises:
        UnsupportedError: if the step has operations that C programs do not know.
        BuildError: if it cannot be built, or does not agree with the graph.
    """

    rung = "C"

    def __init__(self, traced: TracedStep) -> None:
        self._traced = traced
        self.graph = traced.graph
        carry, x, constants = traced.inputs
        source, outputs = write_source(traced.graph, carry, x, constants)
        self._function = build(source.text).run
        self._function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64, ctypes.c_int]
        self._function.restype = None
        self._linked = source.linked
        pointers = [*linear_algebra(), *source.addresses]
        self._library = (ctypes.c_void_p * len(pointers))(*pointers)
        self._captured = source.captured
        self._pointers = (ctypes.c_void_p * len(self._captured))(*(each.data_ptr() for each in self._captured))
        self._arena = torch.empty(source.arena_size + 64, dtype=torch.uint8)
        self._scratch = -(-self._arena.data_ptr() // 64) * 64
        self.is_long = is_long(source.text)
        self._inputs = [(leaf.shape, leaf.dtype) for leaves in traced.inputs for leaf in leaves]
        self.results = [(out.shape, out.dtype) for out in outputs[len(carry) :]]
        self._check(outputs, source.choices)
        traced.inputs = []  # examples may be large

    def _run(
        self, carry: list[Tensor], xs: list[Tensor], constants: list[Tensor], steps: int, forced: bool = False
    ) -> list[Tensor]:
        ys = [_zeros((steps, *shape), dtype) for shape, dtype in self.results]
        given = [*carry, *xs, *constants, *ys, *self._captured]
        memory = (ctypes.c_void_p * len(given))(*(tensor.data_ptr() for tensor in given))
        self._function(memory, self._library, self._scratch, steps, forced)
        errors = self.take_errors()
        if errors:
            raise errors[0]
        return ys

    def take_errors(self) -> list[BaseException]:
        """See `Callee`: of all that it calls, so that none is left for a later run."""
        return [error for each in self._linked for error in each.take_errors()]

    @property
    def addresses(self) -> tuple[int, int, int, int]:
        """See `Linkable`."""
        function = ctypes.cast(self._function, ctypes.c_void_p).value or 0
        return function, ctypes.addressof(self._library), ctypes.addressof(self._pointers), self._scratch

    @property
    def num_captured(self) -> int:
        """See `Linkable`."""
        return len(self._captured)

    def __call__(self, carry: Any, xs: Any, constants: Any) -> tuple[Any, Any]:
        """See `Program`."""
        new = [own(leaf) for leaf in self._traced.leaves(carry)]
        stacked = [x.contiguous() for x in self._traced.leaves(xs)]
        fixed = [leaf.contiguous() for leaf in self._traced.leaves(constants)]
        given = [(leaf.shape, leaf.dtype) for leaf in [*new, *(x[0] for x in stacked), *fixed]]
        if given != self._inputs:
            raise ValueError(f"C program: got inputs {given}, expected {self._inputs}. Build another one for these.")
        ys = self._run(new, stacked, fixed, stacked[0].shape[0] if stacked else 1)
        return self._traced.result(new, ys)

    def _check(self, outputs: list[Tensor], choices: frozenset[str]) -> None:
        """The program must say what the graph says, as closely as rounding lets the graph itself say it.

        So it must too where all `choices` are forced: what it does in branches that it takes now and then is checked.
        """
        given = [leaf for leaves in self._traced.inputs for leaf in leaves]
        self._compare(outputs, spreads(self.graph, given, outputs), forced=False)
        if choices:
            outputs = Forced(self.graph, choices).run(*given)
            self._compare(outputs, spreads(self.graph, given, outputs, choices), forced=True)

    def _compare(self, outputs: list[Tensor], rounding: list[Tensor], *, forced: bool) -> None:
        carry, x, constants = self._traced.inputs
        carry = [own(leaf) for leaf in carry]
        ys = self._run(carry, x, constants, 1, forced)
        for found, expected, spread in zip([*carry, *(y[0] for y in ys)], outputs, rounding, strict=True):
            if not agree(found, expected, spread):
                raise BuildError("the C program does not agree with the graph that it was made of")


def _inductor(traced: TracedStep) -> GraphProgram:
    import torch._inductor

    inputs: list[Any] = [leaf for leaves in traced.inputs for leaf in leaves]
    compiled = torch._inductor.standalone_compile(traced.graph, inputs, dynamic_shapes="from_example_inputs")
    compiled(*inputs)
    return GraphProgram(traced, compiled, "Inductor")


def build_program(
    step: Step, carry: Any, x: Any, constants: Any, *, patient: bool = True
) -> tuple[EagerProgram | GraphProgram | CProgram | CudaGraphProgram, list[str]]:
    """Compile a step at example arguments, on the highest rung that holds.

    Args:
        step: `(carry, x, constants) -> (carry, y)`, each a tree of tensors.
        carry: an example.
        x: an example.
        constants: what stays the same over the repetitions of one call.
        patient: whether to try compilers that take long.

    Returns:
        The program, and why each higher rung did not hold.
    """
    reasons: list[str] = []
    with torch.no_grad():
        try:
            traced = TracedStep(step, carry, x, constants)
        except Exception as error:  # a tracer meets whatever the step does
            return EagerProgram(step), [f"it cannot be traced: {_first_line(error)}"]
        devices = {leaf.device.type for leaves in traced.inputs for leaf in leaves}
        if devices <= {"cpu"}:
            try:
                return CProgram(traced), reasons
            except Exception as error:  # what it does not know, and what a compiler on this machine may say
                reasons.append(f"not as C: {_first_line(error)}")
        program = GraphProgram(traced, traced.graph, "traced")
        if patient:
            try:
                program = _inductor(traced)
            except Exception as error:  # the compiler has many ways to fail
                reasons.append(f"not by Inductor: {_first_line(error)}")
        if devices == {"cuda"}:
            try:
                return CudaGraphProgram(traced, program.function), reasons
            except Exception as error:  # a look at a value, or a library that waits for the device
                reasons.append(f"not as a CUDA graph: {_first_line(error)}")
        return program, reasons


class CompiledFunction:
    """A function of tensors, compiled at the shapes and dtypes of examples.

    Args:
        function: from tensors to a tuple of tensors.
        examples: its arguments.
        patient: whether to try compilers that take long.

    Attributes:
        plain: the function as it may be used in a step that is to be compiled.
        reasons: why each higher rung did not hold.
    """

    def __init__(self, function: Callable[..., Any], *examples: Tensor, patient: bool = True) -> None:
        def step(carry: Any, x: Any, constants: Any) -> tuple[Any, Any]:
            return carry, function(*x)

        self.plain: Callable[..., Any] = function
        self._program, self.reasons = build_program(step, (), examples, (), patient=patient)
        if isinstance(self._program, CProgram) and self._program.is_long and (called := linked(self._program)):
            self.plain = called
        elif not isinstance(self._program, EagerProgram):
            graph = self._program.graph
            self.plain = lambda *x: tuple(graph(*x))

    def __call__(self, *x: Tensor) -> Any:
        """The function's results."""
        _, results = self._program((), tuple(each.unsqueeze(0) for each in x), ())
        return tuple(y[0] for y in results)


def _zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros that take up no memory until they are touched, unlike torch's."""
    kind = torch.empty(0, dtype=dtype).numpy().dtype
    return torch.from_numpy(np.zeros(tuple(shape), kind))


def _rows(stacked: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """The x of each step."""
    return list(zip(*stacked, strict=True)) if stacked else [()]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
