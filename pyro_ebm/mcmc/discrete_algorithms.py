"""The samplers of discrete elements, alone or among real numbers, bound to their settings for a run."""

from dataclasses import replace
from functools import partial

import torch

from pyro_ebm.mcmc import changes, discrete_langevin, gibbs, gibbs_with_gradients, mixed, swendsen_wang
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.protocols import Adaptation, Stage
from pyro_ebm.mcmc.step_size import DualAveraging, FixedStepSize


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
