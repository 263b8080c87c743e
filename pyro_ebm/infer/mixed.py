"""Sampling of graphs that have both discrete and continuous variables."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import ones_like

from pyro_ebm._core.ravel import Raveler
from pyro_ebm.infer.chees import ChEES
from pyro_ebm.infer.graph_target import graph_of
from pyro_ebm.infer.kernel import AdaptiveKernel, Kernel
from pyro_ebm.infer.mixed_target import MixedTarget
from pyro_ebm.infer.nuts import NUTS
from pyro_ebm.infer.target import Target
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.covariance import ChosenCovariance, PooledVariance
from pyro_ebm.mcmc.discrete_algorithms import mixed_algorithm
from pyro_ebm.mcmc.mixed import ContinuousEstimator, beside_discrete
from pyro_ebm.mcmc.settings import RunSettings

# A dense metric is laid out over discrete elements too.
_MAX_DENSE_DIM = 256


@dataclass(eq=False)
class Mixed(Kernel):
    """Block Gibbs over a graph's discrete variables, and a gradient sampler over its continuous ones, in turn.

    A transition is one of the continuous sampler, given the discrete variables, and then a sweep over these. It is
    exact. Chains do not wait for one another's trajectories. Continuous variables move in unconstrained coordinates,
    where their step size and mass matrix adapt as usual.

    Where discrete and continuous variables are strongly coupled, such as a component and its mean, a chain may stay
    in one mode: look at R-hat over many chains. `NUTS(model)` on a Pyro model sums its discrete sites out instead.

    Args:
        model: a `FactorGraph` with both discrete and continuous variables.
        init_strategy: where chains start; see `DiscreteKernel`.
        continuous: the kernel of the continuous variables, as a function of the graph: `NUTS`, `HMC`, `MALA`, ..., or
            `lambda graph: NUTS(graph, target_accept_prob=0.9)`.

    Raises:
        TypeError: if `continuous` makes no kernel that adapts.

    >>> import pyro, torch
    >>> pyro.set_rng_seed(0)
    >>> from torch.distributions import Normal
    >>> from pyro_ebm import MCMC, FactorGraph, Mixed, energy
    >>> graph = FactorGraph()
    >>> side = graph.variable("side", num_states=2)
    >>> place = graph.variable("place", support=torch.distributions.constraints.real)
    >>> graph.factor(energy(lambda s, x: -Normal(2.0 * s, 1.0).log_prob(x), event_shape=[(), ()]), side, place)
    >>> mcmc = MCMC(Mixed(graph), num_samples=10, warmup_steps=50, num_chains=3, disable_progbar=True)
    >>> mcmc.run()
    >>> {name: tuple(draws.shape) for name, draws in mcmc.get_samples(group_by_chain=True).items()}
    {'side': (3, 10), 'place': (3, 10)}
    """

    continuous: Callable[[Any], Kernel] = field(default=NUTS, kw_only=True)

    def __post_init__(self) -> None:
        kernel = self.continuous(self.model)
        if not isinstance(kernel, AdaptiveKernel) or isinstance(kernel, ChEES):
            raise TypeError(
                f"Mixed: got continuous, which makes a {type(kernel).__name__}, expected a kernel whose step size "
                "adapts and whose chains go their own ways: NUTS, HMC, MALA, or a function of the graph that makes one."
            )
        self._inner = kernel

    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""
        graph = graph_of(self.model, "Mixed")
        count = sum(each.numel for each in graph.variables.values() if each.num_states)
        return mixed_algorithm(self._inner.algorithm(), num_discrete=count)

    def target(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Target:
        """The graph with the conditionals of its discrete variables.

        Raises:
            GraphError: if all variables are discrete, or the graph has a batch.
            TypeError: if all are continuous, or arguments are given.
        """
        if args or kwargs:
            raise TypeError("Mixed: got arguments for a graph, expected none. Condition the graph.")
        return MixedTarget(graph_of(self.model, "Mixed"))

    def configure(self, settings: RunSettings, target: Target, num_chains: int) -> RunSettings:
        """What the continuous kernel says of step size and metric, for its own variables."""
        whole = cast(MixedTarget, target)
        ones = ones_like(whole.like[: whole.num_discrete])
        raveler = Raveler({name: whole.raveler.shapes[name] for name in whole.continuous})
        like = whole.like[whole.num_discrete :]
        metric, estimator = self._inner.masses(raveler, like, num_chains, settings.warmup_steps)
        if isinstance(estimator, ChosenCovariance) and whole.raveler.dim > _MAX_DENSE_DIM:
            estimator = PooledVariance.start(like)
        return replace(
            settings,
            step_size=self._inner.step_size,
            adapt_step_size=self._inner.adapt_step_size,
            adapt_metric=self._inner.adapt_mass_matrix,
            metric=beside_discrete(metric, ones),
            estimator=ContinuousEstimator(estimator, ones),
        )
