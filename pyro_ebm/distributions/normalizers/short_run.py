"""`ShortRun`: draws by chains that are not run to their end; no density."""

from __future__ import annotations

import torch
from torch import Generator, Size, Tensor

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.errors import NoDensityError
from pyro_ebm._core.randomness import seeded, seeded_generator
from pyro_ebm.distributions.normalizers.start import reference_of
from pyro_ebm.mcmc.moves import EnergyDensity, move_for

# Chains that find the step size for the others, and for how long.
_PILOTS, _PILOT_MOVES = 100, 50


class ShortRun:
    """Draws by short chains from the base: a generator of its own, which has no density.

    An energy that was trained with negatives of K steps from the base (`ContrastiveDivergence(start="base")`) is one
    whose chains pass by the data after K steps; where they would go in the end, `exp(-E) / Z`, may be elsewhere. So
    `distribution.sample()` is what was trained, and `distribution.log_prob` would be something else: it raises.

    Args:
        num_steps: K, of Langevin dynamics with the Metropolis correction at temperature one, or of Gibbs.
        generator: of all random numbers; by default one of its own, seeded from torch's.

    References:
        Nijkamp, Hill, Zhu and Wu 2019, Learning non-convergent non-persistent short-run MCMC toward energy-based model.

    >>> import torch, pyro.distributions as dist
    >>> from pyro_ebm import DoubleWell, EnergyDistribution
    >>> base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    >>> p = EnergyDistribution(DoubleWell(dim=2), base, log_normalizer=ShortRun(20))
    >>> p.sample((5,)).shape
    torch.Size([5, 2])
    """

    def __init__(self, num_steps: int = 100, *, generator: Generator | None = None) -> None:
        if num_steps < 1:
            raise ValueError(f"ShortRun: got num_steps={num_steps}, expected at least 1.")
        self.num_steps, self._generator = num_steps, generator

    def log_normalizer(self, distribution: EnergyDensity, /) -> Tensor:
        """There is none.

        Raises:
            NoDensityError: always.
        """
        raise NoDensityError(
            "ShortRun: got a call for a log density, expected one for draws alone: what short chains draw has no "
            "density that is known, and exp(-E) / Z is another. Use PersistentWalkers for a model with a likelihood; "
            'train for short chains by the objective ContrastiveDivergence(start="base").'
        )

    def draw(self, distribution: EnergyDensity, sample_shape: Size) -> Tensor:
        """Where chains from draws of the base are after K steps, `(*sample, *batch, *event)`."""
        if self._generator is None:
            self._generator = seeded_generator(like_of(distribution.energy).device)
        generator, count = self._generator, sample_shape.numel()
        with torch.no_grad():
            with seeded(generator, generator.device):
                value = reference_of(distribution).sample(Size([count + _PILOTS]))
            move, log_density = move_for(distribution), distribution.unnormalized_log_prob
            pilots, tuning = value[count:], move.tune(value)
            for _ in range(_PILOT_MOVES):
                moved = move(log_density, pilots, tuning, generator, num_steps=1)
                pilots, tuning = moved.value, moved.tuning
            moved = move(log_density, value[:count], tuning, generator, num_steps=self.num_steps)
            return moved.value.reshape(sample_shape + distribution.batch_shape + distribution.event_shape)
