"""Graphs of functions that change tensors in place: the same values, and none changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_ebm._core.program import mutation
from pyro_ebm._core.program.trace import trace

KEPT = torch.ones(3, 3)


def fresh(x: Tensor) -> Tensor:
    return x.exp().add_(x).mul_(2).log_() + 1


def read_before(x: Tensor) -> Tensor:
    y = x + 1
    z = y * 3
    y.neg_()
    return y + z


def view_before(x: Tensor) -> Tensor:
    y = x + 1
    row = y[0]
    y.mul_(2)
    return y.sum(0) + row


def change_through_a_view(x: Tensor) -> Tensor:
    y = x + 1
    y[0].mul_(3)
    return y


def copied_into(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[1:].copy_(x[1:])
    return y


def captured(x: Tensor) -> Tensor:
    kept = KEPT.clone()
    return kept.add_(x) + KEPT


def of_another_dtype(x: Tensor) -> Tensor:
    y = x + 0
    y.logical_and_(x > 0)  # stays floating
    return y / 3


def indexed(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y.index_put_((torch.tensor([1, 1]),), x[:2], accumulate=True)
    return y


def power(x: Tensor) -> Tensor:
    y = x * 2
    y **= 2
    return y


SIMPLE = (fresh, read_before, power)


@pytest.mark.parametrize(
    "function",
    [*SIMPLE, captured, view_before, change_through_a_view, copied_into, of_another_dtype, indexed],
)
def test_values_are_the_same_and_nothing_is_changed(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.rand(3, 3)
    graph = trace(lambda x: (function(x),), [x])
    assert not any(mutation._mutates(node) for node in graph.graph.nodes)
    other, kept = torch.rand(3, 3), KEPT.clone()
    for _ in range(2):
        torch.testing.assert_close(graph(other)[0], function(other.clone()), rtol=0, atol=0)
    assert torch.equal(KEPT, kept)


@pytest.mark.parametrize("function", SIMPLE)
def test_fresh_tensors_need_no_second_trace(
    function: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutation, "_traced_again", None)
    trace(lambda x: (function(x),), [torch.rand(3, 3)])
