"""Annealed importance sampling: log Z by chains that travel from one density to another, in either direction.

A chain starts at an exact draw of a normalised density, and what its log density gains whenever the inverse temperature
rises is added up, with a transition at each: the mean of the weights is Z, whatever the transitions, and the log of a
mean of few is low in expectation. From exact draws of the target down to the reference, the weights' mean is `1 / Z`,
and the estimate of log Z is high. Where the two meet, both can be believed; where they do not, the truth is between.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

LogDensity = Callable[[Tensor], Tensor]
Path = Callable[[Tensor], Callable[[Tensor], Tensor]]


class Transition(Protocol):
    """A transition at an inverse temperature."""

    def __call__(self, values: Tensor, log_density: LogDensity, beta: Tensor, /) -> Tensor:
        """The next values of chains, `(chains, *batch, *event)`, by a transition that leaves the density invariant.

        Args:
            values: where the chains are.
            log_density: of the path at β, `(chains, *batch, *event)` to `(chains, *batch)`.
            beta: β, `()`.
        """
        ...


class AnnealedRun(NamedTuple):
    """Where chains came to, and with what weight.

    Attributes:
        log_weights: log w, `(chains, *batch)`: see `estimate_of`. With them, `values` are weighted draws.
        values: `(chains, *batch, *event)`.
    """

    log_weights: Tensor
    values: Tensor


def geometric_path(reference_log_prob: LogDensity, log_density: LogDensity) -> Path:
    """The path `log f_β = (1-β) log r + β log p̃`.

    Args:
        reference_log_prob: log r, normalised, `(chains, *batch, *event)` to `(chains, *batch)`.
        log_density: log p̃, not normalised.

    Returns:
        Values to a function of β, which gives the log density there.
    """

    def path(values: Tensor) -> Callable[[Tensor], Tensor]:
        reference, target = reference_log_prob(values), log_density(values)
        return lambda beta: _times(1 - beta, reference) + _times(beta, target)

    return path


def _times(beta: Tensor, log_density: Tensor) -> Tensor:
    """A multiple, where nothing of what is impossible is nothing."""
    return torch.where(beta == 0, torch.zeros_like(log_density), beta * log_density)


@torch.no_grad()
def annealed(path: Path, move: Transition, values: Tensor, ladder: Tensor) -> AnnealedRun:
    """Annealed importance sampling of many independent chains, up a ladder of inverse temperatures or down.

    Up, from draws of `f_0`, normalised, the mean of the weights is `Z = ∫ f_1`: `estimate_of(log_weights)`. Down, from
    draws of `f_1`, it is `1 / Z`: `estimate_of(log_weights, reciprocal=True)`. Draws of the target that are near exact,
    of long chains say, make an estimate that is nearly so. Down from a narrow density to a wide one weights are heavier
    in the tail than up, and with few temperatures their standard error is optimistic.

    Args:
        path: values to a function of β, which gives their log density: `geometric_path(...)`, or an energy's own
            `annealing_path()`.
        move: a transition at β; a path's own is `path.move`. Each temperature has one; repeat it for more.
        values: exact draws of the density at the ladder's start, `(chains, *batch, *event)`.
        ladder: inverse temperatures from 0 to 1, or from 1 to 0, `(temperatures,)`.

    Raises:
        ValueError: if the ladder does not go from one end to the other.

    References:
        Neal 2001, Annealed importance sampling.
        Grosse, Ghahramani and Adams 2015, Sandwiching the marginal likelihood using bidirectional Monte Carlo.
        Burda, Grosse and Salakhutdinov 2015, Accurate and conservative estimates of MRF log-likelihood using reverse
        annealing.

    >>> from torch.distributions import Normal
    >>> from pyro_ebm._core.estimate import estimate_of
    >>> path = geometric_path(Normal(0.0, 1.0).log_prob, lambda x: -x.square())
    >>> def move(x, log_density, beta):  # exact here: of precision (1 - β) + 2 β
    ...     return torch.randn_like(x) / (1 + beta).sqrt()
    >>> up = annealed(path, move, torch.randn(1000), torch.linspace(0, 1, 20))
    >>> abs(estimate_of(up.log_weights).value - 0.5 * torch.tensor(torch.pi).log()) < 0.05
    tensor(True)
    """
    _check_ladder(ladder)
    log_weights = ladder.new_zeros(())
    for before, beta in pairwise(ladder.unbind()):
        log_weights = log_weights + gain_along(path(values), before, beta)
        values = move(values, partial(density_at, path, beta), beta)
    return AnnealedRun(log_weights, values)


def density_at(path: Path, beta: Tensor, values: Tensor) -> Tensor:
    """The log density of a path at β, `()`, and values `(chains, *batch, *event)`: `(chains, *batch)`."""
    return path(values)(beta)


def gain_along(at_value: Callable[[Tensor], Tensor], before: Tensor, after: Tensor) -> Tensor:
    """What the log density gains; where it was -inf the weight is zero already, and stays so."""
    start = at_value(before)
    return torch.where(start == -torch.inf, start, at_value(after) - start)


def _check_ladder(ladder: Tensor) -> None:
    ends = (float(ladder[0]), float(ladder[-1])) if ladder.dim() == 1 and len(ladder) > 1 else None
    steps = ladder.diff()
    if ends not in ((0.0, 1.0), (1.0, 0.0)) or not bool((steps >= 0).all() or (steps <= 0).all()):
        raise ValueError(
            f"annealed: got a ladder of shape {tuple(ladder.shape)} with ends {ends}, expected inverse temperatures "
            "that go from 0 to 1, or from 1 to 0. Try torch.linspace(0, 1, 100), or adaptive_ladder(...)."
        )


@torch.no_grad()
def adaptive_ladder(
    path: Path, move: Transition, values: Tensor, *, target: float = 0.99, max_temperatures: int = 10_000
) -> Tensor:
    """A ladder with equal losses: each step keeps a share of the conditional effective sample size.

    With the weights `W` so far, normalised, and those `w` of a step, that is `(Σ W w)² / Σ W w²`; the step is the
    longest that keeps it at the target, found by bisection; over a batch, for the worst element. A ladder from a pilot
    run is no choice of the run that follows, whose weights stay unbiased: use fresh draws for it, or the same down.

    Args:
        path: as for `annealed`.
        move: as for `annealed`.
        values: exact draws of the reference, `(chains, *batch, *event)`; a few hundred chains.
        target: the share, below one: `1 - target` is about the variance of the log weights that a step adds.
        max_temperatures: the longest ladder.

    Returns:
        Inverse temperatures from 0 to 1, `(temperatures,)`.

    Raises:
        ValueError: if the target is not between 0 and 1.
        RuntimeError: if the ladder would be longer.

    References:
        Zhou, Johansen and Aston 2016, Toward automatic model comparison: an adaptive sequential Monte Carlo approach.
    """
    if not 0 < target < 1:
        raise ValueError(f"adaptive_ladder: got target {target}, expected a share between 0 and 1.")
    at_value = path(values)
    log_weights = torch.zeros_like(at_value(values.new_zeros(())))
    beta = log_weights.new_zeros(())
    ladder = [beta]
    while beta < 1:
        if len(ladder) == max_temperatures:
            raise RuntimeError(
                f"adaptive_ladder: got to an inverse temperature of {float(beta):.3g} after {len(ladder)} steps, "
                "expected 1. Lower the target, raise max_temperatures, or take a reference nearer to the density."
            )
        following = longest_step(at_value, log_weights, beta, target)
        log_weights = log_weights + gain_along(at_value, beta, following)
        beta = following
        ladder.append(beta)
        values = move(values, partial(density_at, path, beta), beta)
        at_value = path(values)
    return torch.stack(ladder)


# Halvings of what is left of the ladder: the step is good to a part in a million of that.
_HALVINGS = 20


def longest_step(at_value: Callable[[Tensor], Tensor], log_weights: Tensor, beta: Tensor, target: float) -> Tensor:
    """The inverse temperature where the conditional effective sample size falls to the target, or 1."""
    share = log_weights.softmax(0)

    def keeps(after: Tensor) -> Tensor:
        gain = gain_along(at_value, beta, after)
        step = (gain - gain.amax(0)).exp()
        return ((share * step).sum(0).square() / (share * step.square()).sum(0) >= target).all()

    low, high = beta, torch.ones_like(beta)
    if keeps(high):
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        holds = keeps(middle)
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    return high
