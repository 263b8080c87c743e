"""Every energy against the contract of `Energy`, then each one's own promises."""

import copy
import pickle
from collections.abc import Iterator
from itertools import product

import pyro.distributions as pyro_dist
import pytest
import torch
import torch.distributions as dist
from cases import ENERGIES, Coupling, EnergyCase, harmonic, parametrize, quartic, randn, spring
from torch import Tensor, nn
from torch.distributions import constraints
from torch.func import functional_call, vmap

from pyro_ebm import (
    DistributionEnergy,
    DoubleWell,
    Energy,
    FunctionEnergy,
    MixtureEnergy,
    NeuralEnergy,
    QuadraticEnergy,
    Ring,
    ScaledEnergy,
    SumEnergy,
    energy,
    mixture,
)
from pyro_ebm._core.errors import EnergyShapeError, EnergySupportError
from pyro_ebm._core.protocols import HasLogPartition
from pyro_ebm._core.supports import same_support

SAMPLE_SHAPES = [(), (7,), (3, 2)]
CONTINUOUS = [case for case in ENERGIES if not case.discrete]
WITH_STATE = [case for case in ENERGIES if case.make().state_dict()]


def close(actual: Tensor, expected: Tensor, factor: float = 64.0) -> None:
    """Equal to rounding: `factor` units in the last place, of the value or of one."""
    tolerance = factor * torch.finfo(actual.dtype).eps
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture
def _no_validation() -> Iterator[None]:
    """Checks of values need their data, which vmap hides."""
    enabled = dist.Distribution._validate_args
    dist.Distribution.set_default_validate_args(False)
    yield
    dist.Distribution.set_default_validate_args(enabled)


# The contract


@parametrize(ENERGIES)
def test_declared_shapes(case: EnergyCase) -> None:
    e = case.make()
    assert e.event_shapes == case.event_shapes
    assert e.batch_shape == case.batch_shape
    assert e.num_variables == len(case.event_shapes)
    assert [support.event_dim for support in e.supports] == [len(shape) for shape in case.event_shapes]
    for value, support in zip(case.values((50, *case.batch_shape)), e.supports, strict=True):
        assert bool(support.check(value).all())


@pytest.mark.parametrize("sample_shape", SAMPLE_SHAPES)
@parametrize(ENERGIES)
def test_output_shape(case: EnergyCase, sample_shape: tuple[int, ...]) -> None:
    lead = (*sample_shape, *case.batch_shape)
    assert case.make()(*case.values(lead)).shape == lead


@parametrize(ENERGIES)
def test_value_without_batch_dims_broadcasts(case: EnergyCase) -> None:
    e, values = case.make(), case.values()
    expanded = [v.expand((*case.batch_shape, *v.shape)) for v in values]
    close(e(*values), e(*expanded))


@parametrize(ENERGIES)
def test_batch_of_samples_is_a_stack_of_singles(case: EnergyCase) -> None:
    e, values = case.make(), case.values((3, 2, *case.batch_shape))
    singles = [e(*[v[i, j] for v in values]) for i, j in product(range(3), range(2))]
    close(e(*values), torch.stack(singles).reshape(3, 2, *case.batch_shape))


@parametrize([case for case in ENERGIES if case.batch_shape])
def test_batch_elements_do_not_mix(case: EnergyCase) -> None:
    e, values = case.make(), case.values((5, *case.batch_shape))
    together = e(*values)
    for index in product(*map(range, case.batch_shape)):
        at = (slice(None), *index)
        same_everywhere = [
            v[at].reshape(5, *[1] * len(case.batch_shape), *s).expand_as(v)
            for v, s in zip(values, case.event_shapes, strict=True)
        ]
        close(e(*same_everywhere)[at], together[at])


@pytest.mark.usefixtures("_no_validation")
@parametrize(ENERGIES)
def test_vmap_equals_loop(case: EnergyCase) -> None:
    e, values = case.make(), case.values((4, *case.batch_shape))
    loop = torch.stack([e(*[v[i] for v in values]) for i in range(4)])
    close(vmap(e)(*values), loop)


@pytest.mark.usefixtures("_no_validation")
@parametrize(WITH_STATE)
def test_vmap_over_parameters_equals_loop(case: EnergyCase) -> None:
    ensemble, values = [case.make(seed=seed) for seed in (0, 1, 2)], case.values((5, *case.batch_shape))
    loop = torch.stack([e(*values) for e in ensemble])
    stacked = {name: torch.stack([e.state_dict()[name] for e in ensemble]) for name in ensemble[0].state_dict()}
    close(vmap(lambda state: functional_call(ensemble[0], state, values))(stacked), loop)
    close(ensemble[0](*values), loop[0])  # nothing of the call stays behind


@parametrize(ENERGIES)
def test_float32_agrees_with_float64(case: EnergyCase) -> None:
    double, single = case.make(torch.float64), case.make(torch.float32)
    lead = (50, *case.batch_shape)
    values = case.values(lead, torch.float32)
    actual = single(*values).detach()
    expected = double(*[v.double() for v in values]).detach()
    assert actual.dtype == torch.float32
    assert expected.dtype == torch.float64
    scale = 1 + expected.abs().amax()
    assert float(((actual.double() - expected).abs() / scale).amax()) < 64 * torch.finfo(torch.float32).eps


@parametrize(ENERGIES)
def test_double_changes_the_dtype(case: EnergyCase) -> None:
    e, values = case.make(torch.float32), case.values((3, *case.batch_shape), torch.float32)
    before = e(*values)
    after = e.double()(*[v.double() for v in values])
    assert (before.dtype, after.dtype) == (torch.float32, torch.float64)
    assert e(*[v.double() for v in values]).dtype == torch.float64
    torch.testing.assert_close(after.float(), before, rtol=1e-4, atol=1e-4)


@parametrize(ENERGIES)
def test_state_dict_round_trip(case: EnergyCase) -> None:
    first, second, values = case.make(seed=0), case.make(seed=1), case.values((3, *case.batch_shape))
    expected, other = first(*values), second(*values)
    if case in WITH_STATE and case.name not in ("correlated_gaussian", "gaussian_mixture"):  # one for every seed
        assert not torch.allclose(expected, other)
    second.load_state_dict(first.state_dict())
    close(second(*values), expected)


@parametrize(ENERGIES)
def test_copies_answer_alike(case: EnergyCase) -> None:
    e, values = case.make(), case.values((3, *case.batch_shape))
    expected = e(*values)
    for duplicate in (pickle.loads(pickle.dumps(e)), copy.deepcopy(e)):
        close(duplicate(*values), expected)
        assert duplicate.event_shapes == e.event_shapes
        assert duplicate.batch_shape == e.batch_shape
        assert all(map(same_support, duplicate.supports, e.supports))


@pytest.mark.usefixtures("_no_validation")
@parametrize(CONTINUOUS)
def test_gradient_in_the_values(case: EnergyCase) -> None:
    e, values = case.make(), case.values((2, *case.batch_shape))
    assert torch.autograd.gradcheck(e, [v.requires_grad_() for v in values])


@pytest.mark.usefixtures("_no_validation")
@parametrize([case for case in CONTINUOUS if case in WITH_STATE])
def test_gradient_in_the_parameters(case: EnergyCase) -> None:
    e, values = case.make(), case.values((2, *case.batch_shape))
    state = {name: tensor.detach().clone().requires_grad_() for name, tensor in e.state_dict().items()}

    def at(*tensors: Tensor) -> Tensor:
        return functional_call(e, dict(zip(state, tensors, strict=True)), values)

    assert torch.autograd.gradcheck(at, tuple(state.values()))


@parametrize([case for case in ENERGIES if dict(case.make().named_parameters())])
def test_every_parameter_gets_a_gradient_each_time(case: EnergyCase) -> None:
    e, values = case.make(), case.values((2, *case.batch_shape))
    for _ in range(2):  # nothing of the first graph is kept
        e.zero_grad()
        e(*values).sum().backward()
        assert all(p.grad is not None for p in e.parameters())


# The algebra

X = randn(3, 6, 3)
FIRST, SECOND, THIRD = energy(harmonic, (3,)), energy(quartic, (3,)), QuadraticEnergy(torch.eye(3, dtype=torch.float64))
WEIGHT = torch.tensor([0.5, 2.0, 3.0, 1.0, 0.0, 7.0], dtype=torch.float64)


def test_operators() -> None:
    a, b = FIRST(X), SECOND(X)
    close((FIRST + SECOND)(X), a + b)
    close((FIRST - SECOND)(X), a - b)
    close((-FIRST)(X), -a)
    close((3 * FIRST)(X), 3 * a)
    close((FIRST * 3.0)(X), 3 * a)
    close((FIRST / 4)(X), a / 4)
    close((FIRST / WEIGHT.add(1))(X), a / WEIGHT.add(1))
    close((WEIGHT * FIRST)(X), WEIGHT * a)
    close((FIRST * WEIGHT)(X), WEIGHT * a)
    close((2 * FIRST + SECOND - 0.5 * (FIRST - SECOND))(X), 1.5 * a + 1.5 * b)


def test_a_tensor_gives_its_batch_shape() -> None:
    scaled = torch.ones(4, 1) * QuadraticEnergy(torch.eye(2), torch.zeros(3, 2))
    assert scaled.batch_shape == (4, 3)
    assert scaled(torch.ones(5, 4, 3, 2)).shape == (5, 4, 3)
    assert (scaled + energy(harmonic, (2,))).batch_shape == (4, 3)


def test_builtin_sum() -> None:
    total = sum([FIRST, SECOND, THIRD])
    assert isinstance(total, SumEnergy)
    assert len(total.terms) == 3
    close(total(X), FIRST(X) + SECOND(X) + THIRD(X))


def test_sums_flatten() -> None:
    nested = (FIRST + SECOND) + (THIRD + (FIRST + SECOND))
    assert [*nested.terms] == [FIRST, SECOND, THIRD, FIRST, SECOND]
    assert not any(isinstance(term, SumEnergy) for term in nested.terms)
    assert [*SumEnergy([FIRST + SECOND, -(SECOND + THIRD)]).terms][:2] == [FIRST, SECOND]


def test_operators_over_several_variables() -> None:
    pair = energy(spring, [(3,), ()], support=[constraints.real, constraints.positive])
    x, y = randn(1, 5, 3), randn(2, 5).exp()
    combined = pair + 2 * pair - pair / 2
    close(combined(x, y), 2.5 * pair(x, y))
    assert combined.event_shapes == ((3,), ())
    assert same_support(combined.supports[1], constraints.positive)
    with pytest.raises(EnergyShapeError, match=r"Use \.event_shapes"):
        _ = combined.event_shape
    with pytest.raises(EnergyShapeError, match=r"Use \.supports"):
        _ = combined.support


def test_a_parameter_as_weight_is_learned() -> None:
    weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    for scaled in (weight * FIRST, FIRST * weight, ScaledEnergy(weight, FIRST)):
        assert [*scaled.parameters()] == [weight]
        (gradient,) = torch.autograd.grad(scaled(X).sum(), weight)
        close(gradient, FIRST(X).sum())


@pytest.mark.parametrize("other", [1, "e", None, harmonic], ids=repr)
def test_other_things_do_not_add(other: object) -> None:
    with pytest.raises(TypeError):
        FIRST + other
    with pytest.raises(TypeError):
        FIRST - other


def test_other_things_do_not_scale() -> None:
    for other in (FIRST, "e", None):
        with pytest.raises(TypeError):
            FIRST * other
        with pytest.raises(TypeError):
            FIRST / other


def test_mixture_formula() -> None:
    weights = torch.tensor([0.2, 3.0], dtype=torch.float64)
    either = mixture([FIRST, SECOND], weights)
    density = 0.2 * torch.exp(-FIRST(X)) + 3.0 * torch.exp(-SECOND(X))
    close(either(X), -density.log())
    close(mixture([FIRST, SECOND])(X), -torch.log(torch.exp(-FIRST(X)) + torch.exp(-SECOND(X))))
    close(mixture([FIRST])(X), FIRST(X))


def test_mixture_of_far_components_does_not_overflow() -> None:
    far = mixture([1e6 * FIRST, 1e6 * FIRST + 0 * SECOND])
    assert bool(torch.isfinite(far(X)).all())


def test_mixture_of_several_variables_and_batches() -> None:
    pair = energy(spring, [(3,), ()])
    x, y = randn(1, 5, 4, 3), randn(2, 5, 4)
    weights = randn(3, 4, 2).exp()
    both = mixture([pair, 2 * pair], weights)
    assert both.batch_shape == (4,)
    density = weights[:, 0] * torch.exp(-pair(x, y)) + weights[:, 1] * torch.exp(-2 * pair(x, y))
    close(both(x, y), -density.log())


# Errors: what, got, expected, and the fix

POSITIVE = FunctionEnergy(harmonic, (3,), support=constraints.positive)
SHAPE_ERRORS = {
    "sum of event shapes": (lambda: FIRST + energy(harmonic, (4,)), r"got event shapes .*3.* and .*4.*factors"),
    "sum of none": (lambda: SumEnergy([]), "got no energies, expected at least one"),
    "mixture of none": (lambda: mixture([]), "got no energies, expected at least one"),
    "sum of batches": (
        lambda: torch.ones(2) * FIRST + torch.ones(3) * FIRST,
        r"got batch shapes \(2,\), \(3,\), expected shapes that broadcast\. .*line up from the right",
    ),
    "scale of batches": (
        lambda: torch.ones(2) * (torch.ones(3) * FIRST),
        r"ScaledEnergy: got batch shapes \(2,\), \(3,\), expected shapes that broadcast",
    ),
    "mixture of event shapes": (lambda: mixture([FIRST, energy(harmonic, (4,))]), r"got event shapes"),
    "mixture weights": (
        lambda: mixture([FIRST, SECOND], torch.ones(4, 3)),
        r"got weights of shape \(4, 3\), expected \(\*batch, 2\): one for each energy",
    ),
    "mixture weight": (lambda: mixture([FIRST], torch.tensor(1.0)), r"got weights of shape \(\)"),
    "mixture batches": (
        lambda: mixture([torch.ones(3) * FIRST, SECOND], torch.ones(2, 2)),
        r"MixtureEnergy: got batch shapes .* expected shapes that broadcast",
    ),
    "supports for variables": (
        lambda: FunctionEnergy(spring, [(3,), ()], support=[constraints.real]),
        "got 1 supports, expected one for each of the 2 variables",
    ),
    "precision": (lambda: QuadraticEnergy(torch.ones(3)), r"got precision of shape \(3,\).*torch\.diag_embed"),
    "precision not square": (
        lambda: QuadraticEnergy(torch.ones(3, 2)),
        r"got precision of shape \(3, 2\), expected \(\*batch, d, d\)",
    ),
    "linear": (
        lambda: QuadraticEnergy(torch.eye(3), torch.ones(2)),
        r"got linear of shape \(2,\), expected \(\*batch, 3\)",
    ),
    "linear batch": (
        lambda: QuadraticEnergy(torch.eye(3).expand(2, 3, 3), torch.ones(4, 3)),
        "QuadraticEnergy: got batch shapes .* expected shapes that broadcast",
    ),
    "quadratic value": (
        lambda: QuadraticEnergy(torch.eye(3))(torch.zeros(5, 2)),
        r"got a value of shape \(5, 2\).*event shape \(3,\)\. Reshape",
    ),
    "network over several": (
        lambda: NeuralEnergy(Coupling(torch.ones(2, 3)), [(2,), (3,)]),
        r"got 2 event shapes, expected one.*use energy\(net, event_shape=\[\.\.\.\]\)",
    ),
    "network value": (
        lambda: NeuralEnergy(nn.Flatten(0), (2,))(torch.zeros(5, 3)),
        r"NeuralEnergy: got a value of shape \(5, 3\), expected .* event shape \(2,\)",
    ),
    "network value too small": (
        lambda: NeuralEnergy(nn.Flatten(0), (2, 2))(torch.zeros(2)),
        r"got a value of shape \(2,\), expected .* event shape \(2, 2\)",
    ),
    "network context": (
        lambda: NeuralEnergy(Coupling(torch.ones(2, 3)), (2,), context=torch.ones(4, 3))(torch.zeros(5, 2)),
        "NeuralEnergy: got batch shapes .*covariates",
    ),
    "network keeps the event": (
        lambda: NeuralEnergy(nn.Identity(), (2,))(torch.zeros(5, 2)),
        r"energy returned shape \(5, 2\), expected \(5,\)\. Reduce the event dims",
    ),
    "network reduces all": (
        lambda: NeuralEnergy(_Total(), (2,))(torch.zeros(5, 2)),
        r"energy returned shape \(\), expected \(5,\)\. Reduce only the event dims",
    ),
    "function keeps the event": (
        lambda: energy(torch.square, (3,))(torch.zeros(5, 3)),
        r"energy\(square\): energy returned shape \(5, 3\), expected \(5,\)\. Reduce the event dims",
    ),
    "function value": (
        lambda: FIRST(torch.zeros(5, 2)),
        r"energy\(harmonic\): got a value of shape \(5, 2\), expected .* \(3,\)\. Reshape",
    ),
    "function values": (
        lambda: energy(spring, [(3,), ()])(torch.zeros(5, 3), torch.zeros(4)),
        r"energy\(spring\): got batch shapes \(\), \(5,\), \(4,\), expected shapes that broadcast",
    ),
}


class _Total(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum()


@pytest.mark.parametrize("name", SHAPE_ERRORS)
def test_shape_error(name: str) -> None:
    trigger, message = SHAPE_ERRORS[name]
    with pytest.raises(EnergyShapeError, match=message):
        trigger()


SUPPORT_ERRORS = {
    "sum": (lambda: FIRST + POSITIVE, r"SumEnergy: got supports .* and .*, expected one support.*support=\.\.\."),
    "mixture": (lambda: mixture([FIRST, POSITIVE]), "MixtureEnergy: got supports .* and .*, expected one support"),
    "support larger than the event": (
        lambda: FunctionEnergy(harmonic, (), support=constraints.simplex),
        r"got support Simplex\(\) over 1 dims, expected at most the event's 0\. Give the energy an event shape",
    ),
    "a distribution without support": (
        lambda: DistributionEnergy(_Nowhere(validate_args=False)),
        r"got _Nowhere, which has no support.*Use energy\(fn, event_shape, support=\.\.\.\)",
    ),
}


class _Nowhere(dist.Distribution):
    """Declares no support."""


@pytest.mark.parametrize("name", SUPPORT_ERRORS)
def test_support_error(name: str) -> None:
    trigger, message = SUPPORT_ERRORS[name]
    with pytest.raises(EnergySupportError, match=message):
        trigger()


def test_wrong_number_of_values() -> None:
    with pytest.raises(TypeError, match=r"energy\(spring\): got 1 values, expected 2"):
        energy(spring, [(3,), ()])(torch.zeros(3))


def test_sum_of_something_else() -> None:
    with pytest.raises(TypeError, match=r"got function, expected an Energy; wrap it with energy\(\.\.\.\)"):
        SumEnergy([FIRST, harmonic])


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.0, -1.0], [1.0, float("nan")]], ids=str)
def test_mixture_weights_are_positive(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="not positive, expected all > 0"):
        mixture([FIRST, SECOND], torch.tensor(weights))


def test_energy_is_abstract() -> None:
    with pytest.raises(TypeError, match="forward"):
        Energy((3,))


# Supports


def test_supports_compare_by_value() -> None:
    def on(support: constraints.Constraint, shape: tuple[int, ...] = (3,)) -> Energy:
        return FunctionEnergy(harmonic, shape, support=support)

    same = [
        (constraints.real, constraints.independent(constraints.real, 1)),
        (constraints.interval(0.0, 2.0), constraints.interval(0.0, 2.0)),
        (constraints.interval(torch.zeros(3), 2.0), constraints.interval(torch.zeros(3), 2.0)),
        (constraints.interval(0.0, 2.0), constraints.interval(torch.tensor(0.0), torch.tensor(2.0))),
        (constraints.unit_interval, constraints.interval(0.0, 1.0)),
        (constraints.positive, constraints.greater_than(0.0)),
        (constraints.simplex, constraints.simplex),
    ]
    different = [
        (constraints.real, constraints.positive),
        (constraints.interval(0.0, 2.0), constraints.interval(0.0, 3.0)),
        (constraints.greater_than(0.0), constraints.greater_than(1.0)),
        (constraints.interval(torch.zeros(3), 2.0), constraints.interval(torch.tensor([0.0, 0.0, 1.0]), 2.0)),
        (constraints.simplex, constraints.real_vector),
    ]
    for first, second in same:
        assert isinstance(on(first) + on(second), SumEnergy)
        assert isinstance(mixture([on(first), on(second)]), MixtureEnergy)
    for first, second in different:
        with pytest.raises(EnergySupportError):
            on(first) + on(second)


def test_an_elementwise_support_covers_the_event() -> None:
    e = FunctionEnergy(harmonic, (2, 3), support=constraints.positive)
    assert e.support.event_dim == 2
    assert e.support.check(torch.ones(5, 2, 3)).shape == (5,)


def test_a_distribution_adds_to_a_function_on_its_support() -> None:
    prior = DistributionEnergy(pyro_dist.Normal(torch.zeros(3), 1.0).to_event(1))
    close((prior + energy(harmonic, (3,)))(X.float()), prior(X.float()) + harmonic(X.float()))
    gamma = DistributionEnergy(dist.Gamma(2.0, 1.0))
    tilted = gamma + FunctionEnergy(torch.square, (), support=gamma.support)
    close(tilted(torch.tensor(0.7)), gamma(torch.tensor(0.7)) + 0.49)


# Neural energies


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (2, 1, 3, 2)], ids=str)
def test_images_with_any_leading_dims(lead: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(1), nn.Linear(4 * 36, 1), nn.Flatten(0))
    e = NeuralEnergy(net, event_shape=(1, 8, 8))
    x = torch.randn(*lead, 1, 8, 8)
    assert e(x).shape == lead
    torch.testing.assert_close(e(x).flatten(), net(x.reshape(-1, 1, 8, 8)))
    assert e.support.event_dim == 3


def test_a_column_of_energies_says_how_to_squeeze() -> None:
    e = NeuralEnergy(nn.Linear(2, 1), event_shape=(2,))
    with pytest.raises(EnergyShapeError) as caught:
        e(torch.zeros(64, 2))
    message = str(caught.value)
    assert "NeuralEnergy: energy returned shape (64, 1), expected (64,)." in message
    assert "nn.Flatten(0)" in message
    assert "squeeze(-1)" in message


def test_context_is_bound_to_its_batch() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, context: Tensor) -> Tensor:
            return (x.sum(-1) - context).square()

    context = randn(0, 4)
    e = NeuralEnergy(Net(), (2,), context=context, context_dim=0)
    assert e.batch_shape == (4,)
    x = randn(1, 5, 4, 2)
    close(e(x), (x.sum(-1) - context).square())
    close(e(x[0, 0]), (x[0, 0].sum() - context).square())
    assert "context" in e.state_dict()


def test_context_of_several_dims() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, context: Tensor) -> Tensor:
            return (x * context).sum((-1, -2))

    context, x = randn(0, 3, 2, 2), randn(1, 5, 3, 2, 2)
    e = NeuralEnergy(Net(), (2, 2), context=context, context_dim=2)
    assert e.batch_shape == (3,)
    close(e(x), (x * context).sum((-1, -2)))


def test_gradient_reaches_what_made_the_context() -> None:
    encoder, net = nn.Linear(3, 3), _ContextSum()
    e = NeuralEnergy(net, (2,), context=encoder(torch.randn(4, 3)))
    e(torch.randn(5, 4, 2)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


class _ContextSum(nn.Module):
    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return (x.sum(-1) * context.sum(-1)).square()


# Energies of distributions


@parametrize([case for case in ENERGIES if isinstance(case.make(), DistributionEnergy)])
def test_distribution_energy_is_minus_log_prob(case: EnergyCase) -> None:
    e = case.make()
    (x,) = case.values((5, *case.batch_shape))
    close(e(x), -e.distribution.log_prob(x))
    assert isinstance(e, HasLogPartition)
    assert e.log_partition().dtype == torch.float64
    torch.testing.assert_close(e.log_partition(), torch.zeros(case.batch_shape, dtype=torch.float64), rtol=0, atol=0)


def test_the_distribution_given_is_not_changed() -> None:
    given = dist.Independent(dist.Normal(torch.zeros(3), torch.ones(3)), 1)
    e = DistributionEnergy(given)
    e.double()
    e(torch.zeros(3, dtype=torch.float64))
    e.load_state_dict({name: tensor + 1 for name, tensor in e.state_dict().items()})
    assert given.base_dist.loc.dtype == torch.float32
    torch.testing.assert_close(given.base_dist.loc, torch.zeros(3))
    assert not hasattr(given, "_forward_hooks")
    assert float(e.distribution.base_dist.loc[0]) == 1.0


def test_follows_double_and_functional_call() -> None:
    e = DistributionEnergy(dist.Normal(torch.zeros(3), 1.0))
    assert set(e.state_dict()) == {"loc", "scale"}
    x = torch.full((3,), 2.0)
    swapped = functional_call(e, {"loc": x, "scale": torch.full((3,), 0.5)}, (x,))
    close(swapped, -dist.Normal(x, 0.5).log_prob(x))
    close(e(x), -dist.Normal(torch.zeros(3), 1.0).log_prob(x))
    assert e.double()(x.double()).dtype == torch.float64
    assert e.distribution.loc.dtype == torch.float64


def test_broadcast_parameters_load() -> None:
    first = DistributionEnergy(dist.Normal(torch.zeros(3), 2.0))
    second = DistributionEnergy(dist.Normal(torch.ones(3), 1.0))
    second.load_state_dict(first.state_dict())
    close(second(torch.ones(3)), first(torch.ones(3)))


@pytest.mark.parametrize("evaluated", [False, True])
def test_nothing_cached_survives_new_parameters(evaluated: bool) -> None:
    given = dist.Categorical(torch.tensor([0.25, 0.75]))
    if evaluated:
        given.log_prob(torch.tensor(1))  # leaves logits behind
    e = DistributionEnergy(given)
    assert set(e.state_dict()) == {"probs", "_param"}
    close(e(torch.tensor(1)), -torch.tensor(0.75).log())
    swapped = functional_call(e, {"probs": torch.tensor([0.5, 0.5])}, (torch.tensor(1),))
    close(swapped, -torch.tensor(0.5).log())
    e.probs.copy_(torch.tensor([0.875, 0.125]))
    close(e(torch.tensor(1)), -torch.tensor(0.125).log())


@pytest.mark.parametrize("cache_size", [0, 1])
def test_transforms_follow_after_use(cache_size: int) -> None:
    zero = torch.zeros(())
    affine = dist.AffineTransform(zero, torch.ones(()), cache_size=cache_size)
    given = dist.TransformedDistribution(dist.Normal(zero, torch.ones(())), [affine])
    x = given.rsample()  # fills the caches, and the transform's inverse
    given.log_prob(x)
    e = DistributionEnergy(given)
    close(e(x), -dist.Normal(0.0, 1.0).log_prob(x))
    moved = functional_call(e, {"transforms__0__loc": x}, (x,))
    close(moved, -dist.Normal(0.0, 1.0).log_prob(torch.zeros(())))
    assert e.double()(x.double()).dtype == torch.float64
    assert given.transforms[0].loc.dtype == torch.float32


def test_inverse_transforms() -> None:
    shift, scale = torch.tensor(1.0), torch.tensor(2.0)
    given = dist.TransformedDistribution(
        dist.Normal(torch.zeros(()), torch.ones(())), [dist.AffineTransform(shift, scale).inv]
    )
    e, x = DistributionEnergy(given), torch.tensor(0.3)
    close(e(x), -dist.Normal(-0.5, 0.5).log_prob(x))
    close(e.double()(x.double()).float(), -dist.Normal(-0.5, 0.5).log_prob(x))


def test_parameters_of_a_distribution_are_learned() -> None:
    concentration = nn.Parameter(torch.ones(3))
    e = DistributionEnergy(dist.Dirichlet(concentration))
    assert [*e.parameters()] == [concentration]
    x = torch.tensor([0.2, 0.3, 0.5])
    e(x).backward()
    assert concentration.grad is not None
    with torch.no_grad():
        concentration.fill_(2.0)
    close(e(x), -dist.Dirichlet(torch.full((3,), 2.0)).log_prob(x))


def test_gradient_reaches_what_made_the_distribution() -> None:
    encoder = nn.Linear(2, 3)
    e = DistributionEnergy(dist.Normal(encoder(torch.ones(2)), 1.0))
    e(torch.zeros(3)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


# Quadratic energies


def _gaussian(*batch: int) -> tuple[Tensor, Tensor]:
    root = randn(4, *batch, 3, 3)
    return randn(5, *batch, 3), root @ root.mT + 0.5 * torch.eye(3, dtype=torch.float64)


@pytest.mark.parametrize("batch", [(), (4,), (2, 4)], ids=str)
def test_quadratic_agrees_with_torch(batch: tuple[int, ...]) -> None:
    mean, covariance = _gaussian(*batch)
    e, reference = QuadraticEnergy.from_moments(mean, covariance), dist.MultivariateNormal(mean, covariance)
    x = randn(6, 5, *batch, 3)
    assert e.log_partition().shape == batch
    close(-e(x) - e.log_partition(), reference.log_prob(x), 1e4)
    close(e.mean, mean, 1e4)
    close(e.covariance, covariance, 1e4)
    close(e.variance, reference.variance, 1e4)


def test_only_the_symmetric_part_counts() -> None:
    _, precision = _gaussian()
    skew = torch.tensor([[0.0, 1.0, -2.0], [-1.0, 0.0, 3.0], [2.0, -3.0, 0.0]], dtype=torch.float64)
    linear, x = randn(7, 3), randn(8, 5, 3)
    plain, skewed = QuadraticEnergy(precision, linear), QuadraticEnergy(precision + skew, linear)
    close(skewed(x), plain(x), 1e3)
    close(skewed.log_partition(), plain.log_partition(), 1e3)


def test_the_gradient_of_log_partition() -> None:
    mean, covariance = _gaussian(2)

    def log_partition(root: Tensor, linear: Tensor) -> Tensor:
        return QuadraticEnergy(root @ root.mT + torch.eye(3, dtype=torch.float64), linear).log_partition()

    assert torch.autograd.gradcheck(log_partition, (covariance.requires_grad_(), mean.requires_grad_()))
    e = QuadraticEnergy(nn.Parameter(covariance.detach()), nn.Parameter(mean.detach()))
    e.log_partition().sum().backward()  # the gradient in b is the mean, in the precision -E[x xᵀ] / 2
    close(e.linear.grad, e.mean, 1e4)
    second_moment = e.covariance + e.mean.unsqueeze(-1) * e.mean.unsqueeze(-2)
    close(e.precision.grad, -0.5 * second_moment, 1e4)


def test_shapes_when_one_argument_has_the_batch() -> None:
    _, precision = _gaussian()
    for e in (
        QuadraticEnergy(precision, randn(1, 4, 3)),
        QuadraticEnergy(precision.expand(4, 3, 3), randn(1, 3)),
        QuadraticEnergy(precision.expand(4, 3, 3)),
    ):
        assert e.batch_shape == (4,)
        assert e.log_partition().shape == (4,)
        assert e.mean.shape == e.variance.shape == (4, 3)
        assert e.covariance.shape == (4, 3, 3)
        assert e.sample((5,)).shape == (5, 4, 3)
        assert e.sample().shape == (4, 3)


@pytest.mark.parametrize("what", ["log_partition", "mean", "covariance", "variance", "sample"])
def test_not_positive_definite(what: str) -> None:
    e = QuadraticEnergy(torch.diag(torch.tensor([1.0, -1.0])))
    assert float(e(torch.tensor([0.0, 2.0]))) == -2.0  # as a factor beside others it has a meaning
    with pytest.raises(ValueError, match=r"not positive definite.*Add a confining term"):
        _ = e.log_partition() if what == "log_partition" else e.sample() if what == "sample" else getattr(e, what)


@pytest.mark.usefixtures("_no_validation")
def test_not_positive_definite_is_nan_without_validation() -> None:
    e = QuadraticEnergy(torch.stack([torch.eye(2), -torch.eye(2)]))
    assert e.log_partition().isnan().tolist() == [False, True]


# Energies in use


def test_parameters_of_a_sum_are_the_terms() -> None:
    net = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    total = NeuralEnergy(net, (2,)) + 0.5 * DoubleWell(2) - Ring()
    assert len([*total.parameters()]) == 2
    before = total(torch.ones(2))
    with torch.no_grad():
        net[0].bias += 1.0
    close(total(torch.ones(2)), before + 1.0)


def test_an_energy_traces() -> None:
    e = QuadraticEnergy(torch.eye(3)) + 0.5 * energy(harmonic, (3,))
    traced = torch.fx.experimental.proxy_tensor.make_fx(e)(torch.zeros(5, 3))
    close(traced(X[:5].float()), e(X[:5].float()))


def test_a_term_that_keeps_a_dim_is_caught_before_it_broadcasts() -> None:
    class KeepsADim(Energy):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(-1, keepdim=True)

    total = KeepsADim((2,)) + QuadraticEnergy(torch.eye(2))
    with pytest.raises(EnergyShapeError, match=r"term KeepsADim: energy returned shape \(5, 1\), expected \(5,\)"):
        total(torch.zeros(5, 2))


def test_a_temperature_to_be_learned_is_refused() -> None:
    with pytest.raises(TypeError, match="Learn the inverse temperature"):
        QuadraticEnergy(torch.eye(2)) / torch.nn.Parameter(torch.tensor(2.0))


def test_mixture_weights_can_be_learned() -> None:
    weights = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    e = mixture([QuadraticEnergy(torch.eye(2)), QuadraticEnergy(2 * torch.eye(2))], weights)
    assert dict(e.named_parameters())["weights"] is weights
    for _ in range(2):
        e(torch.ones(3, 2)).sum().backward()
    assert weights.grad is not None


def test_a_distribution_that_keeps_its_tensors_in_records_moves_with_the_energy() -> None:
    normal = pyro_dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
    hmm = pyro_dist.GaussianHMM(normal, torch.eye(2), normal, torch.eye(2), normal, duration=3)
    e = DistributionEnergy(hmm)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(e(x), -hmm.log_prob(x))
    assert len(e.state_dict()) > 0
    torch.testing.assert_close(e.double()(x.double()), -hmm.log_prob(x).double(), atol=1e-5, rtol=0)


def test_a_distribution_draws_for_its_energy() -> None:
    e = DistributionEnergy(torch.distributions.Gamma(torch.tensor([2.0, 3.0]), 1.0))
    assert e.sample((5,)).shape == (5, 2)
