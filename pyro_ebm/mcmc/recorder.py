"""Draws and diagnostics in preallocated buffers: each chain fills its own row at its own pace."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Recorder:
    """Buffers `(chains, num_draws, ...)` that take what the chains that are done have to say.

    Args:
        num_chains: number of chains.
        num_draws: draws kept for each chain; what comes after is dropped.
        device: where to keep them.
        thinning: of so many transitions, the last is kept.

    Attributes:
        transitions: transitions made by each chain, `(chains,)`.
    """

    def __init__(self, num_chains: int, num_draws: int, device: torch.device, thinning: int = 1) -> None:
        self.num_draws, self.thinning = num_draws, thinning
        self.transitions = torch.zeros(num_chains, dtype=torch.long, device=device)
        self._buffers: dict[str, Tensor] = {}

    @property
    def counts(self) -> Tensor:
        """Draws that each chain has come to, `(chains,)`; kept are `num_draws` at most."""
        return self.transitions // self.thinning

    def record(
        self,
        done: Tensor,
        values: Mapping[str, Tensor],
        finish: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> Tensor:
        """Store what chains say where they are `done`.

        Args:
            done: `(ticks, chains)`.
            values: each `(ticks, chains, ...)`.
            finish: what to make of the stored rows `(rows, ...)` of some values.

        Returns:
            Which were stored, `(ticks, chains)`.
        """
        number = self.transitions + done.cumsum(0)  # of the transition, from one
        kept = done & (number % self.thinning == 0) & (number <= self.num_draws * self.thinning)
        ticks, chains = kept.nonzero(as_tuple=True)
        slots = number[ticks, chains] // self.thinning - 1
        for name, value in values.items():
            rows = value[ticks, chains]
            if finish and name in finish:
                rows = finish[name](rows)
            if name not in self._buffers:
                shape = (len(self.transitions), self.num_draws, *rows.shape[1:])
                self._buffers[name] = torch.zeros(shape, dtype=rows.dtype, device=rows.device)
            self._buffers[name][chains, slots] = rows
        self.transitions = self.transitions + done.sum(0)
        return kept

    def draws(self) -> dict[str, Tensor]:
        """What all chains have recorded, each `(chains, draws, ...)`, with as many draws as the slowest chain has."""
        count = min(int(self.counts.min()), self.num_draws)
        return {name: buffer[:, :count] for name, buffer in self._buffers.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The buffers and counts."""
        return {"transitions": self.transitions, **{f"buffer.{name}": buffer for name, buffer in self._buffers.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` saved."""
        device = self.transitions.device
        self.transitions = state["transitions"].to(device)
        self._buffers = {
            name.removeprefix("buffer."): value.to(device).clone()
            for name, value in state.items()
            if name.startswith("buffer.")
        }
