"""Draws of families of energies, from noise down to data: by annealed Langevin dynamics, and by recovery."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from tqdm.auto import tqdm

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.errors import SamplingWarning
from pyro_ebm._core.warn import warn
from pyro_ebm.energies import Energy, TimeConditional
from pyro_ebm.energies.time_conditional import levels_for
from pyro_ebm.mcmc.annealed_langevin import first_log_step, visit

# Chains that accept less than this on average hardly move.
_LOW_ACCEPTANCE = 0.2


def sample_annealed(
    family: TimeConditional,
    levels: Tensor,
    num_samples: int,
    *,
    num_steps: int = 20,
    metropolis: bool = True,
    generator: Generator | None = None,
    disable_progbar: bool = False,
) -> Tensor:
    """Draw by annealed Langevin dynamics: chains visit each noise level in turn, from the highest to the lowest.

    At each level they take Langevin steps `x ← x - ε∇E(x, σ) + √(2ε) ξ`, with ε in proportion to σ². By default each
    is accepted or rejected (MALA), and ε follows the acceptance; so every level's density is left as it is, **of sums
    of families too**, which a reverse diffusion would sample wrongly. The draws are those of the lowest level: of the
    data smoothed by its σ. But the masses of far modes are those of the level at which they part. Of smoothed data
    these are right at every level; of a sum they are near the product's, not equal to them, however many the steps.

    Args:
        family: the energies.
        levels: falling, `(L,)`: see `noise_levels`. At the first, chains start from `N(0, σ²)`.
        num_samples: the number of chains, each of which gives a draw.
        num_steps: Langevin steps at each level.
        metropolis: `False` for plain Langevin steps, of fixed ε = σ²/10, biased.
        generator: of the random numbers; torch's global one by default.
        disable_progbar: whether no progress is shown.

    Returns:
        Draws of the lowest level, `(num_samples, *batch, *event)`.

    Raises:
        EnergySupportError: if the family is not over real numbers.
        ValueError: if the levels do not fall, or a number is below 1.

    Warns:
        SamplingWarning: if next to nothing was accepted at some level.

    References:
        Song and Ermon 2019, Generative modeling by estimating gradients of the data distribution.
        Du, Durkan, Strudel, Tenenbaum, Dieleman, Fergus, Sohl-Dickstein, Doucet and Grathwohl 2023, Reduce, reuse,
        recycle: compositional generation with energy-based diffusion models and MCMC.

    >>> from pyro_ebm import QuadraticEnergy, noise_levels, time_conditional
    >>> family = time_conditional(lambda s: QuadraticEnergy(torch.eye(2) / (4 + s**2)), (2,))
    >>> x = sample_annealed(family, noise_levels(0.1, 20.0, 10), 1000, disable_progbar=True)
    >>> bool(abs(x.var() - 4) < 0.5)
    True
    """
    levels, value = _start(family, levels, num_samples, num_steps, generator, "sample_annealed")
    plan = [_Level(sigma, sigma.square(), None) for sigma in levels.unbind()]
    down = _Descent("sample_annealed", num_steps, metropolis, generator, disable_progbar)
    return down(family, plan, value)


def sample_recovery(
    family: TimeConditional,
    levels: Tensor,
    num_samples: int,
    *,
    num_steps: int = 30,
    generator: Generator | None = None,
    disable_progbar: bool = False,
) -> Tensor:
    """Draw from the top level down, each level given the one above: how a `RecoveryLikelihood` is sampled.

    From a draw x̃ of a level, `p(x | x̃) ∝ exp(-E(x, σ) - |x - x̃|² / 2 s²)` is one of the next, with `s²` the variance
    between the two; MALA chains that start at x̃ sample it. It has one mode if the levels are close.

    Args:
        family: the energies; only those below the highest level are used.
        levels: falling, `(L,)`: those of the training. Chains start from `N(0, σ²)` at the first.
        num_samples: the number of draws.
        num_steps: MALA steps at each level.
        generator: of the random numbers; torch's global one by default.
        disable_progbar: whether no progress is shown.

    Returns:
        Draws of the lowest level, `(num_samples, *batch, *event)`.

    Raises:
        EnergySupportError: if the family is not over real numbers.
        ValueError: if the levels do not fall, or a number is below 1.

    Warns:
        SamplingWarning: if next to nothing was accepted at some level.

    References:
        Gao, Song, Poole, Wu and Kingma 2021, Learning energy-based models by diffusion recovery likelihood.

    >>> from pyro_ebm import QuadraticEnergy, noise_levels, time_conditional
    >>> family = time_conditional(lambda s: QuadraticEnergy(torch.eye(2) / (4 + s**2)), (2,))
    >>> x = sample_recovery(family, noise_levels(0.1, 20.0, 10), 1000, disable_progbar=True)
    >>> bool(abs(x.var() - 4) < 0.5)
    True
    """
    levels, value = _start(family, levels, num_samples, num_steps, generator, "sample_recovery")
    pairs = list(pairwise(levels.square().unbind()))
    plan = [_Level(below.sqrt(), below * (above - below) / above, above - below) for above, below in pairs]
    down = _Descent("sample_recovery", num_steps, True, generator, disable_progbar)
    return down(family, plan, value)


class _Level(NamedTuple):
    """What is visited on the way down.

    Attributes:
        sigma: the level.
        variance: what it leaves a chain.
        between: the variance between it and the draw that the chains come with, if that holds them.
    """

    sigma: Tensor
    variance: Tensor
    between: Tensor | None


class _Descent(NamedTuple):
    """Visits levels one after another.

    Attributes:
        what: who asks.
        num_steps: at each level.
        metropolis: whether steps are accepted or rejected.
        generator: of the random numbers.
        disable_progbar: whether no progress is shown.
    """

    what: str
    num_steps: int
    metropolis: bool
    generator: Generator | None
    disable_progbar: bool

    def __call__(self, family: TimeConditional, plan: Sequence[_Level], value: Tensor) -> Tensor:
        """Where chains from `value`, `(num_samples, *batch, *event)`, are at the end of the plan."""
        event_dim = len(family.event_shape)
        log_step = first_log_step(value, event_dim, metropolis=self.metropolis)
        low = []
        for level in tqdm(plan, desc="Levels", disable=self.disable_progbar):
            found = visit(
                _log_density(family.at(level.sigma)),
                value,
                level.variance,
                log_step,
                event_dim=event_dim,
                num_steps=self.num_steps,
                metropolis=self.metropolis,
                anchor=None if level.between is None else (value, level.between),
                generator=self.generator,
            )
            value, log_step = found.value, found.log_step
            if float(found.acceptance_rate) < _LOW_ACCEPTANCE:
                low.append(f"{float(level.sigma):.3g}")
        if low:
            warn(
                f"{self.what}: got a mean acceptance below {_LOW_ACCEPTANCE} at the noise levels {', '.join(low)}: the "
                "energy is far more curved there than 1/σ². Take more steps, or levels closer together; look at the "
                "energy.",
                SamplingWarning,
            )
        return value


def _start(
    family: TimeConditional, levels: Tensor, num_samples: int, num_steps: int, generator: Generator | None, what: str
) -> tuple[Tensor, Tensor]:
    """Checked levels, and draws of the highest one, `(num_samples, *batch, *event)`."""
    if num_samples < 1 or num_steps < 1:
        raise ValueError(f"{what}: got num_samples={num_samples} and num_steps={num_steps}, expected at least 1.")
    levels = levels_for(family, levels, what)
    highest = family.at(levels[0])
    like = like_of(highest)
    shape = (num_samples, *highest.batch_shape, *family.event_shape)
    noise = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
    return levels.to(like), levels[0].to(like) * noise


def _log_density(energy: Energy) -> Callable[[Tensor], Tensor]:
    return lambda x: -energy(x)
