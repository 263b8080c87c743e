"""Compiled steps say what torch says, on every rung."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from program_cases import Case, RandomStep, inputs, table
from pyro_ebm._core.linalg import NanCholesky
from pyro_ebm._core.program import build_program
from pyro_ebm._core.program import program as program_module
from pyro_ebm._core.program.lowering import FILLS, HANDLERS
from pyro_ebm._core.program.pointwise import ALIASES, ARITHMETIC, COMPARISONS, COPIES
from pyro_ebm._core.program.program import CProgram, EagerProgram

TABLE = table()
DTYPES = [torch.float64, torch.float32, torch.int64, torch.bool]
CHUNKS = 4


def trace_whole(function: Callable[..., Any], given: Sequence[Tensor]) -> fx.GraphModule:
    """A graph of the operations that were called, not of what they are made of."""
    with NanCholesky():
        graph: fx.GraphModule = make_fx(function, pre_dispatch=True)(*given)
    return graph


def works(case: Case, given: Any) -> bool:
    """Whether torch itself knows an operation at a dtype."""
    try:
        case[1](given)
    except (RuntimeError, IndexError, NotImplementedError, TypeError):
        return False
    return True


def assert_same(found: Any, expected: Any, tolerance: float, label: str, signs: bool = True) -> None:
    for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), label
        relative = tolerance if a.dtype == torch.float64 else max(tolerance, 2e-5)
        message = f"{label}\n{a}\n{b}"
        assert torch.allclose(a, b, relative, relative if a.is_floating_point() else 0, equal_nan=True), message
        assert not (signs and (a == 0).logical_and(a.signbit() != b.signbit()).any()), f"signs of zeros: {message}"


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operations(dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [inputs(dtype, seed) for seed in range(3)]
    with NanCholesky():
        cases = [case for case in TABLE[chunk::CHUNKS] if works(case, SimpleNamespace(**rows[0]))]

    def step(carry: Tensor, x: dict[str, Tensor], constants: tuple[()]) -> tuple[Tensor, list[Any]]:
        return carry, [function(SimpleNamespace(**x)) for _, function in cases]

    monkeypatch.setattr(program_module, "trace", trace_whole)
    monkeypatch.setattr(CProgram, "_check", lambda *_: None)  # here a difference is to be reported by its operation
    program, reasons = build_program(step, torch.zeros(()), rows[0], (), patient=False)
    assert program.rung == "C", reasons
    xs = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    _, ys = program(torch.zeros(()), xs, ())
    with NanCholesky():
        expected = [step(torch.zeros(()), row, ())[1] for row in rows]
    wrong = []
    for k, (name, _) in enumerate(cases):
        for repetition in range(3):
            found = pytree.tree_map(lambda y: y[repetition], ys[k])
            try:
                assert_same(found, expected[repetition][k], 1e-12, f"{name}, the case {TABLE.index(cases[k])}")
            except AssertionError as error:
                wrong.append(str(error)[:1500])
                break
    assert not wrong, "\n".join(wrong)


def test_every_operation_has_a_case() -> None:
    known = {*ARITHMETIC, *COMPARISONS, *HANDLERS, *FILLS, *COPIES, *ALIASES}
    covered = set()
    for dtype in DTYPES:
        for case in TABLE:
            with NanCholesky():
                if works(case, SimpleNamespace(**inputs(dtype, 0))):
                    covered.add(case[0])
    assert known <= covered, known - covered


@pytest.mark.parametrize("seed", range(60))
def test_random_steps(seed: int) -> None:
    step = RandomStep(seed, torch.float32 if seed % 6 == 5 else torch.float64)
    example = [x[0] for x in step.xs]
    program, reasons = build_program(step, step.carry, example, step.constants, patient=False)
    assert program.rung == "C", reasons
    expected = EagerProgram(step)(step.carry, step.xs, step.constants)
    for _ in range(2):
        found = program(step.carry, step.xs, step.constants)
        assert_same(found, expected, 1e-8 if step.carry[0].dtype == torch.float64 else 1e-3, f"seed {seed}", signs=False)
