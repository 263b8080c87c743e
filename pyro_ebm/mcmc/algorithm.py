"""What a run asks of a sampler: its module's functions, bound to their settings."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm.mcmc import (
    adjusted_mclmc,
    barker,
    changes,
    chees,
    discrete_langevin,
    elliptical_slice,
    exchange,
    gibbs,
    gibbs_with_gradients,
    hmc,
    langevin,
    mclmc,
    mixed,
    nuts,
    random_walk,
    sgld,
    swendsen_wang,
    underdamped,
)
from pyro_ebm.mcmc.chees import LengthAdaptation
from pyro_ebm.mcmc.protocols import Adaptation, Info, Stage, State
from pyro_ebm.mcmc.reach import Learns
from pyro_ebm.mcmc.step_size import DualAveraging, FixedStepSize

# The least friction of underdamped dynamics in the warm-up, for each step.
_WARMUP_FRICTION = 0.3


@dataclass(frozen=True)
class Algorithm:
    """A sampler with its settings.

    Attributes:
        name: what it is called in results.
        init: `(log_density, position, parameters, randomness) -> State`.
        draw_randomness: `(position, generator) -> Randomness`, for positions `(*ticks, chains, dim)`.
        step: `(log_density, state, randomness, parameters) -> (State, Info)`.
        adaptation: makes what adapts its parameters, of a first step size, `()`, and the number of chains.
        parameters: makes parameters of what adapts, and of where the run is.
        target_accept_prob: what the step size adapts to, if it does.
        usual_ticks: how many ticks a transition takes, until they have been counted.
        num_steps: what a run counts as one transition is so many of this sampler's, of which the last makes a draw.
        learns: what the warm-up raises where draws remember one another for long.
        sticks: whether chains under steps that are too long for where they are stay there, and do not diverge.
        remedy: what helps where transitions diverge.
        structured: whether it asks the log density for more than value and gradient, such as conditionals. That is then
            neither compiled on its own nor tried for a first step size.
        eager: whether its steps run the model in Python, so that they are not compiled.
    """

    name: str
    init: Callable[[Any, Tensor, Any, Any], State]
    draw_randomness: Callable[[Tensor, Generator], Any]
    step: Callable[[Any, Any, Any, Any], tuple[State, Info]]
    adaptation: Callable[[Tensor, int], Adaptation]
    parameters: Callable[[Any, Stage], Any]
    target_accept_prob: float = 1.0
    usual_ticks: float = 4.0
    num_steps: int = 1
    learns: Learns | None = None
    sticks: bool = False
    remedy: str = "raise target_accept_prob, or reparametrise the model"
    structured: bool = False
    eager: bool = False


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
    steps = torch.full((), num_steps, device=stage.reach.device)
    return hmc.Parameters(adaptation.step_sizes, trajectory_length * stage.reach, steps)


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
    )


@dataclass(frozen=True)
class _FromSeed:
    """The `init` or `step` of ChEES-HMC, with a seed in the place of its random numbers."""

    function: Callable[..., Any]

    def __call__(self, log_density: LogDensity, chains: Any, *rest: Any) -> Any:
        position = chains if isinstance(chains, Tensor) else chains.position
        made = (chees.randomness_of(each, position) if isinstance(each, chees.Seed) else each for each in rest)
        return self.function(log_density, chains, *made)


def _chees_parameters(adaptation: LengthAdaptation, _: Stage) -> chees.Parameters:
    return chees.Parameters(adaptation.step_sizes, adaptation.trajectory_length)


def langevin_algorithm(
    *, metropolis: bool, target_accept_prob: float, num_steps: int = 1, learns: Learns | None = None
) -> Algorithm:
    """Langevin dynamics, with the Metropolis correction or without: see `langevin`.

    The warm-up is always corrected: it finds the bulk of the density safely, and the step size at which the correction
    would accept as often as the target says.
    """
    return Algorithm(
        name="MALA" if metropolis else "Langevin",
        init=langevin.init,
        draw_randomness=langevin.draw_randomness,
        step=langevin.step,
        adaptation=DualAveraging.start,
        parameters=partial(_langevin_parameters, metropolis),
        target_accept_prob=target_accept_prob,
        usual_ticks=1.0,
        num_steps=num_steps,
        learns=learns,
        sticks=True,
    )


def _langevin_parameters(metropolis: bool, adaptation: Adaptation, stage: Stage) -> langevin.Parameters:
    return langevin.Parameters(0.5 * adaptation.step_sizes.square(), stage.warming_up | metropolis)


def underdamped_algorithm(
    *, friction: float, metropolis: bool, target_accept_prob: float, num_steps: int = 1, learns: Learns | None = None
) -> Algorithm:
    """Underdamped Langevin dynamics, with the Metropolis correction or without: see `underdamped`.

    The warm-up is always corrected, as for `langevin_algorithm`.
    """
    return Algorithm(
        name="Generalized HMC" if metropolis else "Underdamped Langevin",
        init=underdamped.init,
        draw_randomness=underdamped.draw_randomness,
        step=underdamped.step,
        adaptation=DualAveraging.start,
        parameters=partial(_underdamped_parameters, friction, metropolis),
        target_accept_prob=target_accept_prob,
        usual_ticks=1.0,
        num_steps=num_steps,
        learns=learns,
    )


def _underdamped_parameters(
    friction: float, metropolis: bool, adaptation: Adaptation, stage: Stage
) -> underdamped.Parameters:
    step_sizes = adaptation.step_sizes
    given = torch.full_like(step_sizes, friction)
    # A chain on its way to the bulk takes short steps, and must lose the energy it comes with.
    frictions = torch.where(stage.warming_up, torch.maximum(given, _WARMUP_FRICTION / step_sizes), given)
    return underdamped.Parameters(step_sizes, frictions, stage.warming_up | metropolis)


def barker_algorithm(*, target_accept_prob: float = 0.4, num_steps: int = 1, learns: Learns | None = None) -> Algorithm:
    """The Barker proposal: see `barker`."""
    return Algorithm(
        name="Barker",
        init=barker.init,
        draw_randomness=barker.draw_randomness,
        step=barker.step,
        adaptation=DualAveraging.start,
        parameters=_barker_parameters,
        target_accept_prob=target_accept_prob,
        usual_ticks=1.0,
        num_steps=num_steps,
        learns=learns,
        sticks=True,
    )


def _barker_parameters(adaptation: Adaptation, _: Stage) -> barker.Parameters:
    return barker.Parameters(adaptation.step_sizes)


def random_walk_algorithm(
    *, target_accept_prob: float = 0.234, num_steps: int = 1, learns: Learns | None = None
) -> Algorithm:
    """Random-walk Metropolis: see `random_walk`."""
    return Algorithm(
        name="Random walk",
        init=random_walk.init,
        draw_randomness=random_walk.draw_randomness,
        step=random_walk.step,
        adaptation=DualAveraging.start,
        parameters=_random_walk_parameters,
        target_accept_prob=target_accept_prob,
        usual_ticks=1.0,
        num_steps=num_steps,
        learns=learns,
    )


def _random_walk_parameters(adaptation: Adaptation, _: Stage) -> random_walk.Parameters:
    return random_walk.Parameters(adaptation.step_sizes)


def exchange_algorithm(*, target_accept_prob: float, num_steps: int) -> Algorithm:
    """The exchange algorithm: see `exchange`."""
    return replace(
        random_walk_algorithm(target_accept_prob=target_accept_prob, num_steps=num_steps),
        name="Exchange",
        init=exchange.init,
        draw_randomness=exchange.draw_randomness,
        step=exchange.step,
        remedy="see where the density is not finite",
        structured=True,
        eager=True,
    )


def elliptical_slice_algorithm() -> Algorithm:
    """Elliptical slice sampling: see `elliptical_slice`."""
    return Algorithm(
        name="Elliptical slice",
        init=elliptical_slice.init,
        draw_randomness=elliptical_slice.draw_randomness,
        step=elliptical_slice.step,
        adaptation=FixedStepSize.start,
        parameters=_elliptical_slice_parameters,
        remedy="see where the likelihood is not finite",
    )


def _elliptical_slice_parameters(_: Adaptation, __: Stage) -> elliptical_slice.Parameters:
    return elliptical_slice.Parameters()


def sgld_algorithm(*, offset: float, decay: float, preconditioned: bool, smoothing: float, damping: float) -> Algorithm:
    """Stochastic-gradient Langevin dynamics: see `sgld`; the first step size is the run's."""
    return Algorithm(
        name="Preconditioned SGLD" if preconditioned else "SGLD",
        init=sgld.init,
        draw_randomness=sgld.draw_randomness,
        step=sgld.step,
        adaptation=FixedStepSize.start,
        parameters=partial(_sgld_parameters, offset, decay, preconditioned, smoothing, damping),
        usual_ticks=1.0,
        remedy="shorten step_size",
    )


def _sgld_parameters(
    offset: float, decay: float, preconditioned: bool, smoothing: float, damping: float, fixed: Adaptation, _: Stage
) -> sgld.Parameters:
    step_size = fixed.step_size
    schedule = (step_size, torch.full_like(step_size, offset), torch.full_like(step_size, decay))
    return sgld.Parameters(*schedule, preconditioned, smoothing, damping)


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
        parameters=partial(_hmc_parameters, trajectory_length, 0),
        target_accept_prob=target_accept_prob,
        learns=learns,
        sticks=True,
    )


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
        if isinstance(argument, hmc.Parameters):
            step_size, length, num_steps = argument
            return hmc.Parameters(step_size * dim**0.5, length * dim**0.5, num_steps)
        return argument


def gibbs_algorithm(*, random_scan: bool) -> Algorithm:
    """Block Gibbs sampling: see `gibbs`."""
    return Algorithm(
        name="Gibbs",
        init=gibbs.init,
        draw_randomness=gibbs.draw_randomness,
        step=gibbs.random_scan_step if random_scan else gibbs.step,
        adaptation=FixedStepSize.start,
        parameters=_no_parameters,
        usual_ticks=1.0,
        structured=True,
    )


def _no_parameters(adaptation: Adaptation, _: Stage) -> gibbs.Parameters:
    return gibbs.Parameters()


def swendsen_wang_algorithm() -> Algorithm:
    """Swendsen and Wang's cluster sampler: see `swendsen_wang`."""
    return Algorithm(
        name="Swendsen-Wang",
        init=swendsen_wang.init,
        draw_randomness=swendsen_wang.draw_randomness,
        step=swendsen_wang.step,
        adaptation=FixedStepSize.start,
        parameters=_no_parameters,
        usual_ticks=1.0,
        structured=True,
    )


def gibbs_with_gradients_algorithm() -> Algorithm:
    """Gibbs with gradients: see `gibbs_with_gradients`."""
    return Algorithm(
        name="Gibbs with gradients",
        init=changes.init,
        draw_randomness=gibbs_with_gradients.draw_randomness,
        step=gibbs_with_gradients.step,
        adaptation=FixedStepSize.start,
        parameters=_no_parameters,
        usual_ticks=1.0,
        remedy="see where the energy is not finite",
        structured=True,
    )


def discrete_langevin_algorithm(*, ordinal: bool, target_accept_prob: float) -> Algorithm:
    """The discrete Metropolis-adjusted Langevin algorithm: see `discrete_langevin`."""
    return Algorithm(
        name="Discrete Langevin",
        init=changes.init,
        draw_randomness=discrete_langevin.draw_randomness,
        step=discrete_langevin.step,
        adaptation=DualAveraging.start,
        parameters=partial(_discrete_langevin_parameters, ordinal),
        target_accept_prob=target_accept_prob,
        usual_ticks=1.0,
        remedy="see where the energy is not finite",
        structured=True,
    )


def _discrete_langevin_parameters(ordinal: bool, adaptation: Adaptation, _: Stage) -> discrete_langevin.Parameters:
    step_sizes = adaptation.step_sizes.clamp(max=1)
    return discrete_langevin.Parameters(step_sizes, torch.full((), ordinal, device=step_sizes.device))


def mixed_algorithm(continuous: Algorithm, *, num_discrete: int) -> Algorithm:
    """Gibbs sampling of discrete elements within a sampler of continuous ones: see `mixed`."""
    sampler = mixed.Sampler(continuous.init, continuous.draw_randomness, continuous.step)
    return replace(
        continuous,
        name=f"Gibbs within {continuous.name}",
        init=partial(mixed.init, sampler, num_discrete),
        draw_randomness=partial(mixed.draw_randomness, sampler, num_discrete),
        step=partial(mixed.step, sampler, num_discrete),
        structured=True,
        # Longer trajectories are of no use to discrete elements; more of them are.
        learns=continuous.learns if continuous.learns == "num_steps" else None,
    )
