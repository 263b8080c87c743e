"""Graphs without mutation: what changes a tensor in place becomes a new tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten


def without_mutation(graph: fx.GraphModule, inputs: Sequence[Tensor], decompositions: dict[Any, Any]) -> fx.GraphModule:
    """The same graph with new tensors in place of changed ones.

    Most changes are of a tensor that nothing shares its memory with, in the formulas of derivatives: the operation
    that is not in place takes the place of that which is. For others the graph is traced again, which takes as long as
    the first time.
    """
    for node in list(graph.graph.nodes):
        operation = _out_of_place(node) if _mutates(node) else None
        if operation is not None and operation not in decompositions:
            _replace(graph, node, operation)
    if any(map(_mutates, graph.graph.nodes)):
        return _traced_again(graph, inputs, decompositions)
    return graph


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _out_of_place(node: fx.Node) -> Any:
    """`aten.exp.default` for `aten.exp_.default`; nothing where nothing takes the same arguments."""
    schema = node.target._schema  # type: ignore[union-attr]
    namespace, name = schema.name.split("::")
    packet = getattr(aten, name[:-1], None) if namespace == "aten" and name.endswith("_") else None
    overloads = [getattr(packet, each) for each in packet.overloads()] if packet is not None else []
    return next((each for each in overloads if _arguments(each._schema) == _arguments(schema)), None)


def _arguments(schema: Any) -> list[tuple[str, str]]:
    return [(each.name, str(each.type)) for each in schema.arguments]


def _replace(graph: fx.GraphModule, node: fx.Node, operation: Any) -> None:
    """Take a change out of the graph, if it is of a tensor that nothing shares its memory with."""
    changed = node.args[0]
    if not isinstance(changed, fx.Node) or any(_may_alias(each) for each in (changed, *_users_before(changed, node))):
        return
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
    made, kept = operation(*args, **kwargs), node.meta["val"]
    if (made.dtype, made.shape, made.stride()) != (kept.dtype, kept.shape, kept.stride()):
        return
    earlier = {node, *_users_before(changed, node)}
    with graph.graph.inserting_before(node):
        new = graph.graph.call_function(operation, node.args, node.kwargs)
    new.meta.update(node.meta)
    node.replace_all_uses_with(new)
    changed.replace_all_uses_with(new, lambda user: user not in earlier and user is not new)
    graph.graph.erase_node(node)


def _users_before(node: fx.Node, limit: fx.Node) -> list[fx.Node]:
    return [user for user in node.users if user < limit]


def _may_alias(node: fx.Node) -> bool:
    """Whether what a node gives may share memory with what it takes."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    schema = node.target._schema
    return schema.name == "aten::_unsafe_view" or any(each.alias_info is not None for each in schema.returns)


def _traced_again(graph: fx.GraphModule, inputs: Sequence[Tensor], decompositions: dict[Any, Any]) -> fx.GraphModule:
    """By functorch, which knows of all aliases.

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
    pure: fx.GraphModule = make_fx(functional, decomposition_table=decompositions)(*inputs, *captured.values())
    placeholders = [node for node in pure.graph.nodes if node.op == "placeholder"]
    for number, (node, tensor) in enumerate(zip(placeholders[len(inputs) :], captured.values(), strict=True)):
        pure.register_buffer(f"captured_{number}", tensor)
        with pure.graph.inserting_before(node):
            node.replace_all_uses_with(pure.graph.get_attr(f"captured_{number}"))
        pure.graph.erase_node(node)
    return pure
