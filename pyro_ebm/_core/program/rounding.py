"""How far rounding moves the results of a graph: what a program made of it is compared by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, fx
from torch.utils import _pytree as pytree

from pyro_ebm._core.program.pointwise import ARITHMETIC, SELECTIONS

# By how many of its last digits a result is off at most, in units of the machine's precision: so much as libraries
# of elementary functions differ by.
_LAST_DIGITS = 8
# A library may add up in another order, and be off by more than the graphs that were tried.
_MARGIN = 100.0
_TRIALS = 3


# Operations that select or copy are exact.
_ROUNDING = (ARITHMETIC.keys() - SELECTIONS) | {
    *("sum", "mean", "prod", "cumsum", "cumprod", "logaddexp", "addcmul", "addcdiv", "scatter_add"),
    *("mm", "bmm", "linalg_vector_norm", "linalg_cholesky_ex", "linalg_solve_triangular"),
}


def _name(target: Any) -> str:
    return target._schema.name.removeprefix("aten::") if isinstance(target, torch._ops.OpOverload) else ""


class Forced(fx.Interpreter):
    """A graph in which choices by one boolean fall on what is new, whatever the boolean says.

    Args:
        graph: the graph.
        choices: the names of its nodes that choose so.
    """

    def __init__(self, graph: fx.GraphModule, choices: frozenset[str]) -> None:
        super().__init__(graph)
        self._choices = choices

    def run_node(self, n: Any) -> Any:
        """Compute a node."""
        if n.name in self._choices:
            condition, new, old = self.fetch_args_kwargs_from_env(n)[0]
            return torch.where(torch.ones_like(condition), new, old)
        return super().run_node(n)


class _Rounded(Forced):
    """A graph of which every floating-point result is off by its last digits.

    Whole numbers that are made of whole numbers are exact, as counts and masks are.
    """

    def __init__(self, graph: fx.GraphModule, choices: frozenset[str], seed: int) -> None:
        super().__init__(graph, choices)
        self._generator = Generator().manual_seed(seed)

    def run_node(self, n: Any) -> Any:
        """Compute a node."""
        result = super().run_node(n)
        if n.op == "output" or (n.op == "call_function" and _name(n.target) not in _ROUNDING):
            return result
        exact = all(_is_whole(leaf).all() for leaf in pytree.tree_leaves([self.env[a] for a in n.all_input_nodes]))
        return pytree.tree_map(lambda leaf: self._nudged(leaf, exact), result)

    def _nudged(self, leaf: Any, exact: bool) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        digits = torch.randint(-_LAST_DIGITS, _LAST_DIGITS + 1, leaf.shape, generator=self._generator, dtype=leaf.dtype)
        nudged = leaf * (1 + torch.finfo(leaf.dtype).eps * digits.to(leaf.device))
        return torch.where(_is_whole(leaf), leaf, nudged) if exact else nudged


def _is_whole(leaf: Any) -> Tensor:
    return leaf == leaf.round() if isinstance(leaf, Tensor) and leaf.is_floating_point() else torch.tensor(True)


def spreads(
    graph: fx.GraphModule, inputs: Sequence[Tensor], outputs: Sequence[Tensor], choices: frozenset[str] = frozenset()
) -> list[Tensor]:
    """How far rounding moves each element of the outputs, each in float64; not finite where it makes a NaN of it.

    Args:
        graph: from `inputs` to `outputs`.
        inputs: its inputs.
        outputs: what it makes of them.
        choices: what is forced: see `Forced`.
    """
    found = [torch.zeros_like(each, dtype=torch.float64) for each in outputs]
    for seed in range(_TRIALS):
        near = _Rounded(graph, choices, seed).run(*inputs)
        found = [torch.maximum(old, _distance(x, y)) for old, x, y in zip(found, near, outputs, strict=True)]
    return found


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """Elementwise; zero between equals, infinities and NaNs included."""
    same = (x == y) | ((x != x) & (y != y))
    return torch.where(same, 0.0, (x.double() - y.double()).abs())


def agree(found: Tensor, expected: Tensor, spread: Tensor) -> bool:
    """Whether all elements of a program's result are a graph's, up to rounding.

    Half of the digits must agree, and of an ill-conditioned element as many as rounding leaves it.

    Args:
        found: by the program.
        expected: by the graph, of the same shape.
        spread: how far rounding moves it.
    """
    floating = expected.is_floating_point()
    half = torch.finfo(expected.dtype).eps ** 0.5 if floating else 0.0
    least = torch.finfo(expected.dtype).tiny if floating else 0.0
    distance = _distance(found, expected)
    size = expected.double().abs().nan_to_num(0, 0)
    allowed = half * size + _MARGIN * spread + least
    return bool(((distance <= allowed) | ~torch.isfinite(spread)).all())
