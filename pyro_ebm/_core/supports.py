"""Supports: constraints whose event dims match the event shape, compared by what they mean."""

from collections.abc import Sequence

import torch
from torch import Size, Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.constraints import Constraint

from pyro_ebm._core.errors import EnergySupportError

# Enumerating more joint states than this takes seconds and gigabytes.
MAX_ENUMERATED_STATES = 2**16


class Spin(Constraint):
    """The two values -1 and +1."""

    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        """Whether each element is -1 or +1."""
        return value.abs() == 1


spin = Spin()


def with_event_dim(support: Constraint, event_dim: int, what: str) -> Constraint:
    """The same support, reinterpreted so that it checks whole events of `event_dim` dims.

    Raises:
        EnergySupportError: if one element of the support has more dims than the event.
    """
    extra = event_dim - support.event_dim
    if extra < 0:
        raise EnergySupportError(
            f"{what}: got support {support} over {support.event_dim} dims, expected at most the event's {event_dim}. "
            "Give the energy an event shape with those dims, or another support."
        )
    return constraints.independent(support, extra) if extra else support


def strip_independent(support: Constraint) -> Constraint:
    """The elementwise part of a support."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def is_everywhere(support: Constraint) -> bool:
    """Whether a support is all real numbers, elementwise."""
    return same_support(strip_independent(support), constraints.real)


# The same set but for its edge, which has no mass: a density on one is a density on the other.
_OPEN = {
    type(constraints.greater_than_eq(0.0)): type(constraints.greater_than(0.0)),
    type(constraints.half_open_interval(0.0, 1.0)): type(constraints.interval(0.0, 1.0)),
}


def same_support(first: Constraint, second: Constraint) -> bool:
    """Whether two supports are the same set but for the edge (torch's constraints have no equality of their own)."""
    if first.event_dim != second.event_dim:
        return False
    first, second = strip_independent(first), strip_independent(second)
    if _OPEN.get(type(first), type(first)) is not _OPEN.get(type(second), type(second)):
        return False
    bounds, other_bounds = vars(first), vars(second)
    return bounds.keys() == other_bounds.keys() and all(_same(bounds[k], other_bounds[k]) for k in bounds)


def _same(first: object, second: object) -> bool:
    if isinstance(first, Constraint) and isinstance(second, Constraint):
        return same_support(first, second)
    if isinstance(first, Sequence) and isinstance(second, Sequence):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        first, second = torch.as_tensor(first), torch.as_tensor(second)
        return first.shape == second.shape and bool((first == second).all())
    return first == second


def join_supports(supports: Sequence[Constraint], what: str) -> Constraint:
    """The support shared by several energies over one variable.

    Raises:
        EnergySupportError: if they differ.
    """
    first = supports[0]
    for other in supports[1:]:
        if not same_support(first, other):
            raise EnergySupportError(
                f"{what}: got supports {first} and {other}, expected one support for all. "
                "Declare each energy on the set where they are to be combined (support=...)."
            )
    return first


def unconstraining(support: Constraint, what: str) -> Transform:
    """The bijection from unconstrained reals to a continuous support.

    Raises:
        EnergySupportError: if the support is discrete or has no such bijection.
    """
    if support.is_discrete:
        raise EnergySupportError(
            f"{what}: got the discrete support {support}, expected a continuous one: gradients need it. "
            "Sum the variable out, or sample it with a sampler of its own."
        )
    try:
        transform: Transform = biject_to(support)
        return transform
    except NotImplementedError:
        raise EnergySupportError(
            f"{what}: torch knows no bijection from the reals to {support}. "
            "Register one with torch.distributions.biject_to.register, or use another support."
        ) from None


def state_range(support: Constraint) -> tuple[int, int, int] | None:
    """The lowest value, the step and the number of values of an element of a finite elementwise support, or `None`."""
    support = strip_independent(support)
    if same_support(support, constraints.boolean):  # not `is`: a pickled constraint is another object
        return 0, 1, 2
    if same_support(support, spin):
        return -1, 2, 2
    if isinstance(support, constraints.integer_interval):
        low, high = torch.as_tensor(support.lower_bound), torch.as_tensor(support.upper_bound)
        if low.numel() == 1 and high.numel() == 1:
            return int(low), 1, int(high - low) + 1
    return None


def num_states(support: Constraint) -> int | None:
    """The number of values of one element of an elementwise finite support, or `None`."""
    found = state_range(support)
    return None if found is None else found[2]


def enumerable_states(support: Constraint, event_shape: Size) -> int | None:
    """The number of joint states of an event, or `None` if infinite or above `MAX_ENUMERATED_STATES`."""
    states = num_states(support)
    if states is None:
        return None
    total = 1
    for _ in range(event_shape.numel()):
        total *= states
        if total > MAX_ENUMERATED_STATES:
            return None
    return total


def enumerate_states(support: Constraint, event_shape: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """All joint states of a finite event, `(states, *event)`."""
    found = state_range(support)
    if found is None:
        raise EnergySupportError(
            f"got support {support}, expected boolean, spin or an integer interval with scalar bounds."
        )
    low, step, states = found
    values = low + step * torch.arange(states, dtype=dtype, device=device)
    size = event_shape.numel()
    joint = torch.cartesian_prod(*[values] * size).reshape(-1, size)
    return joint.reshape(-1, *event_shape)
