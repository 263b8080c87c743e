"""`fit`: learn an energy from data in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import Generator, Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.optim import Optimizer

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.errors import InitializationError
from pyro_ebm._core.estimate import Estimate
from pyro_ebm._core.randomness import seeded
from pyro_ebm.diagnostics.plots import plot_history
from pyro_ebm.distributions import EnergyDistribution, PersistentWalkers
from pyro_ebm.distributions.tilted import tilted
from pyro_ebm.energies import Energy
from pyro_ebm.infer.renewal import Renewal
from pyro_ebm.objectives import NegativeLogLikelihood, Training
from pyro_ebm.objectives.batches import Data, batches_of
from pyro_ebm.objectives.training import Callback, Loss

# A base is fitted to at most so many data.
_FITTED_TO = 10_000
# The gradient's noise is what limits learning: most walkers drive it.
_DRIVERS_TO_TRACKER = 8
# What the likelihood by walkers is trained with.
_LIKELIHOOD: TrainingOptions = {"num_steps": 3000, "learning_rate": 1e-2, "averaged_share": 0.25}
# Where annealing fails, walkers follow the parameters to their averages in so many parts, and move on for so long.
_APPROACH, _SETTLE = 10, 50


class TrainingOptions(TypedDict, total=False):
    """Options of `Training`."""

    num_steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    max_gradient_norm: float
    averaged_share: float
    optimizer: Callable[..., Optimizer]


@dataclass(frozen=True)
class Fit:
    """What `fit` returns.

    Attributes:
        distribution: with the averaged parameters.
        training: the loop as it ended.
    """

    distribution: EnergyDistribution
    training: Training

    @property
    def history(self) -> dict[str, list[float]]:
        """What was reported in each step, by name."""
        return self.training.history

    @property
    def log_partition(self) -> Estimate | None:
        """Log Z in nats by the walkers, with its standard error; `None` if none have followed the training.

        Its `ess` is that of the walkers which drive the gradient.
        """
        normalizer = self.distribution.log_normalizer
        if not isinstance(normalizer, PersistentWalkers) or not normalizer.is_started:
            return None
        ess = normalizer.num_walkers * normalizer.ess
        return Estimate(normalizer.value, normalizer.standard_error, ess)

    def plot(self) -> Any:
        """Draw the history: the axes of `plot_history`."""
        return plot_history(self.history)


def fit(
    model: nn.Module | Energy | EnergyDistribution,
    data: Data,
    *,
    objective: Loss | None = None,
    support: Constraint = constraints.real,
    num_walkers: int = 2000,
    callbacks: Sequence[Callback] = (),
    save_to: str | os.PathLike[str] | None = None,
    save_every: int = 1000,
    resume: bool = False,
    progress_bar: bool = True,
    generator: Generator | None = None,
    **options: Unpack[TrainingOptions],
) -> Fit:
    """Learn an energy from data.

    A network becomes `tilted(network, data)`: standardised inputs, a base fitted to the data, and a tilt that starts
    at zero. It is then trained by a `Training`, and log Z found anew at the averaged parameters. All of it is public,
    so that this does the same:

        walkers = PersistentWalkers(2000, num_steps=1, num_trackers=250)
        distribution = tilted(network, data, log_normalizer=walkers)
        training = Training(
            distribution, NegativeLogLikelihood(), data, num_steps=3000, learning_rate=1e-2, averaged_share=0.25
        )
        renewal = Renewal()
        for _ in range(training.num_steps):
            training.step()
            renewal(training)
        training.use_average()
        walkers.restart(distribution, num_trackers=2000)

    Args:
        model: a network `(N, *event)` to `(N,)` or `(N, 1)`; or an energy or a distribution, which is trained as it is
            (an energy without a base, by walkers). It is trained in place.
        data: a tensor `(N, *event)`, a torch `Dataset` or `DataLoader`; or of tuples, whose first part are the events,
            for an objective that takes them.
        objective: the loss; by default the likelihood.
        support: of a network's events: real numbers, booleans, spins or integers.
        num_walkers: that drive the gradient of log Z, where the model is not a distribution; an eighth as many more
            track it. More of them, or fewer steps, if the model's modes do not get their shares.
        callbacks: each is called with the `Training` after every step; one that returns `True` ends it.
        save_to: a file for the state of the training, written every `save_every` steps.
        save_every: between savings.
        resume: whether to go on from the state in `save_to`, if there is one: bit for bit as if uninterrupted.
        progress_bar: whether to show one.
        generator: seeds all that is random; torch's global one by default.
        options: of `Training`: `num_steps`, `batch_size`, `learning_rate`, and so on. For the likelihood there are
            3,000 steps by default, of which the last quarter is averaged over, and a learning rate of 0.01, which a
            large network may need smaller.

    Returns:
        The distribution, with its history.

    Raises:
        FileExistsError: if there is a state in `save_to`, and it is not to be resumed.
        EnergySupportError: if there is no base for a network on the support.

    >>> net = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1))
    >>> learned = fit(net, torch.randn(500, 2), num_steps=20, num_walkers=100, progress_bar=False)
    >>> learned.distribution.log_prob(torch.zeros(3, 2)).shape, learned.log_partition.value.shape
    (torch.Size([3]), torch.Size([]))
    """
    if save_to is not None and Path(save_to).exists() and not resume:
        raise FileExistsError(
            f'fit: got save_to="{save_to}", which exists, expected a new file. Give resume=True to go on from it, or '
            "remove it."
        )
    if not isinstance(model, (nn.Module, EnergyDistribution)):
        raise TypeError(
            f"fit: got {type(model).__name__}, expected a network, an Energy or an EnergyDistribution. Wrap a callable "
            "with energy(fn, event_shape=...)."
        )
    distribution = _distribution(model, data, support, num_walkers)
    if objective is None:
        objective, options = NegativeLogLikelihood(), {**_LIKELIHOOD, **options}
    training = Training(distribution, objective, data, generator=generator, **options)
    if save_to is not None and resume and Path(save_to).exists():
        training.load(save_to)
    training.run(callbacks=[Renewal(), *callbacks], save_to=save_to, save_every=save_every, progress_bar=progress_bar)
    with seeded(Generator().manual_seed(0), like_of(distribution.energy).device):  # of a network with randomness
        _settle(distribution, training)
    return Fit(distribution, training)


def _distribution(model: Any, data: Data, support: Constraint, num_walkers: int) -> EnergyDistribution:
    if isinstance(model, EnergyDistribution):
        return model
    discrete = (model.support if isinstance(model, Energy) else support).is_discrete
    walkers = PersistentWalkers(
        num_walkers,
        num_trackers=max(4, num_walkers // _DRIVERS_TO_TRACKER),
        num_steps=None if discrete else 1,  # one of Langevin: more walkers do more than more steps
    )
    if isinstance(model, Energy):
        return EnergyDistribution(model, log_normalizer=walkers)
    with seeded(Generator().manual_seed(0), torch.device("cpu")):  # which data a base is fitted to hardly matters
        first = batches_of(data, 1).first(_FITTED_TO)
    events: Tensor = first if isinstance(first, Tensor) else first[0]
    return tilted(model, events, support=support, log_normalizer=walkers)


def _settle(distribution: EnergyDistribution, training: Training) -> None:
    """Take the parameters to their averages, and walkers there: anew, for the least error of log Z."""
    walkers = distribution.log_normalizer
    if not isinstance(walkers, PersistentWalkers) or not walkers.is_started:
        training.use_average()
        return
    for part in range(_APPROACH):
        training.use_average(1 / (_APPROACH - part))
        walkers.refresh(distribution, num_steps=2)
    try:
        walkers.restart(distribution, num_trackers=walkers.num_walkers)
    except InitializationError:
        walkers.refresh(distribution, num_steps=_SETTLE)
