"""Chains that the warm-up has left behind: in a mode, or a place, that holds next to nothing of the mass.

The mass that a chain's draws speak for follows from themselves: restricted to the region that the chain moves in,
`log ∫ exp(lp(x)) dx = E[lp] + H`, with H the entropy of the draws, and H is at most that of a Gaussian with their
variances, `Σ log sd_i + const`. Where this bound is far below the others', the chain would have to be there for next to
none of its draws. A chain that was on its way, and has come to where others are, is not left behind: its last draw
counts where it is higher than their mean.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# A chain is left behind by a factor of exp(20) in mass, or by ten times the usual spread between chains; with fewer
# draws, or beside fewer chains, it is not judged.
_LEAST_NATS, _SPREADS = 20.0, 10.0
_LEAST_DRAWS, _LEAST_CHAINS = 5, 4


class ChainMass(NamedTuple):
    """Running moments of the draws of each chain.

    Attributes:
        num_draws: draws of each chain, `(chains,)`.
        lp: the mean of their log densities, `(chains,)`.
        last_lp: that of the last of them, `(chains,)`.
        mean: their mean, `(chains, dim)`.
        scatter: the sum of squared deviations, `(chains, dim)`.

    References:
        Chan, Golub and LeVeque 1983, Algorithms for computing the sample variance.
    """

    num_draws: Tensor
    lp: Tensor
    last_lp: Tensor
    mean: Tensor
    scatter: Tensor

    @classmethod
    def start(cls, position: Tensor) -> ChainMass:
        """No draws yet, of chains like `position` `(chains, dim)`."""
        nothing = torch.zeros_like(position)
        return cls(nothing[:, 0], nothing[:, 0], nothing[:, 0], nothing, nothing)

    def update(self, done: Tensor, lp: Tensor, position: Tensor) -> ChainMass:
        """Take in the draws `(ticks, chains, dim)` of a block, where `done` `(ticks, chains)`."""
        new = done.sum(0).to(lp.dtype)
        total = self.num_draws + new
        some = new.clamp(min=1)
        taken = done.unsqueeze(-1)
        new_lp = torch.where(done, lp, 0).sum(0) / some
        new_mean = torch.where(taken, position, 0).sum(0) / some.unsqueeze(-1)
        new_scatter = torch.where(taken, position - new_mean, 0).square().sum(0)
        share = new / total.clamp(min=1)
        shift = new_mean - self.mean
        last = done.shape[0] - 1 - done.flip(0).byte().argmax(0, keepdim=True)
        correction = (self.num_draws * share).unsqueeze(-1) * shift.square()
        return ChainMass(
            total,
            self.lp + share * (new_lp - self.lp),
            torch.where(new > 0, lp.gather(0, last).squeeze(0), self.last_lp),
            self.mean + share.unsqueeze(-1) * shift,
            self.scatter + new_scatter + correction,
        )

    def left_behind(self) -> Tensor:
        """Which chains are, `(chains,)`."""
        judged = self.num_draws >= _LEAST_DRAWS
        variance = self.scatter / self.num_draws.clamp(min=1).unsqueeze(-1)
        lp = torch.fmax(self.lp, self.last_lp)
        log_mass = torch.nan_to_num(lp + 0.5 * variance.log().sum(-1), -torch.inf, torch.inf, -torch.inf)
        if int(judged.sum()) < _LEAST_CHAINS:
            return torch.zeros_like(judged)
        known = log_mass[judged]
        median = known.sort().values[len(known) // 2]  # of two halves, the one with more mass is right
        spread = (known - median).abs().median()
        return judged & (log_mass < median - (_SPREADS * spread).clamp(min=_LEAST_NATS))
