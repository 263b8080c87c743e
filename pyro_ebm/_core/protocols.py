"""What the layers ask of one another."""

from typing import Protocol, runtime_checkable

from torch import Generator, Size, Tensor
from torch.distributions import Distribution


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
    """An energy with a transition of its own that leaves its density invariant."""

    def gibbs_step(self, value: Tensor, generator: Generator | None = None) -> Tensor:
        """Values `(*lead, *event)` to new ones."""
        ...


@runtime_checkable
class HasReference(Protocol):
    """An energy with a normalised distribution near its density, from which annealing starts."""

    def reference(self) -> Distribution:
        """The distribution, over events of the energy's shape."""
        ...
