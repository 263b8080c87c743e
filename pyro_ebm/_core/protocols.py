"""What the layers ask of one another."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Generator, Size, Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint


class LogDensity(Protocol):
    """A batched log density with its gradient: what every gradient sampler takes."""

    def __call__(self, position: Tensor, /) -> tuple[Tensor, Tensor]:
        """`(chains, dim)` to the log density `(chains,)` and its gradient `(chains, dim)`."""
        ...


@runtime_checkable
class HasExactDraws(Protocol):
    """An energy that can be sampled exactly: its `sample` draws from `exp(-E) / Z`, without error."""

    def sample(self, sample_shape: Size) -> Tensor:
        """Exact draws, `(*sample, *batch, *event)`."""
        ...


@runtime_checkable
class HasLogPartition(Protocol):
    """An energy whose `log Z = log ∫ exp(-E(x)) dx` has a closed form."""

    def log_partition(self) -> Tensor:
        """Log Z in nats, `(*batch,)`, differentiable in the parameters."""
        ...


@runtime_checkable
class HasGibbsStep(Protocol):
    """An energy with a transition of its own, which leaves `exp(-E)` invariant, and is not reversible in general."""

    @property
    def has_gibbs_step(self) -> bool:
        """Whether it has, for what it is made of: a graph must have local factors."""
        ...

    def gibbs_step(self, value: Tensor, generator: Generator | None = None) -> Tensor:
        """The next values of chains at `(*sample, *batch, *event)`, detached, of the same shape."""
        ...


@runtime_checkable
class Density(Protocol):
    """What an objective trains: any torch or Pyro distribution, normalised or not."""

    @property
    def batch_shape(self) -> Size:
        """The shape of a batch of densities."""
        ...

    @property
    def event_shape(self) -> Size:
        """The shape of one event."""
        ...

    @property
    def support(self) -> Constraint:
        """Where events live."""
        ...

    def log_prob(self, value: Tensor, /) -> Tensor:
        """`(*sample, *batch, *event)` to `(*sample, *batch)`."""
        ...


@runtime_checkable
class HasReference(Protocol):
    """An energy with a normalised distribution near its density: where annealing and walkers start."""

    def reference(self) -> Distribution:
        """A distribution with the energy's event shape and support, and cheap exact draws."""
        ...


class AnnealingPath(Protocol):
    """A path of densities from a normalised one, at β = 0, to an unnormalised one, at β = 1."""

    def __call__(self, values: Tensor, /) -> Callable[[Tensor], Tensor]:
        """Values `(chains, *batch, *event)` to a function of β, which gives the log density there, `(chains, *batch)`.

        What does not depend on β is computed once.
        """
        ...

    def move(self, values: Tensor, log_density: Callable[[Tensor], Tensor], beta: Tensor, /) -> Tensor:
        """The next values of chains, by a transition that leaves the density at β invariant."""
        ...


@runtime_checkable
class HasAnnealingPath(Protocol):
    """An energy with a better path than the geometric one, and transitions along it."""

    def annealing_path(self, generator: Generator | None = None) -> AnnealingPath:
        """The path from its reference to itself; the generator is of the transitions."""
        ...


@runtime_checkable
class UnnormalizedDensity(Protocol):
    """A density whose log Z can be left out."""

    def unnormalized_log_prob(self, value: Tensor, /) -> Tensor:
        """Log density up to a constant, `(*sample, *batch, *event)` to `(*sample, *batch)`."""
        ...


@runtime_checkable
class HasState(Protocol):
    """An object that a run must save to go on as if it had not been interrupted."""

    def state_dict(self) -> dict[str, Any]:
        """What there is to save."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Restore what was saved."""
        ...


@runtime_checkable
class HasReport(Protocol):
    """An object that tells of itself in numbers."""

    def report(self) -> dict[str, Tensor]:
        """Detached tensors by name."""
        ...


@runtime_checkable
class HasLabels(Protocol):
    """An energy of inputs that gives their labels probabilities."""

    def label_log_prob(self, x: Tensor, /) -> Tensor:
        """`log p(y | x)` at `(*sample, *event)`, `(*sample, num_classes)`."""
        ...
