"""Gibbs sampling of discrete elements within a sampler of continuous ones: each given the other, in turn.

The continuous sampler moves as it does alone, tick by tick. A chain whose transition ends sweeps over its discrete
elements, given where it has come to, and starts its next transition with them. Both kernels leave the joint density as
it is, and so does their product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils import _pytree as pytree

from pyro_ebm._core.heat_bath import sweep
from pyro_ebm._core.protocols import LogDensity
from pyro_ebm._core.randomness import random_bits
from pyro_ebm.mcmc.covariance import MetricEstimator
from pyro_ebm.mcmc.gibbs import conditionals
from pyro_ebm.mcmc.metric import DenseMetric, DiagonalMetric, LowRankMetric, Metric, Whitened
from pyro_ebm.mcmc.protocols import Info


class Randomness(NamedTuple):
    """That of a tick of the `inner` sampler, of a start of its (`fresh`), and `bits` `(discrete, chains)`."""

    inner: Any
    fresh: Any
    bits: Tensor


class State(NamedTuple):
    """The present draw, `(chains, dim)`, discrete elements first, and the state of the `inner` sampler."""

    position: Tensor
    inner: Any


class Sampler(NamedTuple):
    """The functions of the continuous sampler, as an `Algorithm` has them."""

    init: Callable[..., Any]
    draw_randomness: Callable[[Tensor, Generator], Any]
    step: Callable[..., tuple[Any, Any]]


def draw_randomness(sampler: Sampler, num_discrete: int, position: Tensor, generator: Generator) -> Randomness:
    """Draw the random numbers of a tick for chains at `position`, `(*ticks, chains, dim)`."""
    *ticks, chains, _ = position.shape
    continuous = position[..., num_discrete:]
    bits = random_bits((*ticks, num_discrete, chains), position.device, generator)
    inner, fresh = (sampler.draw_randomness(continuous, generator) for _ in range(2))
    return Randomness(inner, fresh, bits)


def init(
    sampler: Sampler, num_discrete: int, density: Whitened, position: Tensor, parameters: Any, randomness: Randomness
) -> State:
    """Start a transition of every chain at `position`, `(chains, dim)`."""
    discrete, continuous = position[:, :num_discrete], position[:, num_discrete:]
    return State(position, sampler.init(_given(density, discrete), continuous, parameters, randomness.fresh))


def step(
    sampler: Sampler, num_discrete: int, density: Whitened, state: State, randomness: Randomness, parameters: Any
) -> tuple[State, Info]:
    """One tick of the continuous sampler, and a sweep of the chains that end their transitions in it."""
    discrete = state.position[:, :num_discrete]
    inner, info = sampler.step(_given(density, discrete), state.inner, randomness.inner, parameters)
    target = conditionals(density)
    position = density.metric.to_position(torch.cat([discrete, inner.position], -1))
    states, gain = sweep(target.blocks, target.states(position), target.context(position), randomness.bits)
    discrete = torch.where(info.done.unsqueeze(-1), target.layout.position(states), discrete)
    fresh = sampler.init(_given(density, discrete), inner.position, parameters, randomness.fresh)
    draw = inner.position
    inner = pytree.tree_map(lambda new, old: torch.where(_beside(info.done, new), new, old), fresh, inner)
    lp = torch.where(info.done, info.lp + gain.to(info.lp.dtype), info.lp)
    return State(torch.cat([discrete, draw], -1), inner), info._replace(lp=lp)


def _given(density: Whitened, discrete: Tensor) -> LogDensity:
    """The log density of continuous coordinates, given discrete elements."""

    def log_density(continuous: Tensor, /) -> tuple[Tensor, Tensor]:
        value, gradient = density(torch.cat([discrete, continuous], -1))
        return value, gradient[:, discrete.shape[-1] :]

    return log_density


def _beside(mask: Tensor, leaf: Tensor) -> Tensor:
    """A mask of chains, for a leaf that has them as its first dim."""
    return mask.reshape(-1, *[1] * (leaf.dim() - 1))


class ContinuousEstimator(NamedTuple):
    """Learns the metric of the continuous coordinates, and leaves discrete ones as they are.

    Attributes:
        inner: what learns it.
        discrete: ones, `(discrete,)`.
    """

    inner: MetricEstimator
    discrete: Tensor

    @property
    def num_draws(self) -> Tensor:
        """Number of draws so far, `()`."""
        return self.inner.num_draws

    def update(self, draws: Tensor) -> ContinuousEstimator:
        """Take in draws `(draws, dim)`."""
        return self._replace(inner=self.inner.update(draws[:, len(self.discrete) :]))

    def metric(self) -> Metric:
        """The metric of all coordinates."""
        return beside_discrete(self.inner.metric(), self.discrete)


def beside_discrete(metric: Metric, ones: Tensor) -> Metric:
    """A metric of continuous coordinates, preceded by discrete ones with unit scale."""
    if isinstance(metric, DenseMetric):
        return DenseMetric(torch.block_diag(ones.diag(), metric.factor))
    if isinstance(metric, LowRankMetric):
        none = ones.new_zeros(len(ones), metric.directions.shape[1])
        return metric._replace(scale=torch.cat([ones, metric.scale]), directions=torch.cat([none, metric.directions]))
    return DiagonalMetric(torch.cat([ones, metric.variances.sqrt()]))
