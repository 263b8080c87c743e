"""Persistent chains of every datum's posterior, and how they move."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Size, Tensor
from torch.distributions import constraints

from pyro_ebm.mcmc.langevin import TARGET_ACCEPTANCE
from pyro_ebm.mcmc.moves import LangevinMove, Tuning

# How far an acceptance turns the step size: less and less, but never too little to follow learning.
_LEAST_GAIN = 0.05
# Steps of the very first chains, by which a common step size is found: the prior may be wider by far than posteriors.
_FIRST_STEPS = 30


class PosteriorChains:
    """Some chains of each datum, in free coordinates, each datum with a step size of its own.

    Args:
        size: N, all data.
        num_chains: of each datum.
        dim: of a datum's free coordinates.
        like: a tensor with dtype and device.

    Attributes:
        position: `(N, chains, dim)`.
        log_step_size: `(N,)`.
        num_visits: how often the chains of a datum have moved, `(N,)`; where it is zero there are none yet.
        scale: the unit of each coordinate: the spread of the first chains, which are draws from the prior, `(dim,)`.
    """

    def __init__(self, size: int, num_chains: int, dim: int, like: Tensor) -> None:
        self.position = like.new_zeros(size, num_chains, dim)
        self.log_step_size = like.new_zeros(size)
        self.num_visits = torch.zeros(size, dtype=torch.long, device=like.device)
        self.scale = like.new_ones(dim)
        self._move = LangevinMove(constraints.independent(constraints.real, 1), Size([dim]))

    def are_new(self, indices: Tensor) -> Tensor:
        """Which of some data have no chains yet, `(data,)`."""
        return self.num_visits[indices] == 0

    def at(self, indices: Tensor) -> Tensor:
        """Where the chains of some data are, `(chains, data, dim)`."""
        return self.position[indices].movedim(1, 0)

    def admit(self, indices: Tensor, free: Tensor) -> None:
        """Let the step sizes of new data begin as those of the others have become.

        Args:
            indices: of the data, `(data,)`.
            free: where their chains are, `(chains, data, dim)`.
        """
        known, new = self.num_visits > 0, indices[self.are_new(indices)]
        if bool(known.any()):
            self.log_step_size[new] = self.log_step_size[known].mean()
            return
        tuning = self._move.tune(free.reshape(-1, free.shape[-1]))
        self.scale = tuning.scale
        self.log_step_size[new] = tuning.log_step_size

    def move(
        self,
        indices: Tensor,
        free: Tensor,
        log_density: Callable[[Tensor], Tensor],
        num_steps: int,
        generator: Generator,
    ) -> tuple[Tensor, Tensor]:
        """Steps of the chains of some data.

        Args:
            indices: of the data, `(data,)`.
            free: where the chains are, `(chains, data, dim)`.
            log_density: `(chains, data, dim)` to `(chains, data)`.
            num_steps: how many.
            generator: of the random numbers.

        Returns:
            Where the chains are now, `(chains, data, dim)`, and the acceptance rate of each datum, `(data,)`.
        """
        scale = self.scale.expand(free.shape[1:])
        if not bool(self.num_visits.any()):
            for _ in range(_FIRST_STEPS):
                moved = self._move(
                    log_density, free, Tuning(self.log_step_size[indices], scale), generator, num_steps=1
                )
                free = moved.value
                self.log_step_size[indices] += moved.acceptance_rate.mean() - TARGET_ACCEPTANCE
        tuning = Tuning(self.log_step_size[indices], scale)
        moved = self._move(log_density, free, tuning, generator, num_steps=num_steps)
        self.num_visits[indices] += 1
        gain = self.num_visits[indices].to(free).pow(-0.6).clamp(min=_LEAST_GAIN)
        self.log_step_size[indices] += gain * (moved.acceptance_rate - TARGET_ACCEPTANCE)
        self.position[indices] = moved.value.movedim(1, 0)
        return moved.value, moved.acceptance_rate

    def state_dict(self) -> dict[str, Tensor]:
        """Where all chains are, and their step sizes."""
        return {name: getattr(self, name).clone() for name in self._SAVED}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        for name in self._SAVED:
            setattr(self, name, saved[name].clone())

    _SAVED = ("position", "log_step_size", "num_visits", "scale")
