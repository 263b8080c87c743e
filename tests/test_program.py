"""Compiled steps say what torch says, on every rung."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from program_cases import Case, RandomStep, inputs, table
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from pyro_ebm._core.linalg import nan_cholesky
from pyro_ebm._core.program import build_program, c_library, c_source, traced_step
from pyro_ebm._core.program.lowering import FILLS, HANDLERS
from pyro_ebm._core.program.pointwise import ALIASES, ARITHMETIC, COMPARISONS, COPIES
from pyro_ebm._core.program.program import CProgram, EagerProgram

TABLE = table()
EITHER_ZERO = {
    "clamp_min",
    "clamp_max",
    "clamp",
    "maximum",
    "minimum",
    "fmax",
    "fmin",
    "relu",
    "amax",
    "amin",
    "max",
    "min",
}
DTYPES = [torch.float64, torch.float32, torch.int64, torch.bool]
CHUNKS = 4


def trace_whole(function: Callable[..., Any], given: Sequence[Tensor]) -> fx.GraphModule:
    """A graph of the operations that were called, not of what they are made of."""
    with nan_cholesky():
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
    with nan_cholesky():
        cases = [case for case in TABLE[chunk::CHUNKS] if works(case, SimpleNamespace(**rows[0]))]

    def step(carry: Tensor, x: dict[str, Tensor], constants: tuple[()]) -> tuple[Tensor, list[Any]]:
        return carry, [function(SimpleNamespace(**x)) for _, function in cases]

    monkeypatch.setattr(traced_step, "trace", trace_whole)
    monkeypatch.setattr(CProgram, "_check", lambda *_: None)  # here a difference is to be reported by its operation
    program, reasons = build_program(step, torch.zeros(()), rows[0], (), patient=False)
    assert program.rung == "C", reasons
    xs = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    _, ys = program(torch.zeros(()), xs, ())
    with nan_cholesky():
        expected = [step(torch.zeros(()), row, ())[1] for row in rows]
    wrong = []
    for k, (name, _) in enumerate(cases):
        for repetition in range(3):
            found = pytree.tree_map(lambda y: y[repetition], ys[k])
            try:
                label = f"{name}, the case {TABLE.index(cases[k])}"
                assert_same(found, expected[repetition][k], 1e-12, label, signs=name not in EITHER_ZERO)
            except AssertionError as error:
                wrong.append(str(error)[:1500])
                break
    assert not wrong, "\n".join(wrong)


def test_every_operation_has_a_case() -> None:
    known = {*ARITHMETIC, *COMPARISONS, *HANDLERS, *FILLS, *COPIES, *ALIASES}
    known -= {"pyro_ebm::call", "*"}  # see test_linking and test_callbacks
    covered = set()
    for dtype in DTYPES:
        for case in TABLE:
            with nan_cholesky():
                if works(case, SimpleNamespace(**inputs(dtype, 0))):
                    covered.add(case[0])
    assert known <= covered, known - covered


@pytest.mark.parametrize("seed", range(44))
def test_random_steps(seed: int) -> None:
    check_random_step(seed)


@pytest.mark.parametrize("seed", range(100, 112))
def test_long_programs(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In many functions, by the flags of long ones."""
    monkeypatch.setattr(c_source, "_LINES", 6)
    monkeypatch.setattr(c_library, "is_long", lambda source: True)
    check_random_step(seed)


def check_random_step(seed: int) -> None:
    step = RandomStep(seed, torch.float32 if seed % 6 == 5 else torch.float64)
    example = [x[0] for x in step.xs]
    program, reasons = build_program(step, step.carry, example, step.constants, patient=False)
    assert program.rung == "C", reasons
    expected = EagerProgram(step)(step.carry, step.xs, step.constants)
    for _ in range(2):
        found = program(step.carry, step.xs, step.constants)
        assert_same(
            found, expected, 1e-8 if step.carry[0].dtype == torch.float64 else 1e-3, f"seed {seed}", signs=False
        )


# -- the ladder --------------------------------------------------------------------------------------------------------


class State(NamedTuple):
    position: Tensor
    parts: dict[str, Tensor]


class Report(NamedTuple):
    total: Tensor
    rest: tuple[Tensor]


def simple(carry: State, x: Tensor, constants: tuple[Tensor]) -> tuple[State, Report]:
    moved = carry.position * 0.5 + x @ constants[0][0]
    return State(moved, {"old": carry.position, "sum": carry.parts["sum"] + moved.sum()}), Report(moved.exp(), (x,))


def with_sort(carry: State, x: Tensor, constants: tuple[Tensor]) -> tuple[State, Report]:
    """There is nothing here for Inductor to call a compiler for, which takes long."""
    moved = torch.sort(x.mv(constants[0][0])).values
    return State(carry.parts["old"], {"old": moved, "sum": carry.parts["sum"]}), Report(moved, (carry.position,))


def branching(carry: State, x: Tensor, constants: tuple[Tensor]) -> tuple[State, Report]:
    return simple(carry, x if float(x.sum()) > -1e9 else -x, constants)


def arguments() -> tuple[State, Tensor, tuple[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(n, generator=generator, dtype=torch.float64) for n in ((3,), (3,), (4, 3, 3), (3, 3))]
    return State(draw[0], {"old": draw[1], "sum": draw[0].sum()}), draw[2], (draw[3],)


def built(step: Any, patient: bool = False) -> tuple[Any, list[str]]:
    carry, xs, constants = arguments()
    return build_program(step, carry, xs[0], constants, patient=patient)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of builds."""
    monkeypatch.setenv("PYRO_EBM_CACHE", str(tmp_path / "builds"))
    return tmp_path / "builds"


@pytest.fixture
def compiler_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the C compiler is called for."""
    calls: list[Any] = []
    run = c_library._compile

    def counted(*args: Any) -> Path:
        calls.append(args)
        return run(*args)

    monkeypatch.setattr(c_library, "_compile", counted)
    return calls


@pytest.mark.usefixtures("no_callbacks")
@pytest.mark.parametrize(
    ("step", "patient", "rung", "why"),
    [
        (simple, False, "C", []),
        (with_sort, True, "Inductor", ["aten::sort"]),
        (with_sort, False, "traced", ["aten::sort"]),
        (branching, True, "eager", ["cannot be traced"]),
    ],
    ids=str,
)
def test_rungs_agree_and_keep_structure(step: Any, patient: bool, rung: str, why: list[str]) -> None:
    program, reasons = built(step, patient)
    assert program.rung == rung, reasons
    assert len(reasons) == len(why)
    assert all(part in reason for part, reason in zip(why, reasons, strict=True))
    found, expected = program(*arguments()), EagerProgram(step)(*arguments())
    assert_same(found, expected, 1e-12, rung)
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    assert isinstance(found[0], State)
    assert isinstance(found[1], Report)


def test_arguments_are_left_alone() -> None:
    carry, xs, constants = arguments()
    program, _ = built(simple)
    before = pytree.tree_map(torch.clone, (carry, xs, constants))
    new, _ = program(carry, xs, constants)
    assert_same((carry, xs, constants), before, 0, "arguments")
    assert not {leaf.data_ptr() for leaf in pytree.tree_leaves(new)} & {
        leaf.data_ptr() for leaf in pytree.tree_leaves((carry, xs, constants))
    }


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    c_library._compiler.cache_clear()
    try:
        program, reasons = built(simple)
    finally:
        monkeypatch.undo()
        c_library._compiler.cache_clear()
    assert program.rung == "traced"
    assert "no C compiler" in reasons[0]


def test_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(c_library, "_compiler", lambda: ("/bin/false", "1"))
    program, reasons = built(simple)
    assert program.rung == "traced"
    assert "/bin/false failed" in reasons[0]


def test_wrong_program_is_not_used(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setitem(ARITHMETIC, "exp", lambda dtype, x: f"1 + exp({x})")
    program, reasons = built(simple)
    assert program.rung == "traced"
    assert "does not agree" in reasons[0]


def test_builds_are_kept(cache: Path, compiler_calls: list[Any]) -> None:
    built(simple)
    built(simple)
    assert len(compiler_calls) == 1
    (file,) = cache.glob("*.so")
    content = file.read_bytes()
    file.unlink()  # the loaded one stays as it is
    file.write_bytes(content[: len(content) // 2])
    program, reasons = built(simple)
    assert program.rung == "C", reasons
    assert len(compiler_calls) == 2
    assert file.read_bytes() == content or len(list(cache.glob("*.so"))) == 2


def test_captured_tensors_are_read_at_each_call() -> None:
    weight = torch.nn.Parameter(torch.randn(2, 3, dtype=torch.float64))
    rows, number = weight.detach().t()[:, :1], torch.tensor(0.5)

    def step(carry: Tensor, x: Tensor, constants: Any) -> tuple[Tensor, Tensor]:
        return carry + weight.exp().sum(), (rows + x) * number.sin()

    carry, xs = torch.zeros((), dtype=torch.float64), torch.randn(3, 3, 1, dtype=torch.float64)
    program, reasons = build_program(step, carry, xs[0], (), patient=False)
    assert program.rung == "C", reasons
    for _ in range(2):
        with torch.no_grad():
            assert_same(program(carry, xs, ()), EagerProgram(step)(carry, xs, ()), 1e-12, "captured")
            weight.mul_(2)
            number.add_(1)


def test_indices_out_of_range_touch_nothing() -> None:
    def step(carry: tuple[()], x: Tensor, k: Tensor) -> tuple[Any, Any]:
        nine = torch.full((2,), 9.0)
        return carry, [
            [k[x], k.gather(0, x), k.index_select(0, x)],
            [k.index_put((x,), nine), k.scatter(0, x, nine), k.index_put((x,), nine, accumulate=True) - k],
        ]

    program, reasons = build_program(step, (), torch.tensor([0, 1]), torch.arange(3.0), patient=False)
    assert program.rung == "C", reasons
    _, (read, written) = program((), torch.tensor([[5, 1], [-4, 2], [2**62, -1]]), torch.arange(3.0))
    for found in read:
        assert_same(found, torch.tensor([[torch.nan, 1], [torch.nan, 2], [torch.nan, 2]]), 0, "read")
    for found in written:
        assert found[:, 0].tolist() == [0, 0, 0]
        assert found.eq(9).sum(1).tolist() == [1, 1, 1]


def test_structure_must_stay() -> None:
    def step(c: State, x: Tensor, k: Any) -> tuple[Any, Tensor]:
        return tuple(c), x

    program, reasons = built(step)
    assert program.rung == "eager"
    assert "structure" in reasons[0]


def test_carries_keep_their_kind() -> None:
    program, reasons = build_program(lambda c, x, k: (c.sum(), x), torch.ones(3), torch.ones(2), (), patient=False)
    assert program.rung == "traced"
    assert "a carry that turns from" in reasons[0]


def test_random_numbers_come_from_outside() -> None:
    program, reasons = build_program(lambda c, x, k: (c, x + torch.randn(2)), (), torch.ones(2), (), patient=False)
    assert program.rung == "traced"
    assert "come from outside" in reasons[0]
    _, y = program((), torch.zeros(2, 2), ())
    assert (y[0] != y[1]).all()


# -- known bugs --------------------------------------------------------------------------------------------------------


def test_large_identity() -> None:
    program, reasons = build_program(lambda c, x, k: (c, x + torch.eye(300)), (), torch.ones(300), (), patient=False)
    assert program.rung == "C", reasons


def test_captured_tensor_copied_and_changed() -> None:
    weight = torch.ones(3)

    def step(carry: tuple[()], x: Tensor, constants: Any) -> tuple[Any, Tensor]:
        return carry, weight.clone().mul_(2) + x.clone().add_(weight)

    program, reasons = build_program(step, (), weight, (), patient=False)
    assert program.rung == "C", reasons
    for value in (1.0, 5.0):
        weight.fill_(value)
        assert_same(program((), torch.zeros(1, 3), ())[1], torch.full((1, 3), 3 * value), 0, "captured and changed")
    assert weight.eq(5).all()


def test_variance() -> None:
    def step(carry: tuple[()], x: Tensor, constants: Any) -> tuple[Any, list[Any]]:
        return carry, [x.var(), x.std(1), x.var((0, 1), correction=0, keepdim=True), torch.var_mean(x, 0)]

    xs = torch.randn(3, 4, 5, dtype=torch.float64)
    program, reasons = build_program(step, (), xs[0], (), patient=False)
    assert program.rung == "C", reasons
    assert_same(program((), xs, ()), EagerProgram(step)((), xs, ()), 1e-12, "variance")


FACTOR = torch.linalg.cholesky(torch.eye(4, dtype=torch.float64) + 0.1)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.nn.functional.elu(x, 0.5),
        lambda x: torch.nn.functional.gelu(x),
        lambda x: torch.nn.functional.leaky_relu(x),
        lambda x: torch.nn.functional.hardtanh(x),
        lambda x: torch.nn.functional.layer_norm(x, (4,)) * x,
        lambda x: torch.nn.functional.embedding(torch.tensor([2, 0, 2]), x.unsqueeze(-1)),
        lambda x: torch.cholesky_solve(x.unsqueeze(-1), FACTOR).squeeze(-1) * x,
        lambda x: torch.cholesky_inverse(FACTOR.mT * (1 + x.square()), upper=True).sum(-1),
    ],
)
def test_made_of_other_operations(function: Callable[[Tensor], Tensor]) -> None:
    def step(carry: tuple[()], x: Tensor, constants: Any) -> tuple[Any, Any]:
        value, gradient = torch.func.vmap(torch.func.grad_and_value(lambda y: function(y).sum()))(x)
        return carry, (value, gradient)

    xs = torch.randn(2, 5, 4, dtype=torch.float64)
    program, reasons = build_program(step, (), xs[0], (), patient=False)
    assert program.rung == "C", reasons
    assert_same(program((), xs, ()), EagerProgram(step)((), xs, ()), 1e-10, "made of others")


@pytest.mark.usefixtures("no_callbacks")
@pytest.mark.parametrize(("step", "rung"), [(None, "C"), (torch.sort, "traced"), (bool, "eager")])
def test_without_x_a_step_is_made_once(step: Any, rung: str) -> None:
    def once(carry: Tensor, x: tuple[()], constants: Tensor) -> tuple[Tensor, Tensor]:
        if step is not None:
            step(constants[0])
        return carry + 1, (carry + constants if step is not torch.sort else torch.sort(constants).values)

    program, reasons = build_program(once, torch.zeros(2), (), torch.ones(2), patient=False)
    assert program.rung == rung, reasons
    carry, y = program(torch.zeros(2), (), torch.ones(2))
    assert torch.equal(carry, torch.ones(2))
    assert torch.equal(y, torch.ones(1, 2))


# -- the guard ---------------------------------------------------------------------------------------------------------


def wrong_in_one_place(dtype: torch.dtype, x: str) -> str:
    """An error of one in a million, in a single element."""
    return f"exp({x}) * ({x} == 1.5 ? 1.000001 : 1)"


def test_one_wrong_element_is_seen(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setitem(ARITHMETIC, "exp", wrong_in_one_place)
    xs = torch.linspace(0, 2, 41, dtype=torch.float64)
    program, reasons = build_program(lambda c, x, k: (c, x.exp()), (), xs, (), patient=False)
    assert program.rung == "traced"
    assert "does not agree" in reasons[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_ill_conditioned_steps_hold(dtype: torch.dtype) -> None:
    """What rounding leaves nothing of, what it makes infinite, and what it makes a NaN of."""

    def step(carry: Tensor, x: Tensor, constants: Any) -> tuple[Tensor, list[Tensor]]:
        saturated, shifted = x.tanh(), (x + 1e6).sin() - 1e6
        cancelled = shifted + 1e6 - (x + 1e6).sin()
        return carry, [
            (1 - saturated.square()).log(),
            (1 - saturated.square()).rsqrt() * x,
            cancelled / 1e-9,
            x.exp().exp(),
        ]

    x = torch.linspace(-30, 30, 61, dtype=dtype)
    program, reasons = build_program(step, x[0], x, (), patient=False)
    assert program.rung == "C", reasons


def test_other_shapes_are_refused() -> None:
    program, _ = build_program(lambda c, x, k: (c, x * 2), (), torch.ones(3), (), patient=False)
    with pytest.raises(ValueError, match="Build another"):
        program((), torch.ones(1, 4), ())


def test_any_error_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HANDLERS, "mm", lambda *_: [][0])
    program, reasons = build_program(lambda c, x, k: (c, x @ x), (), torch.ones(3, 3), (), patient=False)
    assert program.rung == "traced", reasons


@pytest.mark.usefixtures("no_callbacks")
def test_inductor_takes_any_strides() -> None:
    xs = torch.randn(3, 3, 4).transpose(1, 2)
    program, reasons = build_program(lambda c, x, k: (c, torch.sort(x).values), (), xs[0], (), patient=True)
    assert program.rung == "Inductor", reasons
    assert_same(program((), xs, ())[1], torch.sort(xs).values, 0, "strides")
