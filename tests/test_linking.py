"""Long functions are compiled once, and called by the steps that use them: with the same results."""

from __future__ import annotations

import gc
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ebm import MCMC, NUTS
from pyro_ebm._core.program import CompiledFunction, build_program
from pyro_ebm._core.program import program as program_module

WEIGHTS = torch.linspace(-1.0, 1.0, 15, dtype=torch.float64).reshape(5, 3)


def function(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    y = (x @ WEIGHTS).tanh() * scale
    return y.sum(-1), y @ WEIGHTS.mT


@pytest.fixture
def all_are_long(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Programs count as long, but are built as ever; the sources that were written."""
    monkeypatch.setattr(program_module, "is_long", lambda source: True)
    sources, write = [], program_module.write_source

    def kept(*arguments: Any) -> Any:
        source, outputs = write(*arguments)
        sources.append(source.text)
        return source, outputs

    monkeypatch.setattr(program_module, "write_source", kept)
    return sources


def test_a_step_calls_the_function(all_are_long: list[str]) -> None:
    examples = torch.randn(7, 5, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    compiled = CompiledFunction(function, *examples)

    def step(carry: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        first, gradient = compiled.plain(carry + x, scale)
        value, _ = compiled.plain((carry.mT + x.mT).mT * 2, scale)  # another layout
        return torch.where((first > 0).unsqueeze(-1), carry - 0.1 * gradient, carry), value

    def expected(carry: Tensor, xs: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        ys = []
        for x in xs:
            first, gradient = function(carry + x, scale)
            ys.append(function((carry + x) * 2, scale)[0])
            carry = torch.where((first > 0).unsqueeze(-1), carry - 0.1 * gradient, carry)
        return carry, torch.stack(ys)

    carry, xs = torch.randn(7, 5, dtype=torch.float64), torch.randn(6, 7, 5, dtype=torch.float64)
    program, reasons = build_program(step, carry, xs[0], examples[1])
    assert (program.rung, reasons) == ("C", [])
    assert "tanh(" in all_are_long[0]
    assert "tanh(" not in all_are_long[1]
    for scale in (examples[1], torch.tensor(-0.5, dtype=torch.float64)):
        torch.testing.assert_close(program(carry, xs, scale), expected(carry, xs, scale))


@pytest.mark.usefixtures("all_are_long", "no_callbacks")
def test_steps_that_are_not_in_c_call_it_too() -> None:
    example = torch.randn(7, 5, dtype=torch.float64)
    compiled = CompiledFunction(lambda x: function(x, torch.ones(())), example)

    def step(carry: Tensor, x: Tensor, _: Any) -> tuple[Tensor, Tensor]:
        return carry, compiled.plain(x)[0] + torch.linalg.eigvalsh(x @ x.mT).sum()

    program, _ = build_program(step, example, example, (), patient=False)
    assert program.rung == "traced"
    found = program(example, example.unsqueeze(0), ())[1][0]
    torch.testing.assert_close(found, function(example, torch.ones(()))[0] + example.square().sum())


@pytest.mark.usefixtures("all_are_long")
def test_what_is_called_may_call() -> None:
    example = torch.randn(7, 5, dtype=torch.float64)
    inner = CompiledFunction(lambda x: function(x, torch.ones(())), example)
    other = CompiledFunction(lambda x: (x.exp(), x.sum(-1)), example)
    outer = CompiledFunction(lambda x: (x - inner.plain(x)[1], inner.plain(x + 1)[0]), example)

    def step(carry: Tensor, x: Tensor, _: Any) -> tuple[Tensor, Tensor]:
        moved, value = outer.plain(carry)
        return moved + 0.01 * other.plain(x)[0], value + inner.plain(x)[0]

    program, reasons = build_program(step, example, example, ())
    assert (program.rung, reasons) == ("C", [])
    carry, ys = program(example, example.unsqueeze(0), ())
    value, gradient = function(example, torch.ones(()))
    torch.testing.assert_close(carry, example - gradient + 0.01 * example.exp())
    torch.testing.assert_close(ys[0], value + function(example + 1, torch.ones(()))[0])


@pytest.mark.usefixtures("all_are_long", "no_callbacks")
def test_inductor_calls_it_and_keeps_it() -> None:
    example = torch.randn(7, 5, dtype=torch.float64)

    def built() -> Any:
        compiled = CompiledFunction(lambda x: function(x, torch.ones(())), example)

        def step(carry: Tensor, x: Tensor, _: Any) -> tuple[Tensor, Tensor]:
            return carry, compiled.plain(x)[0] + torch.linalg.eigvalsh(x @ x.mT).sum()

        return build_program(step, example, example, ())[0]

    program = built()
    gc.collect()
    assert program.rung == "Inductor"
    found = program(example, example.unsqueeze(0), ())[1][0]
    torch.testing.assert_close(found, function(example, torch.ones(()))[0] + example.square().sum())


@pytest.mark.usefixtures("all_are_long")
def test_results_of_several_dtypes_are_traced() -> None:
    example = torch.randn(7, 5, dtype=torch.float64)
    compiled = CompiledFunction(lambda x: (x.sum(-1), x.float()), example)
    value, single = compiled.plain(example)
    torch.testing.assert_close(value, example.sum(-1))
    assert single.dtype == torch.float32


def model(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.zeros((), dtype=torch.float64), 5.0))
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones((), dtype=torch.float64)))
    with pyro.plate("groups", len(y)):
        group = pyro.sample("group", dist.Normal(loc, scale))
        pyro.sample("y", dist.Normal(group, 0.5), obs=y)


def test_draws_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    y = torch.linspace(-1.0, 2.0, 6, dtype=torch.float64)

    def draws() -> dict[str, Tensor]:
        pyro.set_rng_seed(0)
        mcmc = MCMC(NUTS(model), num_samples=40, warmup_steps=60, num_chains=8, compile=True)
        mcmc.run(y)
        return mcmc.get_samples(group_by_chain=True)

    traced = draws()
    calls: list[int] = []
    link = program_module.linked
    monkeypatch.setattr(program_module, "linked", lambda program: calls.append(1) or link(program))
    monkeypatch.setattr(program_module, "is_long", lambda source: True)
    called = draws()
    assert calls
    for name, value in traced.items():
        torch.testing.assert_close(called[name], value, rtol=1e-6, atol=1e-6)
