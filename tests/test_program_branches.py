"""What one boolean decides over is computed only where it holds, and all the same said as torch says it."""

import re
from typing import Any

import pytest
import torch
from program_cases import repeated_part
from torch import Tensor

from pyro_ebm._core.program import build_program, c_source
from pyro_ebm._core.program import program as program_module
from pyro_ebm._core.program.program import EagerProgram

WEIGHTS = torch.linspace(-1.0, 1.0, 400, dtype=torch.float64).reshape(20, 20)


def step(carry: Any, x: Tensor, period: Tensor) -> tuple[Any, Any]:
    """Rows move, and now and then, all at once, start anew from what takes a product, a join and a mean to make."""
    moving, kept, count = carry
    moving, count = moving + x, count + 1
    ended = count == period
    parts = torch.cat([moving[:, :5].exp(), moving[:, 5:].tanh()], dim=1)
    draw = (parts @ WEIGHTS).sin() - parts.mean(0)
    kept = torch.where(ended, draw, kept)
    said = torch.where(ended, draw.sum(-1), torch.zeros_like(draw[:, 0]))
    return (torch.where(ended, 0.1 * draw, moving), kept, count.masked_fill(ended, 0)), (ended, said, kept.sum())


def given() -> tuple[Any, Tensor]:
    generator = torch.Generator().manual_seed(1)
    start, *xs = torch.randn(31, 30, 20, generator=generator, dtype=torch.float64)
    return (start, torch.zeros_like(start), torch.zeros((), dtype=torch.long)), torch.stack(xs)


@pytest.mark.parametrize("period", [1, 3, 100])
def test_a_branch_says_what_the_whole_says(period: int) -> None:
    carry, xs = given()
    program, reasons = build_program(step, carry, xs[0], torch.tensor(period), patient=False)
    assert program.rung == "C", reasons
    found, expected = (each(carry, xs, torch.tensor(period)) for each in (program, EagerProgram(step)))
    torch.testing.assert_close(found, expected)


def test_what_makes_a_branch_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sources, carry_and_xs = [], given()
    write = program_module.write_source

    def kept(*arguments: Any) -> Any:
        sources.append(write(*arguments))
        return sources[-1]

    monkeypatch.setattr(program_module, "write_source", kept)
    carry, xs = carry_and_xs
    build_program(step, carry, xs[0], torch.tensor(3), patient=False)
    text = repeated_part(sources[0][0].text)
    assert re.search(r"if \(\(b\d+\[0\] \| forced\)\) \{+ const int m", text)  # the product
    before = text[: text.index("forced")]
    assert "exp(" not in before
    assert "tanh(" not in before


def test_a_branch_that_is_wrong_is_found_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    write = program_module.write_source

    def wrong(*arguments: Any) -> Any:
        source, outputs = write(*arguments)
        return c_source.CSource(**{**vars(source), "text": source.text.replace("tanh(", "sinh(")}), outputs

    monkeypatch.setattr(program_module, "write_source", wrong)
    carry, xs = given()
    program, reasons = build_program(step, carry, xs[0], torch.tensor(3), patient=False)
    assert program.rung == "traced"
    assert "does not agree" in reasons[0]
