"""Draws and diagnostics in preallocated buffers: each chain fills its own row at its own pace."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Recorder:
    """Buffers `(chains, num_draws, ...)` that take what the chains that are done have to say.

    Args:
        num_chains: number of chains.
        num_draws: draws kept for each chain; what comes after is dropped.

    Attributes:
        counts: draws recorded by each chain, `(chains,)`.
    """

    def __init__(self, num_chains: int, num_draws: int, device: torch.device) -> None:
        self.num_draws = num_draws
        self.counts = torch.zeros(num_chains, dtype=torch.long, device=device)
        self._chains = torch.arange(num_chains, device=device)
        self._buffers: dict[str, Tensor] = {}

    def record(self, done: Tensor, values: Mapping[str, Tensor]) -> None:
        """Store `values`, each `(chains, ...)`, for the chains that are `done`, `(chains,)`: no synchronisation."""
        if not self._buffers:
            for name, value in values.items():  # one slot more, where what is not to be kept goes
                shape = (value.shape[0], self.num_draws + 1, *value.shape[1:])
                self._buffers[name] = torch.zeros(shape, dtype=value.dtype, device=value.device)
        slot = torch.where(done, self.counts, self.num_draws).clamp(max=self.num_draws)
        for name, value in values.items():
            self._buffers[name][self._chains, slot] = value
        self.counts = self.counts + done

    def draws(self) -> dict[str, Tensor]:
        """What all chains have recorded, each `(chains, draws, ...)`, with as many draws as the slowest chain has."""
        count = min(int(self.counts.min()), self.num_draws)
        return {name: buffer[:, :count] for name, buffer in self._buffers.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The buffers and counts."""
        return {"counts": self.counts, **{f"buffer.{name}": buffer for name, buffer in self._buffers.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` saved."""
        self.counts = state["counts"].to(self.counts.device)
        self._buffers = {
            name.removeprefix("buffer."): value.to(self.counts.device).clone()
            for name, value in state.items()
            if name.startswith("buffer.")
        }
