"""What exactly normalised distributions over structured labels have in common."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_ebm._core.errors import EnergyShapeError
from pyro_ebm._core.shapes import broadcast, leading_shape


class StructuredDistribution(TorchDistribution):  # type: ignore[misc]
    """A distribution over arrays of labels `p(z) = exp(score(z)) / Z` whose log Z, marginals and draws are exact.

    It is safe wherever a Pyro distribution is: as a likelihood whose parameters are learned or sampled, in plates, as a
    prior or a guide. A subclass gives the hooks, whose names start with an underscore, for the batch shape of its
    parameters; expanding to larger batches costs nothing, and is done here.

    Args:
        own_shape: the batch shape of the parameters.
        event_shape: the shape of the array of labels.
        num_states: the number K of values of a label.
        inside: which labels count, `(*own, *event)`, the others being padding; nothing if all do.
        validate_args: whether values are checked; torch's default.
    """

    arg_constraints: dict[str, Constraint] = {}  # noqa: RUF012  (torch's own declaration)
    has_rsample = False
    has_enumerate_support = False

    num_states: int

    def __init__(
        self,
        own_shape: Size,
        event_shape: Size,
        num_states: int,
        *,
        inside: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.num_states = num_states
        self._own_shape, self._inside = own_shape, inside
        super().__init__(own_shape, event_shape, validate_args=validate_args)

    # Hooks

    @abstractmethod
    def _score(self, value: Tensor) -> Tensor:
        """The log weight of labels `(*sample, *own, *event)`, `(*sample, *own)`."""

    @abstractmethod
    def _log_partition(self) -> Tensor:
        """Log Z in nats, `(*own,)`."""

    @abstractmethod
    def _marginals(self) -> Tensor:
        """The probabilities of each label's values, `(*own, *event, K)`."""

    @abstractmethod
    def _mode(self) -> Tensor:
        """The most probable labels, `(*own, *event)`."""

    @abstractmethod
    def _entropy(self) -> Tensor:
        """The entropy in nats, `(*own,)`."""

    @abstractmethod
    def _sample(self, sample_shape: Size) -> Tensor:
        """Exact draws, `(*sample, *own, *event)`."""

    @abstractmethod
    def condition(self, value: Tensor, observed: Tensor) -> Self:
        """The distribution of all labels given some.

        Its `log_partition` is less than this one's by minus the log probability of what is observed.

        Args:
            value: labels, `(*batch, *event)`; those that are not observed are ignored.
            observed: which are observed, boolean, broadcastable to the same shape.
        """

    # What follows from them

    @constraints.dependent_property
    def support(self) -> Constraint:
        """Integers from 0 to K - 1."""
        return constraints.independent(constraints.integer_interval(0, self.num_states - 1), len(self.event_shape))

    def expand(self, batch_shape: Size, _instance: Any = None) -> Self:
        """The same distribution for a larger batch; parameters are shared, and log Z is computed once."""
        batch_shape = Size(batch_shape)
        extra = len(batch_shape) - len(self.batch_shape)
        if extra < 0 or any(
            old not in (1, size) for old, size in zip(self.batch_shape, batch_shape[extra:], strict=True)
        ):
            raise EnergyShapeError(
                f"{type(self).__name__}.expand: got batch shape {tuple(self.batch_shape)}, expected one that expands "
                f"to {tuple(batch_shape)}. Under a subsampled plate, index the parameters by the plate's indices."
            )
        new: Self = copy.copy(self) if _instance is None else _instance
        new.__dict__.update(self.__dict__)
        TorchDistribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_partition(self) -> Tensor:
        """Log Z in nats, `(*batch,)`, differentiable."""
        return self._log_partition().expand(self.batch_shape)

    def score(self, value: Tensor) -> Tensor:
        """The unnormalised log probability of labels `(*sample, *batch, *event)`, `(*sample, *batch)`.

        Raises:
            EnergyShapeError: if the value does not fit.
        """
        what = type(self).__name__
        lead = leading_shape(value, self.event_shape, what)
        return self._score(value).expand(broadcast([lead, self.batch_shape], what))

    def log_prob(self, value: Tensor) -> Tensor:
        """`score - log Z` in nats at `(*sample, *batch, *event)`, `(*sample, *batch)`; padding counts nothing."""
        if self._validate_args:
            self._validate_sample(value if self._inside is None else torch.where(self._inside, value, 0))
        return self.score(value) - self.log_partition()

    def log_prob_partial(self, value: Tensor, observed: Tensor) -> Tensor:
        """The log probability of those labels that are observed, all others summed out; for semi-supervised learning.

        `log p(z_observed) = log Z(labels clamped) - log Z` in nats. In a model,
        `pyro.factor("labels", crf.log_prob_partial(labels, observed))`.

        Args:
            value: labels, `(*sample, *batch, *event)`; those that are not observed are ignored.
            observed: which are observed, boolean, broadcastable to the same shape.

        Returns:
            `(*sample, *batch)`; 0 where nothing is observed.
        """
        return self.condition(value, observed).log_partition() - self.log_partition()

    @property
    def marginals(self) -> Tensor:
        """The probabilities of each label's values, `(*batch, *event, K)`, differentiable; zero in padding."""
        return self._marginals().expand(*self.batch_shape, *self.event_shape, self.num_states)

    @property
    def mode(self) -> Tensor:
        """The most probable labels, `(*batch, *event)`; 0 in padding."""
        return self._mode().expand(*self.batch_shape, *self.event_shape)

    def entropy(self) -> Tensor:
        """The entropy in nats, `(*batch,)`, differentiable."""
        return self._entropy().expand(self.batch_shape)

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008  (torch's signature)
        """Exact draws, `(*sample, *batch, *event)`, of integers; 0 in padding.

        Raises:
            ValueError: if nothing is possible.
        """
        sample_shape = Size(sample_shape)
        missing = len(self.batch_shape) - len(self._own_shape)
        own = (*[1] * missing, *self._own_shape)
        # A dim that was expanded is drawn as a dim of the sample, beside the dim of one that it expands.
        copies = Size(size // old if old else 1 for old, size in zip(own, self.batch_shape, strict=True))
        draws = self._sample(sample_shape + copies)
        draws = draws.reshape(*sample_shape, *copies, *own, *self.event_shape)
        first, num = len(sample_shape), len(own)
        paired = [first + dim + offset for dim in range(num) for offset in (0, num)]
        order = [*range(first), *paired, *range(first + 2 * num, draws.dim())]
        return draws.permute(order).reshape(self.shape(sample_shape))

    def __repr__(self) -> str:
        """Name the shapes."""
        return (
            f"{type(self).__name__}(num_states={self.num_states}, batch_shape={tuple(self.batch_shape)}, "
            f"event_shape={tuple(self.event_shape)})"
        )


def clamped(unary: Tensor, value: Tensor, observed: Tensor) -> Tensor:
    """Log-potentials `(*batch, *event, K)` that are -inf at whatever is not the label observed."""
    states = torch.arange(unary.shape[-1], device=unary.device)
    possible = (states == value.unsqueeze(-1)) | ~observed.unsqueeze(-1)
    return torch.where(possible, unary, -torch.inf)
