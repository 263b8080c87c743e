"""Draws and diagnostics in preallocated buffers: each chain fills its own row at its own pace."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.mcmc.buffers import Buffers, MappedBuffers, MemoryBuffers

# So many at a time are copied in memory that the process has already: new memory is what takes long.
_FEW_NUMBERS = 2**16
_Finish = Callable[[Tensor], Tensor]


class Recorder:
    """Buffers `(chains, num_draws, ...)` that take what the chains that are done have to say.

    Args:
        num_chains: number of chains.
        num_draws: draws kept for each chain; what comes after is dropped.
        device: where the chains are, and their draws, unless they go to a folder.
        thinning: of so many transitions, the last is kept.
        folder: where to keep draws on disk; by default they are kept in memory.

    Attributes:
        thinning: as given, or as set by `thin`.
        transitions: transitions made by each chain, `(chains,)`, since the last call of `thin`.
    """

    def __init__(
        self, num_chains: int, num_draws: int, device: torch.device, thinning: int = 1, folder: Path | None = None
    ) -> None:
        self.num_draws, self.thinning = num_draws, thinning
        self.transitions = torch.zeros(num_chains, dtype=torch.long, device=device)
        self._earlier = torch.zeros_like(self.transitions)  # draws that each chain had come to at the last `thin`
        self._buffers: Buffers = MemoryBuffers(device) if folder is None else MappedBuffers(folder)

    @property
    def counts(self) -> Tensor:
        """Draws that each chain has come to, `(chains,)`; kept are `num_draws` at most."""
        return self._earlier + self.transitions // self.thinning

    def thin(self, thinning: int) -> None:
        """Keep the last of so many transitions from now on; those made since the last draw do not count."""
        self._earlier, self.thinning = self.counts, thinning
        self.transitions = torch.zeros_like(self.transitions)

    def record(
        self,
        done: Tensor,
        values: Mapping[str, Tensor],
        finish: Mapping[str, _Finish] | None = None,
    ) -> Tensor:
        """Store what chains say where they are `done`.

        Args:
            done: `(ticks, chains)`.
            values: each `(ticks, chains, ...)`.
            finish: what to make of the stored rows `(*lead, ...)` of some values.

        Returns:
            Which were stored, `(ticks, chains)`.
        """
        as_one = [(each == each[0]).all() for each in (self.transitions, self._earlier)]
        in_step = bool((done == done[:, :1]).all() & as_one[0] & as_one[1])
        chains = slice(1) if in_step else slice(None)
        ended = done[:, chains]
        number = self.transitions[chains] + ended.cumsum(0)  # of the transition, from one
        slot = self._earlier[chains] + number // self.thinning - 1
        kept = ended & (number % self.thinning == 0) & (slot < self.num_draws)
        store = self._store_in_step if in_step else self._store
        store(kept, slot, values, finish or {})
        self.transitions = self.transitions + ended.sum(0)
        return kept.expand(done.shape)

    def _store(self, kept: Tensor, slot: Tensor, values: Mapping[str, Tensor], finish: Mapping[str, _Finish]) -> None:
        # One index instead of two: taking rows by it is several times faster.
        (taken,) = kept.flatten().nonzero(as_tuple=True)
        places = taken % kept.shape[1] * self.num_draws + slot.flatten().index_select(0, taken)
        for name, value in values.items():
            rows = finish.get(name, _as_it_is)(value.flatten(0, 1).index_select(0, taken))
            buffer = self._buffer(name, rows.shape[1:], rows.dtype)
            buffer.flatten(0, 1).index_copy_(0, places.to(buffer.device), rows.to(buffer.device))

    def _store_in_step(
        self, kept: Tensor, slot: Tensor, values: Mapping[str, Tensor], finish: Mapping[str, _Finish]
    ) -> None:
        """Where all chains end their transitions together, their draws are one stretch of the buffers."""
        (ticks,) = kept[:, 0].nonzero(as_tuple=True)
        first = int(slot[ticks[0], 0]) if len(ticks) else 0
        for name, value in values.items():
            at, some = first, max(1, _FEW_NUMBERS // max(value[0].numel(), 1))
            for part in ticks.split(some):
                rows = finish.get(name, _as_it_is)(value[part])
                buffer = self._buffer(name, rows.shape[2:], rows.dtype)
                buffer[:, at : at + len(part)] = rows.transpose(0, 1)
                at += len(part)

    def _buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self._buffers.buffer(name, (len(self.transitions), self.num_draws, *shape), dtype)

    def draws(self) -> dict[str, Tensor]:
        """What all chains have recorded, each `(chains, draws, ...)`, with as many draws as the slowest chain has."""
        count = min(int(self.counts.min()), self.num_draws)
        return {name: buffer[:, :count] for name, buffer in self._buffers.read().items()}

    def state_dict(self) -> dict[str, Any]:
        """The counts and the buffers, or where these are in files, what to look for there."""
        counters = {"transitions": self.transitions, "earlier": self._earlier, "thinning": self.thinning}
        return {**counters, **self._buffers.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        device, self.thinning = self.transitions.device, state["thinning"]
        self.transitions, self._earlier = state["transitions"].to(device), state["earlier"].to(device)
        self._buffers.load_state_dict(state)


def _as_it_is(rows: Tensor) -> Tensor:
    return rows
