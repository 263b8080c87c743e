"""What every user-facing kernel has: a model, and how its step size and metric adapt."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any

from pyro.infer.autoguide.initialization import init_to_uniform

from pyro_ebm.mcmc.algorithm import Algorithm

# A dense metric needs draws enough to estimate it, and its products must stay cheap beside the gradient.
_MAX_DENSE_DIM, _DRAWS_PER_DIM = 256, 20


@dataclass(eq=False)
class Kernel(ABC):
    """A Markov kernel for a model: what all kernels take, by Pyro's names.

    Args:
        model: a Pyro model, an `EnergyDistribution`, or an `Energy` over one variable.
        step_size: the first leapfrog step size, in units of the metric; the warm-up improves it.
        adapt_step_size: whether the step size adapts in warm-up.
        adapt_mass_matrix: whether the mass matrix adapts in warm-up, to the draws of all chains.
        full_mass: whether the mass matrix is dense; `None` decides by the dimension and by how many draws the chains
            will have pooled.
        target_accept_prob: the acceptance probability that the step size adapts to.
        init_strategy: where chains start: one of Pyro's strategies.

    Raises:
        ValueError: if an argument is out of range.
    """

    model: object
    _: KW_ONLY
    step_size: float = 1.0
    adapt_step_size: bool = True
    adapt_mass_matrix: bool = True
    full_mass: bool | None = None
    target_accept_prob: float = 0.8
    init_strategy: Callable[..., Any] = init_to_uniform

    def __post_init__(self) -> None:
        self._require("step_size", self.step_size > 0, "a positive number")
        self._require("target_accept_prob", 0 < self.target_accept_prob < 1, "a number in (0, 1)")
        self.check()

    def _require(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise ValueError(f"{type(self).__name__}: got {name} {getattr(self, name)}, expected {expected}.")

    @abstractmethod
    def check(self) -> None:
        """Check the arguments of this kernel's own."""

    @abstractmethod
    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""

    def settings(self) -> dict[str, float | bool | None]:
        """The arguments by name, but for the model and the start."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("model", "init_strategy")}

    def uses_dense_metric(self, dim: int, num_chains: int, warmup_steps: int) -> bool:
        """Whether a run of this size has a dense mass matrix."""
        if self.full_mass is not None:
            return self.full_mass
        pooled = num_chains * warmup_steps // 2  # the last window has about half of the warm-up
        return self.adapt_mass_matrix and 1 < dim <= _MAX_DENSE_DIM and pooled >= _DRAWS_PER_DIM * dim
