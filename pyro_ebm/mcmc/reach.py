"""How far a draw goes from the one before it: far enough to forget most of it.

So many steps of a local sampler, or a trajectory so long, suit a density that its metric makes about normal. Where a
window of the warm-up finds that draws remember for longer, those of the next go further, by what is missing.

References:
    Geyer 1992, Practical Markov chain Monte Carlo.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_ebm.mcmc.metric import Metric
from pyro_ebm.mcmc.recorder import Recorder

Learns = Literal["num_steps", "trajectory_length"]
# So many times as far as usual a draw may go: a thousand steps or so, as in a full tree of NUTS.
_FURTHEST: dict[Learns, float] = {"num_steps": 32.0, "trajectory_length": 8.0}
# What is looked at: so many chains and so many coordinates, spread over all, after each quarter of a draw's steps.
_CHAINS, _COORDINATES, _FINEST = 64, 64, 4
# So many draws of each chain tell enough, at first; then twice as many, and so on up to the most. Fewer than the fewest
# tell nothing.
_FIRST_STRETCH, _LONGEST_STRETCH, _FEWEST = 64, 256, 20
# So many draws shall be worth an independent one; a draw goes at most so many times as far as before.
_WANTED = 2.5
_MOST_GROWTH: dict[Learns, float] = {"num_steps": 4.0, "trajectory_length": 2.0}
# Longer trajectories whose steps are worth so much less are too long; more where fewer chains than these tell, for one
# bad stretch would hold back a whole window, but never twice as much: that is what growth costs that is of no use.
_DEARER, _MANY_CHAINS, _MOST_DOUBT = 0.2, 16, 4.0


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
    moved = (draws - draws[:, :1]).double()  # exactly nothing, where a chain stays
    centred = moved - moved.mean(1, keepdim=True)
    power = torch.fft.rfft(centred, n=2 * number, dim=1).abs().square()
    covariances = torch.fft.irfft(power, n=2 * number, dim=1)[:, :number].mean(0)
    correlations = covariances / covariances[0]
    pairs = correlations[: number // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    times = 2 * pairs.cummin(0).values.clamp(min=0).sum(0) - 1
    return torch.where(covariances[0] > 0, times, 1)


class Reach:
    """Learns, from stretches of the warm-up, how far a draw shall go.

    More steps of a local sampler never waste any. Longer trajectories may: so in each window they start from what is
    usual, grow as long as their steps stay worth as much, and go back by one where these do not.

    Args:
        learns: what makes draws go further; if nothing, they go as far as usual.
        usual_steps: the steps that make a draw, usually.
        position: where the chains are, `(chains, dim)`.

    Attributes:
        value: how many times as far as usual a draw goes, `()`.
        num_steps: the steps that make a draw.
    """

    def __init__(self, learns: Learns | None, usual_steps: int, position: Tensor) -> None:
        self._learns, self._usual_steps, self._shape = learns, usual_steps, position.shape
        self.value, self.num_steps = position.new_ones(()), usual_steps
        self.begin_window()

    def begin_window(self) -> None:
        """Start anew, in a window that will learn: the metric has changed, and chains may have been moved."""
        if self._learns == "trajectory_length":
            self.value = torch.ones_like(self.value)
        self._furthest = _FURTHEST[self._learns] if self._learns is not None else 1.0
        self._best, self._price = 1.0, math.inf
        self._begin_stretch(_FIRST_STRETCH)

    def _begin_stretch(self, length: int) -> None:
        self._stretch, chains = length, min(self._shape[0], _CHAINS)
        self._draws = Recorder(chains, int(length * self._per_draw), self.value.device, self._interval)

    @property
    def _interval(self) -> int:
        """Steps between two draws that are looked at."""
        return math.ceil(self.num_steps / _FINEST)

    @property
    def _per_draw(self) -> float:
        """How many are looked at for each draw."""
        return self.num_steps / self._interval

    @property
    def parts(self) -> list[object]:
        """This and its recorder: their attributes are what changes."""
        return [self, self._draws]

    def record(self, done: Tensor, whitened: Tensor, metric: Metric) -> None:
        """Take in the steps of a block that are `done`, `(ticks, chains)`, with positions `(ticks, chains, dim)`."""
        if self._learns is None:
            return
        chains = slice(len(self._draws.transitions))
        some = torch.linspace(0, self._shape[1] - 1, min(self._shape[1], _COORDINATES), device=done.device).long()
        finish = {"position": lambda rows: metric.to_position(rows)[..., some]}
        self._draws.record(done[:, chains], {"position": whitened[:, chains]}, finish)

    def renew(self, *, window_ends: bool = False) -> None:
        """Between blocks, where there are as many draws as tell enough, or the window ends: let the next go so far.

        Trajectories do not grow where the window ends: no stretch is left to see whether that pays.
        """
        if self._learns is None or not (window_ends or int(self._draws.counts.min()) >= self._draws.num_draws):
            return
        draws = self._draws.draws()
        if draws and draws["position"].shape[1] >= _FEWEST * self._per_draw:
            found = self._next(self._learns, draws["position"])
            stays = window_ends and self._learns == "trajectory_length"
            self.value = torch.full_like(self.value, min(found, float(self.value)) if stays else found)
        if self._learns == "num_steps":
            self.num_steps = max(1, round(self._usual_steps * float(self.value)))
        self._begin_stretch(min(2 * self._stretch, _LONGEST_STRETCH))

    def _next(self, learns: Learns, draws: Tensor) -> float:
        """How many times as far as usual the draws that follow these go, `(chains, draws, dim)`."""
        value, memory = float(self.value), float(autocorrelation_time(draws).max()) / self._per_draw
        if learns == "trajectory_length":
            # Of pieces of one length: what is seen of a long memory grows with the time for which it is looked at.
            pieces = draws.unfold(1, min(draws.shape[1], _FIRST_STRETCH), _FIRST_STRETCH).flatten(0, 1).mT
            price = value * float(autocorrelation_time(pieces).max())
            doubt = min(max(1.0, _MANY_CHAINS / self._shape[0]), _MOST_DOUBT)
            if value > self._best and price > (1 + doubt * _DEARER) * self._price:
                self._furthest = self._best
            elif price < self._price or value > self._best:
                self._best, self._price = value, price
        return min(max(1.0, value * min(memory / _WANTED, _MOST_GROWTH[learns])), self._furthest)

    # -- saving ------------------------------------------------------------------------------------------------------

    _SAVED = ("value", "num_steps", "_stretch", "_furthest", "_best", "_price")

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""
        return {**{name.lstrip("_"): getattr(self, name) for name in self._SAVED}, "draws": self._draws.state_dict()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved."""
        for name in self._SAVED:
            value = saved[name.lstrip("_")]
            setattr(self, name, value.to(self.value.device) if isinstance(value, Tensor) else value)
        self._begin_stretch(self._stretch)
        self._draws.load_state_dict(saved["draws"])
