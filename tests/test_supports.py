"""Supports: compared by value, counted, enumerated, and mapped to the reals."""

import copy
import pickle
from itertools import product

import pytest
import torch
import torch.distributions as dist
from torch import Size
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_ebm._core.errors import EnergySupportError
from pyro_ebm._core.supports import (
    MAX_ENUMERATED_STATES,
    enumerable_states,
    enumerate_states,
    join_supports,
    num_states,
    same_support,
    strip_independent,
    unconstraining,
    with_event_dim,
)

independent = constraints.independent

# Each group is one set, written in several ways; no two groups are the same set.
GROUPS: list[list[Constraint]] = [
    [constraints.real, independent(constraints.real, 0), dist.Normal(0.0, 1.0).support],
    [constraints.real_vector, independent(constraints.real, 1)],
    [independent(constraints.real, 2), independent(independent(constraints.real, 1), 1)],
    [
        constraints.positive,
        constraints.greater_than(0.0),
        constraints.greater_than(torch.tensor(0.0)),
        constraints.nonnegative,
        constraints.greater_than_eq(0.0),
        dist.Gamma(1.0, 1.0).support,
    ],
    [constraints.greater_than(1.0)],
    [independent(constraints.positive, 1)],
    [constraints.unit_interval, constraints.interval(0.0, 1.0), dist.Beta(1.0, 1.0).support],
    [constraints.interval(0.0, 2.0), dist.Uniform(0.0, 2.0).support],
    [constraints.interval(torch.zeros(2), torch.ones(2)), constraints.interval(torch.zeros(2), torch.ones(2))],
    [constraints.interval(torch.zeros(2), torch.tensor([1.0, 2.0]))],
    [constraints.simplex, dist.Dirichlet(torch.ones(3)).support],
    [constraints.boolean, dist.Bernoulli(0.5).support],
    [constraints.integer_interval(0, 1)],
    [constraints.integer_interval(0, 2), dist.Categorical(torch.ones(3)).support],
    [constraints.integer_interval(1, 2)],
    [constraints.lower_cholesky],
    [constraints.positive_definite],
    [constraints.stack([constraints.real, constraints.positive])],
    [constraints.stack([constraints.real, constraints.positive], dim=-1)],
    [constraints.stack([constraints.positive, constraints.real])],
    [constraints.cat([constraints.real, constraints.positive], lengths=[1, 2])],
    [constraints.cat([constraints.real, constraints.positive], lengths=[2, 1])],
]
LABELLED = [(group, index, support) for group, members in enumerate(GROUPS) for index, support in enumerate(members)]


def test_the_same_set_compares_equal() -> None:
    for (first_group, _, first), (second_group, _, second) in product(LABELLED, LABELLED):
        assert same_support(first, second) == (first_group == second_group), (first, second)


def test_joining() -> None:
    assert same_support(join_supports([constraints.positive, constraints.greater_than(0.0)], "x"), constraints.positive)
    with pytest.raises(EnergySupportError, match=r"site: got supports Real\(\) and Simplex\(\), expected one support"):
        join_supports([constraints.real, constraints.real, constraints.simplex], "site")


@pytest.mark.parametrize("event_dim", [0, 1, 3])
def test_event_dims_are_added(event_dim: int) -> None:
    support = with_event_dim(constraints.positive, event_dim, "x")
    assert support.event_dim == event_dim
    assert strip_independent(support) is constraints.positive
    assert support.check(torch.ones(5, 2, 2, 2)).shape == (5, 2, 2, 2)[: 4 - event_dim]


def test_event_dims_are_counted_from_the_element() -> None:
    assert with_event_dim(constraints.simplex, 1, "x") is constraints.simplex
    assert with_event_dim(constraints.simplex, 2, "x").event_dim == 2
    with pytest.raises(EnergySupportError, match=r"x: got support Simplex\(\) over 1 dims, expected at most .* 0\."):
        with_event_dim(constraints.simplex, 0, "x")


CONTINUOUS = [
    constraints.real,
    constraints.positive,
    constraints.nonnegative,
    constraints.interval(-1.0, 3.0),
    constraints.less_than(2.0),
    constraints.simplex,
    constraints.independent(constraints.positive, 1),
]


@pytest.mark.parametrize("support", CONTINUOUS, ids=str)
def test_the_bijection_lands_in_the_support(support: Constraint) -> None:
    transform = unconstraining(support, "x")
    u = torch.randn(50, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = transform(u)
    assert bool(support.check(x).all())
    torch.testing.assert_close(transform(transform.inv(x)), x)


@pytest.mark.parametrize("support", [constraints.boolean, constraints.integer_interval(0, 3)], ids=str)
def test_discrete_supports_have_no_bijection(support: Constraint) -> None:
    with pytest.raises(EnergySupportError, match=r"got the discrete support .*, expected a continuous one"):
        unconstraining(support, "x")
    with pytest.raises(EnergySupportError, match="discrete"):
        unconstraining(independent(support, 2), "x")


def test_supports_that_torch_does_not_map() -> None:
    with pytest.raises(EnergySupportError, match=r"torch knows no bijection .*biject_to\.register"):
        unconstraining(constraints.square, "x")


COUNTS: list[tuple[Constraint, int | None]] = [
    (constraints.boolean, 2),
    (independent(constraints.boolean, 2), 2),
    (constraints.integer_interval(0, 4), 5),
    (constraints.integer_interval(-2, 2), 5),
    (constraints.integer_interval(torch.tensor(1), torch.tensor(3)), 3),
    (independent(constraints.integer_interval(1, 1), 1), 1),
    (constraints.integer_interval(torch.tensor([0, 0]), torch.tensor([1, 2])), None),
    (constraints.nonnegative_integer, None),
    (constraints.real, None),
    (constraints.unit_interval, None),
    (constraints.simplex, None),
    (constraints.one_hot, None),
]


@pytest.mark.parametrize(("support", "expected"), COUNTS, ids=str)
def test_number_of_states(support: Constraint, expected: int | None) -> None:
    assert num_states(support) == expected
    assert enumerable_states(support, Size([2])) == (None if expected is None else expected**2)
    assert enumerable_states(support, Size([])) == expected


@pytest.mark.parametrize(("support", "expected"), COUNTS, ids=str)
def test_copies_of_a_support_are_the_same_set(support: Constraint, expected: int | None) -> None:
    for duplicate in (copy.deepcopy(support), pickle.loads(pickle.dumps(support))):
        assert same_support(duplicate, support)
        assert num_states(duplicate) == expected


def test_too_many_states_are_not_enumerable() -> None:
    assert enumerable_states(constraints.boolean, Size([4, 4])) == MAX_ENUMERATED_STATES
    assert enumerable_states(constraints.boolean, Size([17])) is None
    assert enumerable_states(constraints.boolean, Size([1000, 1000])) is None


@pytest.mark.parametrize("event_shape", [(), (1,), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize(
    "support", [constraints.boolean, constraints.integer_interval(0, 2), constraints.integer_interval(-1, 2)], ids=str
)
def test_enumeration(support: Constraint, event_shape: tuple[int, ...]) -> None:
    size = Size(event_shape)
    states = enumerate_states(with_event_dim(support, len(size), "x"), size, torch.float64, torch.device("cpu"))
    count = num_states(support) ** size.numel()
    assert states.shape == (count, *event_shape)
    assert states.dtype == torch.float64
    assert bool(support.check(states).all())
    low = 0 if support is constraints.boolean else support.lower_bound
    expected = product(range(low, low + num_states(support)), repeat=size.numel())
    assert [tuple(map(int, row)) for row in states.reshape(count, -1).tolist()] == list(expected)


def test_enumeration_follows_the_dtype() -> None:
    assert enumerate_states(constraints.boolean, Size([2]), torch.long, torch.device("cpu")).dtype == torch.long


def test_infinite_supports_do_not_enumerate() -> None:
    with pytest.raises(EnergySupportError, match="expected boolean, spin or an integer interval with scalar bounds"):
        enumerate_states(constraints.real, Size([2]), torch.float32, torch.device("cpu"))
