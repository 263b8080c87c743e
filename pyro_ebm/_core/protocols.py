"""What the layers ask of one another."""

from typing import Protocol, runtime_checkable

from torch import Size, Tensor
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
class UnnormalizedDensity(Protocol):
    """A density whose log Z can be left out."""

    def unnormalized_log_prob(self, value: Tensor, /) -> Tensor:
        """Log density up to a constant, `(*sample, *batch, *event)` to `(*sample, *batch)`."""
        ...
