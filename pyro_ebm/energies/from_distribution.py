"""Any torch or Pyro distribution as an energy."""

import copy
from collections.abc import Iterator
from typing import TypeVar, cast

from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from pyro_ebm._core.errors import EnergySupportError
from pyro_ebm.energies.energy import Energy

Node = TypeVar("Node")


class DistributionEnergy(Energy):
    """The energy of a distribution: `E(x) = -log p(x)`, so that `log Z = 0`.

    The distribution's tensors become the energy's parameters (where they are `nn.Parameter`) and buffers, so that
    `state_dict`, `.to(device)`, `.double()` and `torch.func.functional_call` reach them. The distribution given is
    copied, never changed.

    Args:
        distribution: any torch or Pyro distribution with a `log_prob` and a `support`.

    Raises:
        EnergySupportError: if it has no support.

    >>> import torch
    >>> e = DistributionEnergy(torch.distributions.Normal(torch.zeros(3), 1.0))
    >>> e.batch_shape, e(torch.zeros(3))
    (torch.Size([3]), tensor([0.9189, 0.9189, 0.9189]))
    """

    def __init__(self, distribution: Distribution) -> None:
        try:
            support = distribution.support
        except NotImplementedError:
            support = None
        if support is None:
            raise EnergySupportError(
                f"DistributionEnergy: got {type(distribution).__name__}, which has no support, expected one that says "
                "where it lives. Use energy(fn, event_shape, support=...) with fn(x) = -distribution.log_prob(x)."
            )
        super().__init__(distribution.event_shape, support=support, batch_shape=distribution.batch_shape)
        self._distribution = _copy_tree(distribution)
        self._paths: dict[str, tuple[str, ...]] = {}
        for path, tensor in _tensors(self._distribution):
            name = "__".join(path)
            self._paths[name] = path
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)

    @property
    def distribution(self) -> Distribution:
        """The distribution, with the energy's present parameters and buffers."""
        if any(_get(self._distribution, path) is not getattr(self, name) for name, path in self._paths.items()):
            fresh = _copy_tree(self._distribution)  # moved, cast or swapped: drop what was cached from the old tensors
            for name, path in self._paths.items():
                setattr(_get(fresh, path[:-1]), path[-1], getattr(self, name))
            self._distribution = fresh
        return self._distribution

    def forward(self, x: Tensor) -> Tensor:
        """The energy at `(*sample, *batch, *event)`, `(*sample, *batch)`."""
        return -self.distribution.log_prob(x)

    def log_partition(self) -> Tensor:
        """Log Z of a normalised density: zeros `(*batch,)`."""
        return next(self.buffers()).new_zeros(self.batch_shape)


def _copy_tree(node: Node) -> Node:
    """A shallow copy of each distribution, transform and list in the tree; tensors are shared, other things kept."""
    if isinstance(node, list):
        return cast(Node, [_copy_tree(value) for value in node])
    if not isinstance(node, (Distribution, Transform)):
        return node
    fresh = copy.copy(node)
    for name, value in vars(node).items():
        fresh.__dict__[name] = _copy_tree(value)
    return fresh


def _tensors(node: object, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Every tensor in the tree, with its path."""
    items = enumerate(node) if isinstance(node, list) else vars(node).items()
    for name, value in items:
        path = (*prefix, str(name))
        if isinstance(value, Tensor):
            yield path, value
        elif isinstance(value, (Distribution, Transform, list)):
            yield from _tensors(value, path)


def _get(node: object, path: tuple[str, ...]) -> object:
    for name in path:
        node = node[int(name)] if isinstance(node, list) else getattr(node, name)
    return node
