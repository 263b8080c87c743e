"""How far a draw goes from the one before it: far enough to forget most of it.

So many steps of a local sampler, or a trajectory so long, suit a density that its metric makes about normal. Where a
window of the warm-up finds that draws remember for longer, those of the next go further, by what is missing.

References:
    Geyer 1992, Practical Markov chain Monte Carlo.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Size, Tensor

from pyro_ebm.mcmc.metric import Metric
from pyro_ebm.mcmc.recorder import Recorder

Learns = Literal["num_steps", "trajectory_length"]
# So many times as far as usual a draw may go: a thousand steps or so, as in a full tree of NUTS.
_FURTHEST: dict[Learns, float] = {"num_steps": 32.0, "trajectory_length": 8.0}
# What is looked at: so many chains and so many coordinates, spread over all, after each quarter of a draw's steps.
_CHAINS, _COORDINATES, _FINEST = 64, 64, 4
# A draw shall count for a third of an independent one. It goes at most four times as far as before, and no further
# where there are fewer draws to judge by than these; those on the way back are limited by how fine they are.
_WANTED, _MOST_GROWTH, _FEWEST = 3.0, 4.0, 20


def autocorrelation_time(draws: Tensor) -> Tensor:
    """The integrated autocorrelation time `1 + 2 Σ ρ_t` of each coordinate, in draws.

    Each chain's autocovariances are about its own mean, so that chains in different modes count as no slower for it.
    The sum goes as far as Geyer's initial monotone sequence does.

    Args:
        draws: `(chains, draws, dim)`.

    Returns:
        `(dim,)`; one for a coordinate that never moved.
    """
    number = draws.shape[1]
    centred = (draws - draws.mean(1, keepdim=True)).double()
    power = torch.fft.rfft(centred, n=2 * number, dim=1).abs().square()
    covariances = torch.fft.irfft(power, n=2 * number, dim=1)[:, :number].mean(0)
    correlations = covariances / covariances[0]
    pairs = correlations[: number // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    times = 2 * pairs.cummin(0).values.clamp(min=0).sum(0) - 1
    return torch.where(covariances[0] > 0, times, 1)


class Reach:
    """Learns, from the draws of a stretch of the warm-up, how far those that follow shall go.

    Args:
        learns: what makes them go further.
        shape: `(chains, dim)`.
        device: where the chains are.
        num_draws: how many draws of each chain tell enough.
        num_steps: steps that make a draw.
    """

    def __init__(self, learns: Learns, shape: Size, device: torch.device, num_draws: int, num_steps: int) -> None:
        chains, dim = shape
        self._furthest = _FURTHEST[learns]
        self._coordinates = torch.linspace(0, dim - 1, min(dim, _COORDINATES), device=device).long()
        interval = math.ceil(num_steps / _FINEST)
        self._per_draw = num_steps / interval
        self.draws = Recorder(min(chains, _CHAINS), int(num_draws * self._per_draw), device, interval)

    @property
    def enough(self) -> bool:
        """Whether there are as many draws of each chain as tell enough."""
        return int(self.draws.counts.min()) >= self.draws.num_draws

    def record(self, done: Tensor, whitened: Tensor, metric: Metric) -> None:
        """Take in the steps of a block that are `done`, `(ticks, chains)`, with positions `(ticks, chains, dim)`."""
        chains = slice(len(self.draws.transitions))

        def coordinates(rows: Tensor) -> Tensor:
            return metric.to_position(rows)[..., self._coordinates]

        self.draws.record(done[:, chains], {"position": whitened[:, chains]}, {"position": coordinates})

    def renewed(self, reach: Tensor) -> Tensor:
        """How many times as far as usual a draw shall go, `()`, where these went `reach` times as far, `()`."""
        draws = self.draws.draws()
        if not draws or draws["position"].shape[1] < _FEWEST * self._per_draw:
            return reach
        memory = autocorrelation_time(draws["position"]).max() / self._per_draw
        return (reach * (memory.to(reach) / _WANTED).clamp(max=_MOST_GROWTH)).clamp(1, self._furthest)
