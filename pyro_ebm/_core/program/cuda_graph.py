"""A step recorded as a CUDA graph, which repeats itself without a word from Python but "again".

A step of small kernels is bound by what it costs to launch them; a graph launches them all at once. It reads and writes
memory that stays where it is: the carry, the x of all steps with a counter on the device, and room for all y. So
nothing waits for the host within a call, and results lie in one piece of memory at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_ebm._core.program.c_library import BuildError
from pyro_ebm._core.program.traced_step import TracedStep, own

# Calls before a capture: kernels are then loaded, and libraries have their work space.
_REHEARSALS = 3

Body = Callable[[], None]


def cuda_capture(body: Body) -> Body:
    """Capture what `body` launches; what is returned launches it again.

    References:
        NVIDIA 2024, CUDA C++ programming guide, "CUDA graphs".
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_REHEARSALS):
            body()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    replay: Body = graph.replay
    return replay


class CudaGraphProgram:
    """A step that is replayed for each x.

    Args:
        traced: the step.
        function: what computes it, from and to flat lists of tensors: kernels only, and no look at a value.
        capture: `cuda_capture`, or something that stands for it.

    Raises:
        BuildError: if what is replayed does not agree with the graph.
    """

    rung = "CUDA graph"

    def __init__(
        self,
        traced: TracedStep,
        function: Callable[..., Sequence[Tensor]],
        capture: Callable[[Body], Body] = cuda_capture,
    ) -> None:
        self._traced, self._function, self._capture = traced, function, capture
        self.graph = traced.graph
        self._capacity = 0
        self._check()
        traced.inputs = []  # examples may be large

    def __call__(self, carry: Any, xs: Any, constants: Any) -> tuple[Any, Any]:
        """See `Program`."""
        state, stacked, fixed = (self._traced.leaves(tree) for tree in (carry, xs, constants))
        return self._traced.result(*self._run(state, stacked, fixed))

    def _run(
        self, state: list[Tensor], stacked: list[Tensor], fixed: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        steps = stacked[0].shape[0] if stacked else 1
        if steps > self._capacity:
            self._record(state, stacked, fixed, steps)
        self._fill(state, stacked, fixed)
        for _ in range(steps):
            self._replay()
        return [own(leaf) for leaf in self._carry], [own(y[:steps]) for y in self._ys]

    def _record(self, state: list[Tensor], stacked: list[Tensor], fixed: list[Tensor], steps: int) -> None:
        """Lay out memory for so many steps, and capture one."""
        self._carry, self._xs, self._fixed = ([own(leaf) for leaf in leaves] for leaves in (state, stacked, fixed))
        device = [*self._carry, *self._xs, *self._fixed][0].device
        self._at = torch.zeros(1, dtype=torch.long, device=device)
        results = self._step(self._at)[len(self._carry) :]
        self._ys = [y.new_zeros((steps, *y.shape)) for y in results]
        self._capacity = steps
        self._replay = self._capture(self._body)

    def _fill(self, state: list[Tensor], stacked: list[Tensor], fixed: list[Tensor]) -> None:
        for kept, given in zip([*self._carry, *self._fixed], [*state, *fixed], strict=True):
            kept.copy_(given)
        for kept, given in zip(self._xs, stacked, strict=True):
            kept[: len(given)].copy_(given)
        self._at.zero_()

    def _step(self, at: Tensor) -> Sequence[Tensor]:
        return self._function(*self._carry, *(x.index_select(0, at).squeeze(0) for x in self._xs), *self._fixed)

    def _body(self) -> None:
        at = self._at.clamp(max=self._capacity - 1)  # rehearsals go on past the end
        out = self._step(at)
        new, results = out[: len(self._carry)], out[len(self._carry) :]
        for room, y in zip(self._ys, results, strict=True):
            room.index_copy_(0, at, y.unsqueeze(0))
        kept = {leaf.untyped_storage().data_ptr() for leaf in self._carry}
        # One that is another's old value, or a view of it, must not be written over before it is read.
        new = [own(leaf) if leaf.untyped_storage().data_ptr() in kept else leaf for leaf in new]
        for leaf, value in zip(self._carry, new, strict=True):
            leaf.copy_(value)
        self._at.add_(1)

    def _check(self) -> None:
        """What is replayed must say what it was captured from."""
        carry, x, constants = self._traced.inputs
        expected = self._function(*carry, *x, *constants)
        after, ys = self._run(carry, [leaf.unsqueeze(0) for leaf in x], constants)
        found = [*after, *(y[0] for y in ys)]
        if not all(_same(value, other) for value, other in zip(found, expected, strict=True)):
            raise BuildError("the CUDA graph does not agree with what it was captured from")


def _same(found: Tensor, expected: Tensor) -> bool:
    if not found.is_floating_point():
        return torch.equal(found, expected)
    return torch.allclose(found, expected, equal_nan=True)
