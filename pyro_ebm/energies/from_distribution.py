"""Any torch or Pyro distribution as an energy."""

import inspect
from collections.abc import Iterator, Sequence
from typing import TypeVar, cast

from torch import Size, Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.transforms import _InverseTransform
from torch.distributions.utils import lazy_property

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.errors import EnergySupportError
from pyro_ebm.energies.energy import Energy

Node = TypeVar("Node")


class DistributionEnergy(Energy):
    """The energy of a distribution: `E(x) = -log p(x)`, so that `log Z = 0`.

    The distribution's tensors become the energy's parameters (where they are `nn.Parameter`) and buffers, so that
    `state_dict`, `.to(device)`, `.double()` and `torch.func.functional_call` reach them. The distribution given is
    copied, never changed.

    What the distribution computed at its own construction stays as it was: a `MultivariateNormal` made from a
    `covariance_matrix` has only its Cholesky factor here. To learn a parameter, give the one that `log_prob` uses
    (`scale_tril`), or make the energy anew in every step, as a Pyro model does.

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
        self._template = _copy_tree(distribution)  # with holes where the tensors go; never evaluated
        self._paths: dict[str, tuple[str, ...]] = {}
        for path, leaf in list(_leaves(self._template)):
            name = "__".join(path)
            if isinstance(leaf, nn.Module):  # a normalising flow keeps its own parameters
                self.add_module(name, leaf)
                continue
            self._paths[name] = path
            _set(self._template, path, None)
            if isinstance(leaf, nn.Parameter):
                self.register_parameter(name, leaf)
            else:  # a copy, for load_state_dict writes into buffers; an output of a network stays in its graph
                self.register_buffer(name, leaf if leaf.requires_grad else leaf.clone())

    @property
    def distribution(self) -> Distribution:
        """The distribution, with the energy's present parameters and buffers, and nothing cached from earlier ones."""
        fresh = _copy_tree(self._template)
        for name, path in self._paths.items():
            _set(fresh, path, getattr(self, name))
        return fresh

    def forward(self, x: Tensor) -> Tensor:
        """The energy at `(*sample, *batch, *event)`, `(*sample, *batch)`."""
        return -self.distribution.log_prob(x)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Exact draws, `(*sample, *batch, *event)`, where the distribution has them."""
        return self.distribution.sample(Size(sample_shape))

    def log_partition(self) -> Tensor:
        """Log Z of a normalised density: zeros `(*batch,)`."""
        return like_of(self).new_zeros(self.batch_shape)


def tensors_of(distribution: Distribution) -> list[Tensor]:
    """Every tensor that a distribution is made of; those of modules in it are their parameters and buffers."""
    tensors: list[Tensor] = []
    for _, leaf in _leaves(distribution):
        tensors += [*leaf.parameters(), *leaf.buffers()] if isinstance(leaf, nn.Module) else [leaf]
    return tensors


def _copy_tree(node: Node) -> Node:
    """A shallow copy of each distribution, transform and list in the tree; tensors are shared, other things kept.

    What torch has cached in a node (inverses, last values, `logits` computed from `probs`) is left behind.
    """
    if isinstance(node, list):
        return cast(Node, [_copy_tree(value) for value in node])
    if not _is_branch(node):
        return node
    fresh = object.__new__(type(node))
    for name, value in vars(node).items():
        if name == "_inv" and not isinstance(node, _InverseTransform):
            vars(fresh)[name] = None
        elif name == "_cached_x_y":
            vars(fresh)[name] = (None, None)
        elif not _is_cached(node, name):
            vars(fresh)[name] = _copy_tree(value)
    return fresh


def _is_branch(node: object) -> bool:
    """Whether a node holds tensors of its own.

    A distribution, a transform, or one of Pyro's Gaussian and Gamma records.
    """
    return isinstance(node, (Distribution, Transform)) or type(node).__module__.startswith("pyro.ops.")


def _is_cached(node: object, name: str) -> bool:
    """Whether an attribute was computed from `_param`, the one of `probs` and `logits` that was given."""
    attributes = vars(node)
    if attributes.get("_param") is None or attributes[name] is attributes["_param"]:
        return False
    return isinstance(inspect.getattr_static(type(node), name, None), lazy_property)


def _leaves(node: object, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor | nn.Module]]:
    """Every tensor and module in the tree, with its path."""
    items = enumerate(node) if isinstance(node, list) else vars(node).items()
    for name, value in items:
        path = (*prefix, str(name))
        if isinstance(value, (Tensor, nn.Module)):
            yield path, value
        elif isinstance(value, list) or _is_branch(value):
            yield from _leaves(value, path)


def _set(node: object, path: tuple[str, ...], value: object) -> None:
    for name in path[:-1]:
        node = node[int(name)] if isinstance(node, list) else getattr(node, name)
    if isinstance(node, list):
        node[int(path[-1])] = value
    else:
        vars(node)[path[-1]] = value
