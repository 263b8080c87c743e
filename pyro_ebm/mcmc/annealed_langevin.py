"""Langevin chains at a noise level: the step of annealed Langevin sampling, and of chains near a noisy datum.

The energy of data smoothed by `N(0, σ²)` is curved by `1/σ²` at most, `∇²E = 1/σ² - Cov[x₀ | x]/σ⁴`. So a step size is
`ε = c v`, with v the variance that this leaves a chain (σ², or less where a noisy datum holds it), and c near the
optimum for a Gaussian of that variance, from where it follows the acceptance. Drift and noise have one ε: the
temperature is 1.

References:
    Song and Ermon 2019, Generative modeling by estimating gradients of the data distribution.
    Gao, Song, Poole, Wu and Kingma 2021, Learning energy-based models by diffusion recovery likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Size, Tensor

from pyro_ebm._core.gradients import with_gradient
from pyro_ebm._core.shapes import sum_rightmost
from pyro_ebm.mcmc import langevin

# How far one step's acceptance turns the step size.
_GAIN = 0.3
# Without correction the bias of a Gaussian's variance is ε/2 of it: 5 %.
_UNADJUSTED = 0.1


class Visit(NamedTuple):
    """What a visit to a level leaves.

    Attributes:
        value: where the chains are, `(chains, *batch, *event)`.
        log_step: log c, `()`, for the next level.
        acceptance_rate: the mean over chains and steps, `()`; without correction, what it would have been.
    """

    value: Tensor
    log_step: Tensor
    acceptance_rate: Tensor


def first_log_step(value: Tensor, event_dim: int, *, metropolis: bool) -> Tensor:
    """Log c, `()`, that is best for standard normal events of this shape; a small one if nothing is rejected."""
    dim = Size(value.shape[value.dim() - event_dim :]).numel()
    return value.new_full((), langevin.best_log_step_size(dim) if metropolis else math.log(_UNADJUSTED))


def visit(
    log_density: Callable[[Tensor], Tensor],
    value: Tensor,
    variance: Tensor,
    log_step: Tensor,
    *,
    event_dim: int,
    num_steps: int,
    metropolis: bool = True,
    anchor: tuple[Tensor, Tensor] | None = None,
    generator: Generator | None = None,
) -> Visit:
    """Move chains by Langevin steps that leave a density p invariant, or `p(x) exp(-|x - x̃|² / 2 s²)`.

    Args:
        log_density: log p up to a constant, `(chains, *batch, *event)` to `(chains, *batch)`.
        value: where the chains are, `(chains, *batch, *event)`.
        variance: v, that broadcasts with `(chains, *batch)`.
        log_step: log c, `()`.
        event_dim: how many trailing dims are an event's.
        num_steps: of every chain.
        metropolis: whether steps are accepted or rejected; then c follows the acceptance.
        anchor: x̃, as `value`, and `s²`, as `variance`, where there is one.
        generator: of the random numbers.
    """
    lead = value.shape[: value.dim() - event_dim]

    def raveled(position: Tensor) -> Tensor:
        x = position.reshape(value.shape)
        found = log_density(x)
        if anchor is not None:
            found = found - 0.5 * sum_rightmost((x - anchor[0]).square(), event_dim) / anchor[1]
        return found.reshape(-1)

    target = with_gradient(raveled)
    position = value.reshape(lead.numel(), -1)
    state = langevin.State(position, *target(position))
    variances = variance.to(position).expand(lead).reshape(-1)
    corrected = torch.full((), metropolis, device=position.device)
    rates = []
    for _ in range(num_steps):
        noise = torch.randn(position.shape, generator=generator, dtype=position.dtype, device=position.device)
        level = torch.rand(lead.numel(), generator=generator, dtype=position.dtype, device=position.device)
        parameters = langevin.Parameters(log_step.exp() * variances, corrected)
        state, info = langevin.step(target, state, langevin.Randomness(noise, level), parameters)
        rates.append(info.acceptance_rate.mean())
        if metropolis:
            log_step = log_step + _GAIN * (rates[-1] - langevin.TARGET_ACCEPTANCE)
    return Visit(state.position.reshape(value.shape), log_step, torch.stack(rates).mean())
