"""The samplers that follow trajectories, bound to their settings for a run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm.mcmc import adjusted_mclmc, chees, hmc, mclmc, nuts
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.chees import LengthAdaptation
from pyro_ebm.mcmc.protocols import Adaptation, Stage
from pyro_ebm.mcmc.reach import Learns
from pyro_ebm.mcmc.step_size import DualAveraging

# The most steps of a trajectory of given length while chains are on their way to the bulk: there steps may be so short
# that it has thousands.
_STEPS_ON_THE_WAY = 64.0


def nuts_algorithm(*, max_tree_depth: int = 10, target_accept_prob: float = 0.8) -> Algorithm:
    """The no-U-turn sampler: see `nuts`."""
    return Algorithm(
        name="NUTS",
        init=nuts.init,
        draw_randomness=nuts.draw_randomness,
        step=nuts.step,
        adaptation=DualAveraging.start,
        parameters=partial(_nuts_parameters, max_tree_depth),
        target_accept_prob=target_accept_prob,
    )


def _nuts_parameters(max_tree_depth: int, adaptation: Adaptation, _: Stage) -> nuts.Parameters:
    return nuts.Parameters(adaptation.step_sizes, max_tree_depth)


def hmc_algorithm(
    *,
    trajectory_length: float,
    num_steps: int | None = None,
    target_accept_prob: float = 0.8,
    learns: Learns | None = None,
) -> Algorithm:
    """Hamiltonian Monte Carlo: see `hmc`."""
    return Algorithm(
        name="HMC",
        init=hmc.init,
        draw_randomness=hmc.draw_randomness,
        step=hmc.step,
        adaptation=DualAveraging.start,
        parameters=partial(_hmc_parameters, trajectory_length, num_steps or 0),
        target_accept_prob=target_accept_prob,
        learns=learns,
    )


def _hmc_parameters(trajectory_length: float, num_steps: int, adaptation: Adaptation, stage: Stage) -> hmc.Parameters:
    steps, length = torch.full((), num_steps, device=stage.reach.device), trajectory_length * stage.reach
    short = torch.minimum(length, 0.5 * _STEPS_ON_THE_WAY * adaptation.step_sizes)
    return hmc.Parameters(adaptation.step_sizes, torch.where(stage.approaching, short, length), steps)


def chees_algorithm(*, target_accept_prob: float = 0.8) -> Algorithm:
    """Hamiltonian Monte Carlo with a trajectory length learned across chains: see `chees`."""
    return Algorithm(
        name="ChEES-HMC",
        init=_FromSeed(chees.init),
        draw_randomness=chees.draw_seed,
        step=_FromSeed(chees.step),
        adaptation=LengthAdaptation.start,
        parameters=_chees_parameters,
        target_accept_prob=target_accept_prob,
        learns="trajectory_length",
        learns_below=chees.MANY_CHAINS,
    )


@dataclass(frozen=True)
class _FromSeed:
    """The `init` or `step` of ChEES-HMC, with a seed in the place of its random numbers."""

    function: Callable[..., Any]

    def __call__(self, log_density: LogDensity, chains: Any, *rest: Any) -> Any:
        position = chains if isinstance(chains, Tensor) else chains.position
        made = (chees.randomness_of(each, position) if isinstance(each, chees.Seed) else each for each in rest)
        return self.function(log_density, chains, *made)


def _chees_parameters(adaptation: LengthAdaptation, stage: Stage) -> chees.Parameters:
    return chees.Parameters(adaptation.step_sizes, adaptation.length(stage.reach))


def mclmc_algorithm(*, decoherence_length: float, target_accept_prob: float) -> Algorithm:
    """Microcanonical Langevin Monte Carlo, without correction: see `mclmc`.

    Its lengths are in units of `√dim`, the size of a standard normal: so step sizes are those of other samplers.
    """
    return Algorithm(
        name="MCLMC",
        init=_BySize(mclmc.init),
        draw_randomness=mclmc.draw_randomness,
        step=_BySize(mclmc.step),
        adaptation=DualAveraging.start,
        parameters=partial(_mclmc_parameters, decoherence_length),
        target_accept_prob=target_accept_prob,
        usual_ticks=1.0,
    )


def _mclmc_parameters(decoherence_length: float, adaptation: Adaptation, _: Stage) -> mclmc.Parameters:
    return mclmc.Parameters(adaptation.step_sizes, adaptation.step_sizes.new_full((), decoherence_length))


def adjusted_mclmc_algorithm(
    *, trajectory_length: float, target_accept_prob: float, learns: Learns | None = None
) -> Algorithm:
    """Metropolis-adjusted microcanonical dynamics: see `adjusted_mclmc`; lengths as in `mclmc_algorithm`."""
    return Algorithm(
        name="Adjusted MCLMC",
        init=_BySize(adjusted_mclmc.init),
        draw_randomness=adjusted_mclmc.draw_randomness,
        step=_BySize(adjusted_mclmc.step),
        adaptation=DualAveraging.start,
        parameters=partial(_adjusted_mclmc_parameters, trajectory_length),
        target_accept_prob=target_accept_prob,
        learns=learns,
        sticks=True,
    )


def _adjusted_mclmc_parameters(
    trajectory_length: float, adaptation: Adaptation, stage: Stage
) -> adjusted_mclmc.Parameters:
    theirs = _hmc_parameters(trajectory_length, 0, adaptation, stage)
    return adjusted_mclmc.Parameters(**theirs._asdict(), newtonian=stage.approaching)


@dataclass(frozen=True)
class _BySize:
    """A microcanonical sampler's `init` or `step`, with the lengths among its parameters in units of `√dim`."""

    function: Callable[..., Any]

    def __call__(self, log_density: LogDensity, chains: Any, *rest: Any) -> Any:
        position = chains if isinstance(chains, Tensor) else chains.position
        return self.function(log_density, chains, *(self._scaled(each, position.shape[-1]) for each in rest))

    def _scaled(self, argument: Any, dim: int) -> Any:
        if isinstance(argument, mclmc.Parameters):
            return mclmc.Parameters(*(length * dim**0.5 for length in argument))
        if isinstance(argument, adjusted_mclmc.Parameters):
            step_size, length = argument.step_size * dim**0.5, argument.trajectory_length * dim**0.5
            return argument._replace(step_size=step_size, trajectory_length=length)
        return argument
