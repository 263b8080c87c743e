"""The samplers of real numbers that go step by step, bound to their settings for a run."""

from dataclasses import replace
from functools import partial

import torch

from pyro_ebm.mcmc import barker, elliptical_slice, exchange, langevin, random_walk, sgld, underdamped
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.protocols import Adaptation, Stage
from pyro_ebm.mcmc.reach import Learns
from pyro_ebm.mcmc.step_size import DualAveraging, FixedStepSize

# The least friction of underdamped dynamics in the warm-up, for each step.
_WARMUP_FRICTION = 0.3


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
