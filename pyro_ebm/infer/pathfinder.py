"""Starts by Pathfinder, as one of Pyro's initialisation strategies."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from pyro_ebm._core.protocols import LogDensity
from pyro_ebm._core.randomness import seeded_generator
from pyro_ebm.mcmc.pathfinder import MAX_ITERATIONS, pathfinder


def init_to_pathfinder(
    site: Mapping[str, Any] | None = None, radius: float = 2.0, max_iterations: int = MAX_ITERATIONS
) -> functools.partial[Any]:
    """Initialize to draws from Gaussians that are fitted along optimisation paths: near the typical set.

    A path for each chain starts uniformly in `(-radius, radius)` of the unconstrained domain and climbs the log density
    by L-BFGS; of the Gaussians that it sees on the way, one draw of the best becomes the start. Paths that end in a
    mode without mass (`max(30, 5 √dim)` nats below the best) get a draw of another path. It costs about as much as
    one to three hundred gradients of all chains, and is for models whose chains would otherwise spend their warm-up on
    the way to the bulk, or in poor local modes.

    Args:
        site: none: starts depend on all sites at once, so that only kernels of pyro_ebm can use it.
        radius: of the uniform starts of the paths.
        max_iterations: steps of a path at the most.

    Returns:
        The strategy with its arguments, as Pyro's strategies do.

    Raises:
        TypeError: if it is asked for the value of one site.
        ValueError: if an argument is out of range.

    References:
        Zhang, Carpenter, Gelman and Vehtari 2022, Pathfinder: parallel quasi-Newton variational inference.

    >>> from pyro_ebm import NUTS, Funnel
    >>> kernel = NUTS(Funnel(5), init_strategy=init_to_pathfinder)
    >>> kernel = NUTS(Funnel(5), init_strategy=init_to_pathfinder(radius=0.1))
    """
    if site is not None:
        raise TypeError(
            f'init_to_pathfinder: got one site, "{site["name"]}", expected a kernel of pyro_ebm: it starts all sites '
            "together, from the gradient of their joint density. Give it to pyro_ebm's kernels alone, "
            "pyro_ebm.NUTS(model, init_strategy=init_to_pathfinder), and not as the fallback of another strategy; "
            "elsewhere use init_to_uniform."
        )
    if not radius > 0:
        raise ValueError(f"init_to_pathfinder: got radius {radius}, expected a positive number.")
    if max_iterations < 1:
        raise ValueError(f"init_to_pathfinder: got max_iterations {max_iterations}, expected at least 1.")
    return functools.partial(init_to_pathfinder, radius=radius, max_iterations=max_iterations)


def asks_for_pathfinder(strategy: Callable[..., Any]) -> bool:
    """Whether an initialisation strategy is Pathfinder, with or without arguments."""
    return (strategy.func if isinstance(strategy, functools.partial) else strategy) is init_to_pathfinder


def pathfinder_points(log_density: LogDensity, start: Tensor, max_iterations: int) -> Tensor:
    """A draw for each path from `start` `(chains, dim)`, by randomness from torch's global generator."""
    # Eager: these calls are too few to pay for compiling the density.
    return pathfinder(log_density, start, seeded_generator(start.device), max_iterations=max_iterations).position
