"""Rows that a step selects: the carry changes in place, and only what is asked for is computed."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from program_cases import repeated_part
from torch import Tensor

from pyro_ebm._core.program import build_program
from pyro_ebm._core.program import program as program_module
from pyro_ebm._core.program.c_source import write_source
from pyro_ebm._core.program.program import CProgram, EagerProgram
from pyro_ebm._core.program.traced_step import TracedStep

CHAINS, SLOTS, DIM, STEPS = 5, 3, 4, 6
Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def choose(mask: Tensor, chosen: Tensor, otherwise: Tensor) -> Tensor:
    while mask.dim() < max(chosen.dim(), otherwise.dim()):
        mask = mask.unsqueeze(-1)
    return torch.where(mask, chosen, otherwise)


@pytest.fixture(autouse=True)
def _spoilt_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program does not write is NaN, or a boolean that is neither true nor false."""
    empty = torch.empty

    def spoilt(*args: Any, **kwargs: Any) -> Tensor:
        made = empty(*args, **kwargs)
        return made.fill_(255) if made.dtype == torch.uint8 else made

    monkeypatch.setattr(program_module.torch, "empty", spoilt)


def agrees(step: Step, carry: Any, xs: Any, constants: Any = ()) -> CProgram:
    program, reasons = build_program(step, carry, _first(xs), constants, patient=False)
    assert isinstance(program, CProgram), reasons
    found, expected = program(carry, xs, constants), EagerProgram(step)(carry, xs, constants)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    return program


def _first(xs: Any) -> Any:
    return tuple(x[0] for x in xs) if isinstance(xs, tuple) else xs[0]


def source(step: Step, carry: Any, x: Any, constants: Any = ()) -> str:
    traced = TracedStep(step, carry, x, constants)
    return write_source(traced.graph, *traced.inputs)[0].text


def rows_chosen(carry: Tensor, x: Tensor, _: Any) -> tuple[Tensor, Tensor]:
    return choose(x[:, 0] > 0, x.exp(), carry), x.sum()


def test_rows_that_stay_are_not_written() -> None:
    xs = normal(1, STEPS, CHAINS, DIM)
    agrees(rows_chosen, normal(0, CHAINS, DIM), xs)
    repeated = repeated_part(source(rows_chosen, normal(0, CHAINS, DIM), xs[0]))
    assert repeated.index("if (") < repeated.index("exp(")  # it is computed for the chosen rows alone
    assert " ? " not in repeated  # and nothing is selected element by element


def test_a_swap() -> None:
    def step(carry: tuple[Tensor, Tensor], x: Tensor, _: Any) -> tuple[tuple[Tensor, Tensor], Tensor]:
        a, b = carry
        moved, swap, done = a + x, x[:, 0] > 0, x[:, 1] > 0.5
        return (choose(done, x, choose(swap, b, moved)), choose(done, x, choose(swap, moved, b))), (a * b).sum(-1)

    agrees(step, (normal(0, CHAINS, DIM), normal(1, CHAINS, DIM)), normal(2, STEPS, CHAINS, DIM))


def test_the_old_and_the_new_value_are_both_read() -> None:
    def step(carry: Tensor, x: Tensor, _: Any) -> tuple[Tensor, Tensor]:
        new = choose(x[:, 0] > 0, x, carry)
        return choose(new.sum(-1) > carry.sum(-1), -x, new), new * carry

    agrees(step, normal(0, CHAINS, DIM), normal(1, STEPS, CHAINS, DIM))


def test_a_fold_of_rows_that_are_asked_for() -> None:
    def step(carry: Tensor, x: tuple[Tensor, Tensor], _: Any) -> tuple[Tensor, Tensor]:
        (point, wanted), turned = x, ((carry * x[0].unsqueeze(1)).exp().sum(-1) > 2)
        found = wanted[:, 0] & (wanted & turned).any(-1)
        return torch.where(wanted.unsqueeze(-1), point.unsqueeze(1), carry), found

    carry, wanted = normal(0, CHAINS, SLOTS, DIM), normal(1, STEPS, CHAINS, SLOTS) > 0
    agrees(step, carry, (normal(2, STEPS, CHAINS, DIM), wanted))
    repeated = repeated_part(source(step, carry, (normal(2, CHAINS, DIM), wanted[0])))
    before = repeated[: repeated.index("exp(v")]
    assert before.count("if (") == 2  # the fold is done for the chains, and of these the slots, that are wanted


def test_one_flag_for_everything() -> None:
    def step(carry: tuple[Tensor, Tensor], x: Tensor, on: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        total, count = carry
        new = (total + x.exp(), count + 1)
        return (torch.where(on, new[0], total), torch.where(on, new[1], count)), x

    carry, xs = (normal(0, CHAINS), torch.zeros((), dtype=torch.float64)), normal(1, STEPS, CHAINS)
    for on in (True, False):
        agrees(step, carry, xs, torch.tensor(on))


def test_values_in_another_layout() -> None:
    def step(carry: tuple[Tensor, Tensor], x: Tensor, matrix: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        product = (matrix @ x.t()).t()
        first = choose(x[:, 0] > 0, product, carry[0])
        return (first, choose(x[:, 1] > 0, first, choose(x[:, 2] > 0, carry[1], product))), product.sum(0)

    carry = (normal(0, CHAINS, DIM), normal(1, CHAINS, DIM))
    agrees(step, carry, normal(2, STEPS, CHAINS, DIM), normal(3, DIM, DIM))


class RandomRows:
    """A step that selects rows of its carry and of what it makes of it, at random."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        shapes = [(CHAINS, DIM)] * 4 + [(CHAINS, SLOTS, DIM)] * 2 + [(CHAINS,)] * 2
        self.carry = tuple(normal(10 * seed + i, *shape) for i, shape in enumerate(shapes))
        self.xs = (normal(seed, STEPS, CHAINS, DIM), normal(seed + 1, STEPS, CHAINS, SLOTS) > 0)

    def __call__(self, carry: tuple[Tensor, ...], x: tuple[Tensor, Tensor], _: Any) -> tuple[Any, Any]:
        pick = random.Random(self.seed)
        point, slots = x
        masks = [slots[:, 0], point[:, 0] > 0, carry[6] > 0]
        rows = [*carry[:4], point]
        stacks = list(carry[4:6])
        masks_of_slots = [slots]
        for _ in range(pick.randint(6, 14)):
            kind = pick.randrange(8)
            a, b, mask = pick.choice(rows), pick.choice(rows), pick.choice(masks)
            if kind == 0:
                rows.append(torch.tanh(a + 0.5 * b))
            elif kind in (1, 2):
                rows.append(choose(mask, a, b))
            elif kind == 3:
                masks.append(mask & ((a * b).sum(-1) > 0))
            elif kind == 4:
                stacks.append(choose(pick.choice(masks_of_slots), a.unsqueeze(1), pick.choice(stacks)))
            elif kind == 5:
                asked = pick.choice(masks_of_slots) & ((pick.choice(stacks) * a.unsqueeze(1)).sum(-1) > 0)
                masks_of_slots.append(asked)
                masks.append(mask & asked.any(-1))
            elif kind == 6:
                rows.append(pick.choice(stacks)[:, pick.randrange(SLOTS)])
            else:
                rows.append((a.t() * point[:, 0]).t().contiguous())
        new = [self._next(pick, i, rows, masks) for i in range(4)]
        new += [choose(pick.choice(masks_of_slots), pick.choice(rows).unsqueeze(1), stack) for stack in carry[4:6]]
        new += [choose(pick.choice(masks), pick.choice(rows).sum(-1), each) for each in carry[6:]]
        return tuple(new), (pick.choice(rows), pick.choice(masks), pick.choice(stacks))

    def _next(self, pick: random.Random, i: int, rows: list[Tensor], masks: list[Tensor]) -> Tensor:
        """Most of the carry is what it was, in some rows."""
        value = pick.choice([rows[i], rows[i], rows[i], pick.choice(rows)])
        for _ in range(pick.randint(0, 2)):
            value = choose(pick.choice(masks), pick.choice(rows), value)
        return value


@pytest.mark.parametrize("seed", range(24))
def test_random_rows(seed: int) -> None:
    step = RandomRows(seed)
    agrees(step, step.carry, step.xs)
