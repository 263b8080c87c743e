"""Tracing: a function of tensors becomes a flat graph of elementary operations; what made it up is gone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_ebm._core.linalg import nan_cholesky
from pyro_ebm._core.program.mutation import without_mutation
from pyro_ebm._core.replacing import Replacing

aten = torch.ops.aten

# One statement of a program's own, not ten; and `eye`, whose parts have no kernel for large sizes.
_KEPT = {"aten::logaddexp", "aten::addcmul", "aten::eye"}


@functools.cache
def _decompositions() -> dict[Any, Any]:
    from torch._decomp import core_aten_decompositions, get_decompositions

    table = dict(core_aten_decompositions())
    more = [aten._softmax, aten._log_softmax, aten.addmm, aten.baddbmm, aten.addmv, aten.mv, aten.dot]
    layers = [aten.elu, aten.gelu, aten.hardtanh, aten.leaky_relu, aten.native_layer_norm, aten.native_group_norm]
    backward = [getattr(aten, f"{layer.__name__}_backward") for layer in layers]
    table.update(get_decompositions([*more, *layers, *backward, aten.embedding, aten.embedding_dense_backward]))
    table[aten.var.correction] = lambda *args, **options: _variance_and_mean(*args, **options)[0]
    table[aten.var_mean.correction] = _variance_and_mean
    table[aten.cholesky_solve.default] = _cholesky_solve
    table[aten.cholesky_inverse.default] = _cholesky_inverse
    # What it is taken apart into has no sums of exponentials, which its gradient needs.
    table.pop(aten._scaled_dot_product_flash_attention_for_cpu.default, None)
    for operation in list(table):
        if operation.namespace == "aten" and operation._schema.name in _KEPT:
            del table[operation]
    return table


def _variance_and_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    dims = list(dim) if dim else list(range(x.dim()))
    freedom = math.prod(x.shape[i] for i in dims) - (1 if correction is None else correction)
    squares = (x - x.mean(dims, keepdim=True)).square().sum(dims, keepdim=keepdim)
    return squares / max(freedom, 0), x.mean(dims, keepdim=keepdim)


def _cholesky_solve(right: Tensor, factor: Tensor, upper: bool = False) -> Tensor:
    lower = factor.mT if upper else factor
    half = torch.linalg.solve_triangular(lower, right, upper=False)
    solution: Tensor = torch.linalg.solve_triangular(lower.mT, half, upper=True)
    return solution


def _cholesky_inverse(factor: Tensor, upper: bool = False) -> Tensor:
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return _cholesky_solve(identity.expand(factor.shape), factor, upper)


def _one_hot(input: Tensor, num_classes: int = -1) -> Tensor:
    """As torch's, but by a comparison: torch's looks at the values."""
    if num_classes < 0:
        return torch.nn.functional.one_hot(input)
    return (input.unsqueeze(-1) == torch.arange(num_classes, device=input.device)).long()


def trace(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The graph of `function` at these shapes, free of mutation.

    Raises:
        Exception: whatever the function raises, or the tracer where it branches on a value.
    """
    # One fake mode for what the tracer notes of nodes: by itself it makes one for each, which takes half of its time.
    notes = tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True)))
    one_hot = Replacing({torch.nn.functional.one_hot: _one_hot})
    with nan_cholesky(), one_hot, notes:  # a graph has no way to raise for one chain
        graph: fx.GraphModule = make_fx(function, decomposition_table=_decompositions())(*inputs)
        graph = without_mutation(graph, inputs, _decompositions())
    for node in graph.graph.find_nodes(op="call_function", target=aten._linalg_check_errors.default):
        graph.graph.erase_node(node)  # what is singular for one chain is no matter of the others
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph
