"""Tracing: a function of tensors becomes a flat graph of elementary operations; what made it up is gone."""

from __future__ import annotations

import functools
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
    table.update(get_decompositions(more))
    for operation in list(table):
        if operation.namespace == "aten" and operation._schema.name in _KEPT:
            del table[operation]
    return table


def trace(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The graph of `function` at these shapes, free of mutation.

    Raises:
        Exception: whatever the function raises, or the tracer where it branches on a value.
    """
    with NanCholesky():  # a graph has no way to raise for one chain
        graph: fx.GraphModule = make_fx(function, decomposition_table=_decompositions())(*inputs)
    if any(_mutates(node) for node in graph.graph.nodes):
        functional = torch.func.functionalize(graph, remove="mutations")
        graph = make_fx(functional, decomposition_table=_decompositions())(*inputs)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
