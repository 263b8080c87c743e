"""What user-facing kernels have: all a model and a start, most a step size and a metric that adapt."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import Any

import torch
from pyro.infer.autoguide.initialization import init_to_uniform
from torch import Tensor

from pyro_ebm._core.ravel import Raveler
from pyro_ebm.infer.target import Target, build_target
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.covariance import (
    ChosenCovariance,
    LowRankCovariance,
    MetricEstimator,
    PooledCovariance,
    PooledVariance,
)
from pyro_ebm.mcmc.metric import DenseMetric, DiagonalMetric, LowRankMetric, Metric, metric_of
from pyro_ebm.mcmc.settings import RunSettings

# A dense metric needs draws enough to estimate it, and its products must stay cheap beside the gradient.
_MAX_DENSE_DIM, _DRAWS_PER_DIM = 256, 20


@dataclass(eq=False)
class Kernel(ABC):
    """A Markov kernel for a model: what all kernels take, by Pyro's names.

    Args:
        model: a Pyro model, an `EnergyDistribution`, or an `Energy` over one variable.
        init_strategy: where chains start: one of Pyro's strategies, or, for kernels that use gradients,
            `init_to_pathfinder`.
    """

    model: object
    _: KW_ONLY
    init_strategy: Callable[..., Any] = init_to_uniform

    def _require(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise ValueError(f"{type(self).__name__}: got {name} {getattr(self, name)}, expected {expected}.")

    @abstractmethod
    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""

    @abstractmethod
    def target(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Target:
        """The model as this kernel's density, with the model's arguments."""

    @abstractmethod
    def configure(self, settings: RunSettings, target: Target, num_chains: int) -> RunSettings:
        """The settings of a run over `target`, with what this kernel says of step size and metric."""

    def settings(self) -> dict[str, Any]:
        """The arguments by name, but for the model and the start."""
        apart = ("model", "init_strategy", "inverse_mass_matrix", "continuous")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}


@dataclass(eq=False)
class AdaptiveKernel(Kernel):
    """A kernel whose step size and mass matrix adapt in warm-up.

    Args:
        model: and the other arguments that every `Kernel` takes.
        step_size: the first leapfrog step size, in units of the metric; the warm-up improves it.
        adapt_step_size: whether the step size adapts in warm-up.
        adapt_mass_matrix: whether the mass matrix adapts in warm-up, to the draws of all chains.
        full_mass: whether the mass matrix is dense; or groups of site names, each with a dense block of its own, the
            other sites having diagonals; `None` decides by the dimension, by how many draws the chains will have
            pooled, and by how correlated they are.
        mass_rank: in place of a dense matrix, a diagonal with this many directions of its own: for correlated targets
            of high dimension.
        inverse_mass_matrix: the first one, over all sites side by side in unconstrained coordinates: its diagonal
            `(dim,)`, or whole `(dim, dim)`; by default the identity.
        target_accept_prob: the acceptance probability that the step size adapts to, at the least: the warm-up raises it
            where more than one in 500 transitions diverge.

    Raises:
        ValueError: if an argument is out of range.
    """

    _: KW_ONLY
    step_size: float = 1.0
    adapt_step_size: bool = True
    adapt_mass_matrix: bool = True
    full_mass: bool | Sequence[Sequence[str]] | None = None
    mass_rank: int | None = None
    inverse_mass_matrix: Tensor | None = None
    target_accept_prob: float = 0.8

    def __post_init__(self) -> None:
        self._require("step_size", self.step_size > 0, "a positive number")
        self._require("target_accept_prob", 0 < self.target_accept_prob < 1, "a number in (0, 1)")
        self._require("mass_rank", self.mass_rank is None or self.mass_rank >= 1, "at least 1")
        if self.mass_rank is not None and (self.full_mass or self.inverse_mass_matrix is not None):
            raise ValueError(
                f"{type(self).__name__}: got mass_rank with full_mass or inverse_mass_matrix, expected one kind of "
                "mass matrix. Leave out the others."
            )
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Check the arguments of this kernel's own."""

    def target(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Target:
        """See `Kernel`."""
        return build_target(self.model, args, kwargs)

    def configure(self, settings: RunSettings, target: Target, num_chains: int) -> RunSettings:
        """See `Kernel`."""
        metric, estimator = self.masses(target.raveler, target.like, num_chains, settings.warmup_steps)
        return replace(
            settings,
            step_size=self.step_size,
            adapt_step_size=self.adapt_step_size,
            adapt_metric=self.adapt_mass_matrix,
            metric=metric,
            estimator=estimator,
        )

    def masses(
        self, raveler: Raveler, like: Tensor, num_chains: int, warmup_steps: int
    ) -> tuple[Metric, MetricEstimator]:
        """The first metric of a run, and what learns it from draws.

        Args:
            raveler: lays the sites side by side.
            like: a vector `(dim,)` with the dtype and device.
            num_chains: number of chains.
            warmup_steps: transitions of each in the warm-up.

        Raises:
            ValueError: if the mass matrix that is asked for does not fit the model.
        """
        ones, given = torch.ones_like(like), self.inverse_mass_matrix
        if given is not None and given.shape not in ((raveler.dim,), (raveler.dim, raveler.dim)):
            raise ValueError(
                f"{type(self).__name__}: got inverse_mass_matrix of shape {tuple(given.shape)}, expected "
                f"({raveler.dim},) or ({raveler.dim}, {raveler.dim}): the sites {list(raveler.shapes)} side by side."
            )
        if self.mass_rank is not None:
            estimator = LowRankCovariance.start(like, self.mass_rank)
            none = like.new_zeros(raveler.dim, len(estimator.rank))
            return LowRankMetric(ones, none, torch.ones_like(estimator.rank)), estimator
        first = metric_of(given.to(like)) if given is not None else DiagonalMetric(ones)
        if self.full_mass:
            first = DenseMetric(first.scale.diag()) if isinstance(first, DiagonalMetric) else first
            return first, PooledCovariance.start(like, self._blocks(self.full_mass, raveler, like))
        pooled = num_chains * warmup_steps // 2  # the last window has about half of the warm-up
        if self.full_mass is None and raveler.dim <= _MAX_DENSE_DIM and pooled >= _DRAWS_PER_DIM * raveler.dim:
            return first, ChosenCovariance(PooledCovariance.start(like))
        return first, PooledVariance.start(like)

    def _blocks(self, groups: Sequence[Sequence[str]] | bool, raveler: Raveler, like: Tensor) -> Tensor | None:
        """Which entries of the mass matrix groups of sites have, `(dim, dim)`; `None` for all."""
        if isinstance(groups, bool):
            return None
        group_of = {name: number for number, names in enumerate(groups) for name in names}
        unknown = set(group_of) - set(raveler.shapes)
        if unknown:
            raise ValueError(
                f"{type(self).__name__}: got full_mass with sites {sorted(unknown)}, expected some of "
                f"{sorted(raveler.shapes)}."
            )
        alone = iter(range(len(groups), len(groups) + raveler.dim))
        owners = [
            group_of[name] if name in group_of else next(alone)
            for name, shape in raveler.shapes.items()
            for _ in range(shape.numel())
        ]
        owner = torch.tensor(owners, device=like.device)
        return owner.unsqueeze(0) == owner.unsqueeze(1)
