"""`Renewal`: walkers that start anew, again and again, while an energy is trained."""

from __future__ import annotations

import math

from pyro_ebm.distributions import EnergyDistribution, PersistentWalkers
from pyro_ebm.objectives import Training

# At the earliest after this share of the training, for the density has its shape only then.
_FROM = 0.25
_STEPS = 50
# A stage of annealing costs as much as one or two steps of training; with so many for each, it is a fifth of the time.
_STEPS_PER_STAGE = 8


class Renewal:
    """A callback of `Training`: lets walkers start anew every so often, where annealing can.

    Walkers that have driven the gradient for long give modes that are far apart shares that are a little wrong, which
    learning then makes up for; new ones, annealed from the base, are wrong in another way each time, and that averages
    out. From a quarter of the training on they start anew every 50 steps, or more seldom where annealing takes long.

    >>> import torch
    >>> from torch import nn
    >>> from pyro_ebm import NegativeLogLikelihood, tilted
    >>> net = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1))
    >>> data, walkers = torch.randn(500, 2), PersistentWalkers(100)
    >>> training = Training(tilted(net, data, log_normalizer=walkers), NegativeLogLikelihood(), data, num_steps=100)
    >>> training.run(callbacks=[Renewal()], progress_bar=False)
    """

    def __call__(self, training: Training) -> None:
        """Renew the walkers of the training's distribution, if it is time to."""
        distribution = training.distribution
        if not isinstance(distribution, EnergyDistribution):
            return
        walkers = distribution.log_normalizer
        if not isinstance(walkers, PersistentWalkers) or not walkers.is_started:
            return
        every = _STEPS * math.ceil(max(1, walkers.num_stages * _STEPS_PER_STAGE) / _STEPS)
        if training.num_done >= _FROM * training.num_steps and training.num_done % every == 0:
            walkers.renew(distribution)
