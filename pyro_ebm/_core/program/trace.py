"""Tracing: a function of tensors becomes a flat graph of elementary operations; what made it up is gone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_ebm._core.linalg import NanCholesky

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


def trace(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The graph of `function` at these shapes, free of mutation.

    Raises:
        Exception: whatever the function raises, or the tracer where it branches on a value.
    """
    with NanCholesky():  # a graph has no way to raise for one chain
        graph: fx.GraphModule = make_fx(function, decomposition_table=_decompositions())(*inputs)
    if any(_mutates(node) for node in graph.graph.nodes):
        graph = _without_mutation(graph, inputs)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _without_mutation(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The same graph with copies in place of changes.

    Captured tensors are inputs in the meantime: what is made of them alone would go on being changed.
    """
    captured: dict[str, Tensor] = {}
    nodes = list(graph.graph.nodes)
    first = next(node for node in nodes if node.op != "placeholder")
    given: dict[str, fx.Node] = {}
    for node in (node for node in nodes if node.op == "get_attr"):
        if node.target not in captured:
            captured[node.target] = getattr(graph, node.target)
            with graph.graph.inserting_before(first):
                given[node.target] = graph.graph.placeholder(f"captured_{len(given)}")
        node.replace_all_uses_with(given[node.target])
    graph.graph.eliminate_dead_code()
    graph.recompile()
    functional = torch.func.functionalize(graph, remove="mutations")
    pure: fx.GraphModule = make_fx(functional, decomposition_table=_decompositions())(*inputs, *captured.values())
    placeholders = [node for node in pure.graph.nodes if node.op == "placeholder"]
    for number, (node, tensor) in enumerate(zip(placeholders[len(inputs) :], captured.values(), strict=True)):
        pure.register_buffer(f"captured_{number}", tensor)
        with pure.graph.inserting_before(node):
            node.replace_all_uses_with(pure.graph.get_attr(f"captured_{number}"))
        pure.graph.erase_node(node)
    return pure
