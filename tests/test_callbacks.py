"""Programs that call torch back for operations of which they do not know."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_ebm._core.program import CompiledFunction, EagerProgram, build_program
from pyro_ebm._core.program.program import CProgram
from pyro_ebm._core.program.rounding import _Rounded

WEIGHT = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MATRIX = WEIGHT @ WEIGHT.mT + 6 * torch.eye(6, dtype=torch.float64)
FILTERS = WEIGHT[:3, :4].reshape(3, 1, 2, 2)
DENSITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "sort": lambda x: (x.sort().values * WEIGHT[0]).sum(),
    "topk": lambda x: x.topk(2).values.sum(),
    "logcumsumexp": lambda x: x.logcumsumexp(0).sum(),
    "median": lambda x: x.median(),
    "convolution": lambda x: F.conv2d(x.view(1, 1, 2, 3), FILTERS).square().sum(),
    "transposed_convolution": lambda x: F.conv_transpose2d(x.view(1, 1, 2, 3), FILTERS.transpose(0, 1)).square().sum(),
    "max_pool": lambda x: F.max_pool1d(x.view(1, 1, 6), 2).square().sum(),
    "average_pool": lambda x: F.avg_pool2d(x.view(1, 1, 2, 3), 2).square().sum(),
    "interpolate": lambda x: F.interpolate(x.view(1, 1, 6), 12, mode="linear").square().sum(),
    "replicate": lambda x: F.pad(x.view(1, 1, 6), (1, 1), mode="replicate").square().sum(),
    "erfinv": lambda x: (0.9 * x.tanh()).erfinv().sum(),
    "ndtri": lambda x: torch.special.ndtri(x.sigmoid()).sum(),
    "trigamma": lambda x: torch.polygamma(1, x.exp()).sum(),
    "digamma": lambda x: x.exp().digamma().sum(),  # its gradient is a trigamma function
    "bessel": lambda x: torch.special.i0(x).log().sum(),
    "solve": lambda x: x @ torch.linalg.solve(MATRIX + x.diag_embed(), x),
    "inverse": lambda x: torch.linalg.inv(MATRIX + x.diag_embed()).sum(),
    "determinant": lambda x: torch.linalg.det(MATRIX + x.diag_embed()).log(),
    "log_determinant": lambda x: torch.linalg.slogdet(MATRIX + x.diag_embed()).logabsdet,
    "eigenvalues": lambda x: torch.linalg.eigvalsh(MATRIX + x.diag_embed()).log().sum(),
    "singular_values": lambda x: torch.linalg.svdvals(MATRIX + torch.outer(x, x)).log().sum(),
    "orthogonal": lambda x: torch.linalg.qr(MATRIX + x.diag_embed()).R.diagonal().abs().log().sum(),
    "matrix_exponential": lambda x: torch.linalg.matrix_exp(0.1 * torch.outer(x, x)).sum(),
    "distances": lambda x: torch.cdist(x.view(3, 2), WEIGHT[:4, :2]).exp().sum(),
    "search": lambda x: (x * torch.searchsorted(WEIGHT[0].sort().values, x.detach())).sum(),
}


def log_density(density: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def one(x: Tensor) -> Tensor:
        return -density(x) - 0.5 * x.square().sum()

    return lambda x: torch.func.vmap(torch.func.grad_and_value(one))(x)[::-1]


def rows(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_of_such_operations_are_c_programs(name: str) -> None:
    """Called again and again, in a step that repeats itself, they say what the function says."""
    function = log_density(DENSITIES[name])

    def step(carry: Tensor, x: Tensor, constants: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        value, gradient = function(carry + x)
        return carry + 0.01 * gradient, (value, gradient)

    xs = 0.1 * rows(1, 4, 5, 6)
    program, reasons = build_program(step, xs[0], xs[0], (), patient=False)
    assert program.rung == "C", reasons
    for seed in (2, 3):
        carry = rows(seed, 5, 6)
        found, expected = (each(carry, xs, ()) for each in (program, EagerProgram(step)))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_float32() -> None:
    function = log_density(lambda x: (x.sort().values * WEIGHT[0].float()).sum())
    x = rows(1, 5, 6).float()
    compiled = CompiledFunction(function, x, patient=False)
    assert compiled.reasons == []
    torch.testing.assert_close(compiled(x), function(x))


def test_results_of_several_kinds() -> None:
    """Indices, booleans, a number, nothing at all."""

    def step(carry: tuple[()], x: Tensor, constants: Any) -> tuple[Any, list[Tensor]]:
        values, places = x.sort(dim=-1, descending=True)
        return carry, [values, places, torch.isin(x.long(), x[0].long()), x[:, :0].sort().values, torch.trace(x)]

    xs = rows(1, 3, 4, 5)
    program, reasons = build_program(step, (), xs[0], (), patient=False)
    assert program.rung == "C", reasons
    torch.testing.assert_close(program((), xs, ()), EagerProgram(step)((), xs, ()))


def test_an_error_in_a_call_is_raised_when_the_program_returns() -> None:
    """It is not lost, and what comes after it is right again, though two calls have failed."""

    def step(carry: tuple[()], x: Tensor, constants: Any) -> tuple[Any, Tensor]:
        return carry, torch.linalg.eigvalsh(x) + 0 * torch.linalg.eigvalsh(2 * x)

    xs = torch.stack([MATRIX, 2 * MATRIX, 3 * MATRIX])
    program, reasons = build_program(step, (), xs[0], (), patient=False)
    assert program.rung == "C", reasons
    bad = xs.clone()
    bad[1, 0, 0] = torch.nan
    with pytest.raises(torch.linalg.LinAlgError, match="failed to converge"):
        program((), bad, ())
    torch.testing.assert_close(program((), xs, ())[1], torch.linalg.eigvalsh(xs))


def test_an_error_in_a_program_that_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long function is a program of its own, which steps call."""
    monkeypatch.setattr("pyro_ebm._core.program.program.is_long", lambda text: True)
    compiled = CompiledFunction(lambda x: (torch.linalg.eigvalsh(x),), MATRIX, patient=False)
    step: Callable[..., Any] = lambda carry, x, constants: (carry, compiled.plain(x)[0] + 1)  # noqa: E731
    program, reasons = build_program(step, (), MATRIX, (), patient=False)
    assert isinstance(program, CProgram), reasons
    assert program.graph.code.count("pyro_ebm.call") == 1
    torch.testing.assert_close(program((), MATRIX[None], ())[1][0], torch.linalg.eigvalsh(MATRIX) + 1)
    with pytest.raises(torch.linalg.LinAlgError, match="failed to converge"):
        program((), MATRIX[None] * torch.nan, ())


def test_a_matrix_without_inverse_is_a_matter_of_its_own_chain() -> None:
    function = log_density(lambda x: torch.linalg.solve(x.view(2, 2), x[:2]).sum())
    x = rows(1, 3, 4)
    compiled = CompiledFunction(function, x, patient=False)
    assert compiled.reasons == []
    singular = x.clone()
    singular[1] = 1.0
    value, gradient = compiled(singular)
    assert not bool(value[1].isfinite() & gradient[1].isfinite().all())
    for i in (0, 2):
        torch.testing.assert_close((value[i], gradient[i]), tuple(each[i] for each in function(x)))


@pytest.mark.parametrize("operation", ["dynamic", "short", "random"])
def test_what_cannot_be_called_back(operation: str) -> None:
    def step(carry: tuple[()], x: Tensor, constants: Any) -> tuple[Any, Tensor]:
        if operation == "dynamic":
            return carry, x.nonzero().sum() + x
        return carry, x.to(torch.int16).to(x.dtype) if operation == "short" else torch.randperm(3) + x

    program, reasons = build_program(step, (), torch.ones(3), (), patient=False)
    assert program.rung in ("traced", "eager")
    assert reasons


def test_rounding_is_where_the_tensors_are() -> None:
    """A graph on a GPU is compared there."""
    graph = torch.fx.symbolic_trace(lambda x: x * 2)
    (nudged,) = [_Rounded(graph, frozenset(), 0)._nudged(torch.ones(3, device="meta"), False)]
    assert nudged.device.type == "meta"


# -- what is traced ----------------------------------------------------------------------------------------------------


def test_one_hot_is_traced() -> None:
    index = torch.tensor([2, 0, 1, 2])
    function = log_density(lambda x: (F.one_hot(index, 6) * F.one_hot(input=index, num_classes=6) * x).square().sum())
    compiled = CompiledFunction(function, rows(1, 5, 6), patient=False)
    assert compiled.reasons == []
    torch.testing.assert_close(compiled(rows(2, 5, 6)), function(rows(2, 5, 6)))
    torch.testing.assert_close(F.one_hot(index), torch.eye(3).long()[index])


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of vmap
def test_attention_keeps_its_gradient() -> None:
    """Torch takes its forward apart into what its backward does not understand."""

    def attention(x: Tensor) -> Tensor:
        query = x.view(1, 1, 3, 2)
        return F.scaled_dot_product_attention(query, query, query).square().sum()

    function, x = log_density(attention), rows(1, 5, 6)
    torch.testing.assert_close(CompiledFunction(function, x, patient=False)(x), function(x))


def test_a_graph_that_says_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyro_ebm._core.program import trace

    table = {**trace._decompositions(), torch.ops.aten.erfinv.default: lambda x: x.erf()}
    monkeypatch.setattr(trace, "_decompositions", lambda: table)
    step: Callable[..., Any] = lambda carry, x, constants: (carry, x.erfinv() + 1)  # noqa: E731
    program, reasons = build_program(step, (), torch.rand(4).double(), (), patient=False)
    assert program.rung == "eager"
    assert "the traced graph does not agree with the function" in reasons[0]
