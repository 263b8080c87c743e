"""Programs that replay a captured step: their memory, with a stand-in for the capture, and on a GPU the whole."""

from typing import Any

import pytest
import torch
from kernel_cases import generator
from torch import Tensor

from pyro_ebm import MCMC, NUTS, Funnel
from pyro_ebm._core.program.c_library import BuildError
from pyro_ebm._core.program.cuda_graph import Body, CudaGraphProgram
from pyro_ebm._core.program.program import EagerProgram, build_program
from pyro_ebm._core.program.traced_step import TracedStep

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def rehearsed(body: Body) -> Body:
    """Like a capture: run a few times before, and it launches the same work on the same memory again."""
    for _ in range(4):
        body()
    return body


def swap(carry: Any, x: Any, constants: Any) -> Any:
    """A step whose new carry is made of views and old values of others, of several dtypes."""
    first, second, count, odd = carry
    noise, flag = x
    new = (second, first[:, :1].expand(3, 2) + noise, count + flag, ~odd)
    return new, {"sum": first.sum(-1) * constants[0], "count": count, "odd": odd & (flag > 0)}


def case(steps: int, seed: int, device: str = "cpu") -> tuple[Any, Any, Any]:
    first, second = torch.randn(2, 3, 2, generator=generator(seed), dtype=torch.float64)
    noise = torch.randn(steps, 3, 2, generator=generator(seed + 1), dtype=torch.float64)
    flag = torch.arange(steps)
    carry = (first, second, torch.tensor(7), torch.tensor([True, False]))
    move = torch.utils._pytree.tree_map
    return tuple(move(lambda leaf: leaf.to(device), tree) for tree in (carry, (noise, flag), (torch.tensor(1.5),)))


def assert_same(ours: Any, theirs: Any) -> None:
    mine, other = (torch.utils._pytree.tree_flatten(tree) for tree in (ours, theirs))
    assert mine[1] == other[1]
    for found, expected in zip(mine[0], other[0], strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected)


def make(step: Any = swap) -> CudaGraphProgram:
    carry, xs, constants = case(1, 1)
    traced = TracedStep(step, carry, tuple(x[0] for x in xs), constants)
    return CudaGraphProgram(traced, traced.graph, rehearsed)


def test_steps_are_those_of_the_function() -> None:
    """In calls of any length, shorter and longer than those before; results are the caller's own."""
    program, eager, kept = make(), EagerProgram(swap), []
    for steps in (1, 5, 3, 8, 8, 1):
        arguments = case(steps, 10 * steps)
        ours, theirs = program(*arguments), eager(*arguments)
        assert_same(ours, theirs)
        kept.append((ours, theirs))
    for ours, theirs in kept:
        assert_same(ours, theirs)


def test_what_is_given_stays_as_it_is() -> None:
    program, arguments = make(), case(4, 3)
    before = torch.utils._pytree.tree_map(torch.clone, arguments)
    program(*arguments)
    assert_same(arguments, before)


def test_a_function_without_carry_or_x() -> None:
    traced = TracedStep(lambda carry, x, constants: (carry, 2 * constants[0]), (), (), (torch.arange(3.0),))
    program = CudaGraphProgram(traced, traced.graph, rehearsed)
    for value in (torch.zeros(3), torch.ones(3)):
        assert_same(program((), (), (value,)), ((), 2 * value.unsqueeze(0)))


def test_a_capture_that_is_wrong_is_not_used() -> None:
    carry, xs, constants = case(1, 1)
    traced = TracedStep(swap, carry, tuple(x[0] for x in xs), constants)
    with pytest.raises(BuildError, match="does not agree"):
        CudaGraphProgram(traced, traced.graph, lambda body: lambda: None)


@cuda
@pytest.mark.parametrize("patient", [False, True])
def test_a_graph_on_a_gpu_is_the_function(patient: bool) -> None:
    carry, xs, constants = case(1, 1, "cuda")
    program, reasons = build_program(swap, carry, tuple(x[0] for x in xs), constants, patient=patient)
    assert program.rung == "CUDA graph", reasons
    for steps in (1, 6, 3):
        arguments = case(steps, steps, "cuda")
        assert_same(program(*arguments), EagerProgram(swap)(*arguments))


@cuda
def test_a_run_on_a_gpu_is_one_graph_and_right() -> None:
    energy = Funnel(5, 1.0).double().cuda()
    mcmc = MCMC(NUTS(energy), num_samples=200, warmup_steps=300, num_chains=256, compile=True, disable_progbar=True)
    mcmc.run()
    assert mcmc.attrs["program"] == "CUDA graph"
    draws: Tensor = mcmc.get_samples(group_by_chain=True)["x"]
    assert draws.device.type == "cuda"
    neck = draws[..., 0].cpu()
    error = neck.mean(1).std() / 256**0.5
    assert abs(float(neck.mean())) < 4 * float(error)
