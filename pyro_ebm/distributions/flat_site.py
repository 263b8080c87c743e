"""The site of a graph's variable in a Pyro model: flat on its support, for the density is in factors beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_ebm._core.shapes import broadcast, leading_shape
from pyro_ebm._core.supports import strip_independent, unconstraining, with_event_dim
from pyro_ebm.distributions._caller import only_shape_needed
from pyro_ebm.graphs import Variable


class Prior(Protocol):
    """What draws a site's value, jointly with those of the other sites."""

    def __call__(self, shape: Size, /) -> Tensor:
        """Draws `(*shape, *event)`."""
        ...


class FlatSite(TorchDistribution):  # type: ignore[misc]
    """The flat measure on a variable's support: its log density is zero.

    Args:
        variable: the variable.
        event_shape: its shape, or `()` for one of its elements.
        batch_shape: the batch shape.
        prior: draws values.
        like: a tensor with the dtype and device of continuous values.
    """

    arg_constraints: dict[str, Constraint] = {}  # noqa: RUF012  (torch's own declaration)
    has_rsample = False
    is_normalized = False

    def __init__(
        self, variable: Variable, event_shape: Size, batch_shape: Sequence[int], prior: Prior, like: Tensor
    ) -> None:
        self._variable, self._prior, self._like = variable, prior, like
        super().__init__(Size(batch_shape), event_shape)

    def expand(self, batch_shape: Size, _instance: Any = None) -> FlatSite:
        """The same for a larger batch."""
        new: FlatSite = self._get_checked_instance(FlatSite, _instance)
        new._variable, new._prior, new._like = self._variable, self._prior, self._like
        super(FlatSite, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property
    def support(self) -> Constraint:
        """Where the variable, or the element, lives."""
        base = strip_independent(self._variable.support)
        return with_event_dim(base, len(self.event_shape), f'variable "{self._variable.name}"')

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero, at values `(*sample, *batch, *event)`: `(*sample, *batch)`."""
        if self._validate_args:
            self._validate_sample(value)
        what = f'variable "{self._variable.name}"'
        lead = broadcast([leading_shape(value, self.event_shape, what), self.batch_shape], what)
        return self._like.new_zeros(()).expand(lead)

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008  (torch's signature)
        """Draws `(*sample, *batch, *event)` from the graph's density, given the sites before; detached.

        Raises:
            GraphError: if the graph has no exact draws; `TreewidthError` likewise.
        """
        sample_shape = Size(sample_shape)
        with torch.no_grad():
            if not only_shape_needed():
                return self._prior(sample_shape + self.batch_shape)
            shape = self.shape(sample_shape)
            if self._variable.num_states:
                return self._variable.values(torch.zeros(shape, dtype=torch.long), self._like.dtype)
            transform = unconstraining(self.support, "sample_graph")
            middle: Tensor = transform(self._like.new_zeros(transform.inverse_shape(shape)))
            return middle.contiguous()

    @property
    def has_enumerate_support(self) -> bool:
        """Whether it is one element of a discrete variable."""
        return self._variable.num_states is not None and not self.event_shape

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All values, `(K, *batch)`, or with ones for the batch if not to be expanded."""
        if not self.has_enumerate_support:
            raise NotImplementedError(
                f'variable "{self._variable.name}": it is continuous or an array, expected one discrete element.'
            )
        states = torch.arange(self._variable.num_states or 0, device=self._like.device)
        values = self._variable.values(states, self._like.dtype).reshape(-1, *[1] * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values
