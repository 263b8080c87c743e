"""How far a draw goes from the one before it: far enough to forget most of it.

So many steps of a local sampler, or a trajectory so long, suit a density that its metric makes about normal. Where a
window of the warm-up finds that draws remember for longer, those of the next go further, by what is missing.

References:
    Geyer 1992, Practical Markov chain Monte Carlo.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_ebm.mcmc.metric import Metric
from pyro_ebm.mcmc.recorder import Recorder

Learns = Literal["num_steps", "trajectory_length"]
# So many times as far as usual a draw may go: a thousand steps or so, as in a full tree of NUTS.
_FURTHEST: dict[Learns, float] = {"num_steps": 32.0, "trajectory_length": 8.0}
# What is looked at of a window: so many chains and draws of each, and so many coordinates, spread over all.
_CHAINS, _DRAWS, _COORDINATES = 64, 1000, 64
# A draw shall count for a third of an independent one; one window's draws change its reach by a factor of four at most,
# and fewer draws than these not at all.
_WANTED, _MOST_CHANGE, _FEWEST = 3.0, 4.0, 20


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
    """Learns, from the draws of a window, how far those of the next shall go.

    Args:
        learns: what makes them go further.
        position: where the chains are, `(chains, dim)`.
        num_draws: that each chain makes in the window, if no fewer.
        num_steps: steps that make a draw.
    """

    def __init__(self, learns: Learns, position: Tensor, num_draws: int, num_steps: int) -> None:
        chains, dim = position.shape
        self._furthest = _FURTHEST[learns]
        self._coordinates = torch.linspace(0, dim - 1, min(dim, _COORDINATES), device=position.device).long()
        self.draws = Recorder(min(chains, _CHAINS), min(num_draws, _DRAWS), position.device, num_steps)

    def record(self, done: Tensor, whitened: Tensor, metric: Metric) -> None:
        """Take in the steps of a block that are `done`, `(ticks, chains)`, with positions `(ticks, chains, dim)`."""
        chains = slice(len(self.draws.transitions))
        some = {"position": whitened[:, chains]}
        self.draws.record(
            done[:, chains], some, {"position": lambda rows: metric.to_position(rows)[..., self._coordinates]}
        )

    def renewed(self, reach: Tensor) -> Tensor:
        """How many times as far as usual a draw shall go, `()`, where in this window it was `reach`, `()`."""
        draws = self.draws.draws()
        if not draws or draws["position"].shape[1] < _FEWEST:
            return reach
        change = autocorrelation_time(draws["position"]).max() / _WANTED
        return (reach * change.to(reach).clamp(1 / _MOST_CHANGE, _MOST_CHANGE)).clamp(1, self._furthest)

    def state_dict(self) -> dict[str, Any]:
        """The draws so far."""
        return self.draws.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        self.draws.load_state_dict(state)
