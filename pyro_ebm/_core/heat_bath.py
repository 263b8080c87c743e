"""The heat bath: elements that do not interact take new states from their conditional distributions, all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm._core.randomness import uniform_of_bits


class Block(Protocol):
    """Discrete elements of which no two interact.

    Their states are the numbers `0, ..., num_states - 1`, kept as floats `(elements, chains)`: with chains last, what
    an element reads of a neighbor lies side by side.
    """

    @property
    def num_elements(self) -> int:
        """How many there are."""
        ...

    @property
    def num_states(self) -> int:
        """How many states each has."""
        ...

    def logits(self, states: Sequence[Tensor], context: Sequence[Tensor]) -> Tensor:
        """The conditional log-probabilities of all states, given the others, up to a constant for each element.

        Args:
            states: of all blocks, each `(elements, chains)`.
            context: what else it depends on, as `Conditionals.context` gives it.

        Returns:
            `(num_states, elements, chains)`; for two states the log odds of the second, `(elements, chains)`.
        """
        ...


class Layout(NamedTuple):
    """How the states of blocks make the discrete part of a position.

    Attributes:
        order: where each element is among the blocks' elements side by side, `(discrete,)`.
        low: the lowest value of each element, `(discrete,)`.
        spacing: the distance of its values, `(discrete,)`.
    """

    order: Tensor
    low: Tensor
    spacing: Tensor

    def position(self, states: Sequence[Tensor]) -> Tensor:
        """States `(elements, chains)` of all blocks to values, `(chains, discrete)`."""
        return torch.cat(list(states))[self.order].mT * self.spacing + self.low


class Conditionals(LogDensity, Protocol):
    """A log density over discrete elements, and maybe continuous ones, that knows its conditionals."""

    @property
    def blocks(self) -> Sequence[Block]:
        """The discrete elements, each in one block."""
        ...

    def states(self, position: Tensor) -> tuple[Tensor, ...]:
        """The states of all blocks at a position `(chains, dim)`, each `(elements, chains)`."""
        ...

    @property
    def layout(self) -> Layout:
        """How states make a position."""
        ...

    def context(self, position: Tensor) -> tuple[Tensor, ...]:
        """What the conditionals depend on beside the states, at a position `(chains, dim)`."""
        ...


def resample(
    logits: Tensor, old: Tensor, bits: Tensor, num_states: int, inverse_temperature: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """New states of a block, and what the log density gains by them.

    Args:
        logits: as `Block.logits` gives them.
        old: the present states, `(elements, chains)`.
        bits: random, `(elements, chains)`.
        num_states: of each element.
        inverse_temperature: what log-probabilities are multiplied by, `()`, positive; by default 1.

    Returns:
        The states `(elements, chains)`, and the gain of each element `(elements, chains)`.
    """
    noise = uniform_of_bits(bits, logits.dtype)
    scaled = logits if inverse_temperature is None else logits * inverse_temperature
    if num_states == 2:
        new = torch.where(noise * (1 + (-scaled).exp()) < 1, torch.ones_like(old), torch.zeros_like(old))
        return new, gain_of(logits, old, new, num_states)
    below = (scaled - scaled.amax(0, keepdim=True)).exp().cumsum(0)
    new = (noise * below[-1] >= below[:-1]).sum(0).to(old.dtype)
    return new, gain_of(logits, old, new, num_states)


def gain_of(logits: Tensor, old: Tensor, new: Tensor, num_states: int) -> Tensor:
    """The gain in log density where elements of a block go from old to new states, `(elements, chains)`."""
    if num_states == 2:
        return torch.where(new == old, 0, logits * (new - old))
    gain = torch.zeros_like(logits[0])
    for number in range(num_states):
        gain = gain + torch.where(new == number, logits[number], 0) - torch.where(old == number, logits[number], 0)
    return gain


def sweep(
    blocks: Sequence[Block],
    states: Sequence[Tensor],
    context: Sequence[Tensor],
    bits: Tensor,
    inverse_temperature: Tensor | None = None,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Resample all blocks, one after another.

    Args:
        blocks: the blocks.
        states: of each, `(elements, chains)`.
        context: as `Conditionals.context` gives it.
        bits: random, `(all elements, chains)`.
        inverse_temperature: what log-probabilities are multiplied by, `()`; by default 1. Gains are at 1.

    Returns:
        The new states, and what the log density gains, `(chains,)`, in double precision.
    """
    now, row = list(states), 0
    gain = torch.zeros_like(bits[0], dtype=torch.double)
    for number, block in enumerate(blocks):
        rows = bits[row : row + block.num_elements]
        logits = block.logits(now, context)
        now[number], gains = resample(logits, now[number], rows, block.num_states, inverse_temperature)
        gain = gain + gains.sum(0)
        row += block.num_elements
    return tuple(now), gain


def resample_one(
    blocks: Sequence[Block], states: Sequence[Tensor], bits: Tensor, chosen: Tensor
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Resample one block of each chain.

    Args:
        blocks: the blocks.
        states: of each, `(elements, chains)`.
        bits: random, `(all elements, chains)`.
        chosen: the number of each chain's block, `(chains,)`.

    Returns:
        The new states, and what the log density gains, `(chains,)`, in double precision.
    """
    now, row = [], 0
    gain = torch.zeros_like(chosen, dtype=torch.double)
    for number, block in enumerate(blocks):
        rows = bits[row : row + block.num_elements]
        new, gains = resample(block.logits(states, ()), states[number], rows, block.num_states)
        now.append(torch.where(chosen == number, new, states[number]))
        gain = gain + torch.where(chosen == number, gains.sum(0), 0)
        row += block.num_elements
    return tuple(now), gain
