"""Where chains start.

Pyro's initialisation strategies for many chains at once, retried where the density is not finite.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.infer.autoguide.initialization import init_to_feasible, init_to_uniform
from torch import Tensor

from pyro_ebm._core.errors import InitializationError
from pyro_ebm._core.protocols import LogDensity
from pyro_ebm._core.ravel import Raveler
from pyro_ebm.infer.pathfinder import init_to_pathfinder, pathfinder_points

MAX_TRIES = 100


def initial_points(
    strategy: Callable[..., Any],
    num_chains: int,
    like: Tensor,
    draw_one: Callable[[Callable[..., Any]], Tensor],
    log_density: LogDensity,
    explain: Callable[[Tensor], str],
) -> Tensor:
    """A start for each chain with a finite density and gradient, `(chains, dim)`.

    Args:
        strategy: one of Pyro's initialisation strategies, a function of the same kind, or `init_to_pathfinder`.
        num_chains: number of chains.
        like: a vector `(dim,)` with the dtype and device.
        draw_one: runs a strategy that needs the model's sites, and returns one point `(dim,)`.
        log_density: the log density with its gradient.
        explain: says what is wrong at a point `(dim,)`.

    Raises:
        InitializationError: if a chain found no start in 100 tries.
    """
    function = strategy.func if isinstance(strategy, functools.partial) else strategy
    keywords = strategy.keywords if isinstance(strategy, functools.partial) else {}
    if function is init_to_pathfinder:
        options = init_to_pathfinder(**keywords).keywords
        around = init_to_uniform(radius=options["radius"])
        start = initial_points(around, num_chains, like, draw_one, log_density, explain)
        return pathfinder_points(log_density, start, options["max_iterations"])
    if function is init_to_uniform:  # needs only shapes: all chains at once, and no site is sampled
        radius = keywords.get("radius", 2.0)

        def draw(count: int) -> Tensor:
            spread: Tensor = radius * (2 * torch.rand(count, len(like), dtype=like.dtype).to(like.device) - 1)
            return spread
    elif function is init_to_feasible:

        def draw(count: int) -> Tensor:
            return like.new_zeros(count, len(like))
    else:

        def draw(count: int) -> Tensor:
            return torch.stack([draw_one(strategy) for _ in range(count)]).to(like)

    position, bad = draw(num_chains), torch.ones(num_chains, dtype=torch.bool, device=like.device)
    for attempt in range(MAX_TRIES):
        if attempt:
            position = position.masked_scatter(bad.unsqueeze(-1), draw(int(bad.sum())))
        bad = ~is_finite(log_density, position)
        if not bool(bad.any()):
            return position
    raise InitializationError(
        f"got no start with a finite density and gradient for {int(bad.sum())} of {num_chains} chains in {MAX_TRIES} "
        f"tries. {explain(position[bad][0])} Check the model there, or give another init_strategy or initial_params."
    )


def is_finite(log_density: LogDensity, position: Tensor) -> Tensor:
    """Whether density and gradient are finite at each point `(chains, dim)`: `(chains,)`."""
    value, gradient = log_density(position)
    return torch.isfinite(value) & torch.isfinite(gradient).all(-1)


def given_points(initial_params: Mapping[str, Tensor], raveler: Raveler, num_chains: int) -> Tensor:
    """The user's unconstrained starts, `(chains, dim)`, with or without a leading chain dim.

    Raises:
        InitializationError: if sites or shapes do not fit.
    """
    if set(initial_params) != set(raveler.shapes):
        raise InitializationError(
            f"initial_params: got sites {sorted(initial_params)}, expected {sorted(raveler.shapes)}: one unconstrained "
            "value for each latent site."
        )
    full: dict[str, Tensor] = {}
    for name, shape in raveler.shapes.items():
        value = torch.as_tensor(initial_params[name]).detach()
        if value.shape == shape:
            value = value.expand(num_chains, *shape)
        elif value.shape != (num_chains, *shape):
            raise InitializationError(
                f'initial_params: at site "{name}" got shape {tuple(value.shape)}, expected {tuple(shape)}, or '
                f"{(num_chains, *shape)} with one start for each chain, in unconstrained coordinates."
            )
        full[name] = value
    return raveler.ravel(full)
