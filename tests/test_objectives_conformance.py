"""What every objective must do, whatever its formula."""

import copy
import pickle

import pyro
import pytest
import torch
from cases import parametrize
from objective_cases import LABEL, OBJECTIVES, PAIR_NAMES, PAIRS, REAL, SPIN, ObjectiveCase, data, distribution
from torch import Tensor, nn
from torch.distributions import Exponential, Gamma, Independent, MultivariateNormal, Normal, Poisson, constraints

import pyro_ebm
from pyro_ebm import (
    AdaptiveNoiseContrastive,
    DenoisingScoreMatching,
    EnergyDiscrepancy,
    EnergyDistribution,
    EnergyShapeError,
    EnergySupportError,
    GraphError,
    KernelStein,
    NegativeLogLikelihood,
    NoiseContrastive,
    NonFiniteError,
    Objective,
    Perceptron,
    PseudoLikelihood,
    RankingNoiseContrastive,
    RecoveryLikelihood,
    ScoreMatching,
    SquareSquare,
    UnnormalizedError,
    energy,
    log_uniform,
    spin,
)

pairs = pytest.mark.parametrize(("case", "domain"), PAIRS, ids=PAIR_NAMES)
real_cases = [case for case in OBJECTIVES if REAL in case.domains]


def test_the_table_is_complete() -> None:
    found = {type(case.make()).__name__ for case in OBJECTIVES}
    public = {name for name in pyro_ebm.objectives.__all__ if issubclass(getattr(pyro_ebm, name), Objective)}
    assert found == public - {"Objective"}


@pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_report(case: ObjectiveCase, domain: str, dtype: torch.dtype) -> None:
    trained, objective = distribution(domain, dtype), case.make().to(dtype)
    loss, report = objective(trained, data(domain, 40, dtype=dtype))
    assert loss.shape == ()
    assert loss.dtype == dtype
    assert loss.isfinite()
    assert torch.equal(report["loss"], loss.detach())
    assert all(value.shape == () and not value.requires_grad and value.isfinite() for value in report.values())


@pairs
def test_gradients_reach_the_parameters_and_nothing_else(case: ObjectiveCase, domain: str) -> None:
    trained, objective = distribution(domain), case.make()
    values = data(domain, 40)
    if domain == REAL:
        values.requires_grad_()
    loss, _ = objective(trained, values)
    loss.backward()
    assert values.grad is None
    for parameter in [*trained.energy.parameters(), *objective.parameters()]:
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert any(bool(p.grad.abs().max() > 0) for p in trained.energy.parameters() if p.grad is not None)


@pairs
def test_without_gradients(case: ObjectiveCase, domain: str) -> None:
    trained, objective = distribution(domain), case.make()
    pyro.set_rng_seed(3)
    loss, _ = objective(trained, data(domain, 40))
    pyro.set_rng_seed(3)
    with torch.no_grad():
        same, _ = case.make()(trained, data(domain, 40))
    assert not same.requires_grad
    torch.testing.assert_close(same, loss.detach())


@pairs
def test_seeds_repeat(case: ObjectiveCase, domain: str) -> None:
    trained, values = distribution(domain), data(domain, 40)

    def at(seed: int) -> Tensor:
        loss, _ = case.make()(trained, values, generator=torch.Generator().manual_seed(seed))
        return loss.detach()

    before = torch.random.get_rng_state()
    assert torch.equal(at(1), at(1))
    assert torch.equal(at(1), at(2)) is not case.random
    assert torch.equal(before, torch.random.get_rng_state())


@pairs
def test_state_is_saved_and_loaded(case: ObjectiveCase, domain: str) -> None:
    trained, objective = distribution(domain), case.make()
    objective(trained, data(domain, 40))
    fresh = case.make()
    fresh.load_state_dict(objective.state_dict())
    for other in (fresh, copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        losses = [
            each(trained, data(domain, 30, seed=9), generator=torch.Generator().manual_seed(0))[0]
            for each in (copy.deepcopy(objective), other)
        ]
        assert torch.equal(*losses)


@pairs
def test_batch(case: ObjectiveCase, domain: str) -> None:
    trained, values = distribution(domain, batch=(2,)), data(domain, 40, 2)
    loss, _ = case.make()(trained, values)
    assert loss.shape == ()
    assert loss.isfinite()
    loss.backward()
    if case.random:
        return
    singles = []
    for number in range(2):
        one = distribution(domain)
        state = {name: value[number] for name, value in trained.energy.state_dict().items()}
        one.energy.load_state_dict(state)
        singles.append(case.make()(one, values[:, number])[0])
    torch.testing.assert_close(loss, torch.stack(singles).mean())


@pairs
def test_several_sample_dims_are_one(case: ObjectiveCase, domain: str) -> None:
    if case.random:
        return
    trained, values = distribution(domain), data(domain, 5, 8)
    loss, _ = case.make()(trained, values)
    torch.testing.assert_close(loss, case.make()(trained, values.flatten(0, 1))[0])


@parametrize(real_cases)
def test_data_that_are_not_finite(case: ObjectiveCase) -> None:
    values = data(REAL, 20)
    values[3, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="1 data elements that are not finite, of 60"):
        case.make()(distribution(REAL), values)


@parametrize(OBJECTIVES)
def test_an_energy_that_is_not_finite(case: ObjectiveCase) -> None:
    trained = distribution(case.domains[0])
    with torch.no_grad():
        next(trained.energy.parameters()).fill_(torch.nan)
    where = "noise" if case.name in ("denoising", "recovery") else "data"  # it looks at noisy data alone
    with pytest.raises(NonFiniteError, match=f"the energy at {where}: got"):
        case.make()(trained, data(case.domains[0], 20))


@pytest.mark.parametrize("objective", [NoiseContrastive(), RankingNoiseContrastive(), EnergyDiscrepancy()])
def test_an_energy_that_is_not_finite_at_noise(objective: Objective) -> None:
    seen = data(REAL, 200)
    holed = energy(lambda x: torch.where((x == seen[:1]).any(), x.sum(-1), x.sum(-1) * torch.nan), (3,))
    with pytest.raises(NonFiniteError, match="the energy at noise: got nan"):
        objective(EnergyDistribution(holed), seen)


def test_noise_may_fall_where_the_density_is_zero() -> None:
    truncated = energy(lambda x: torch.where(x[..., 0] > -1, x.square().sum(-1), torch.inf), (3,))
    values = data(REAL, 100).clamp(min=-0.9)
    for objective in (NoiseContrastive(), RankingNoiseContrastive(), EnergyDiscrepancy()):
        assert objective(EnergyDistribution(truncated), values)[0].isfinite()
    with pytest.raises(NonFiniteError, match="the energy at data: got inf"):
        NoiseContrastive()(EnergyDistribution(truncated), values - 1)


@pairs
def test_a_forbidden_state_in_the_data(case: ObjectiveCase, domain: str) -> None:
    if domain != LABEL:
        return
    trained = distribution(domain)
    with torch.no_grad():
        trained.energy.factors[1].energy.table[..., 2] = torch.inf
    with pytest.raises(NonFiniteError, match="the energy at data"):
        case.make()(trained, torch.full((5, 4), 2))
    if case.name == "concrete_score":  # it needs every state
        with pytest.raises(NonFiniteError, match="a loss of -inf"):
            case.make()(trained, data(domain, 20).clamp(max=1))
    else:
        assert case.make()(trained, data(domain, 20).clamp(max=1))[0].isfinite()


def test_wrong_supports() -> None:
    discrete = distribution(SPIN), data(SPIN, 20)
    continuous = distribution(REAL), data(REAL, 20)
    for case in OBJECTIVES:
        wrong = continuous if REAL not in case.domains else discrete if SPIN not in case.domains else None
        if wrong is not None:
            with pytest.raises((EnergySupportError, EnergyShapeError), match=r"expected|event"):
                case.make()(*wrong)
    with pytest.raises(EnergySupportError, match="PseudoLikelihood"):
        ScoreMatching()(*discrete)
    with pytest.raises(EnergySupportError, match="ScoreMatching"):
        PseudoLikelihood()(*continuous)
    with pytest.raises(EnergySupportError, match="RatioMatching"):
        pyro_ebm.RatioMatching()(distribution(LABEL), data(LABEL, 20))
    with pytest.raises(EnergySupportError, match="Give the noise"):
        NoiseContrastive()(Poisson(3.0), torch.ones(10))
    with pytest.raises(EnergySupportError, match="real numbers"):
        ScoreMatching()(Exponential(1.0), torch.ones(10))
    with pytest.raises(TypeError, match="floats"):
        ScoreMatching()(Normal(0.0, 1.0), torch.ones(10, dtype=torch.long))
    with pytest.raises(ValueError, match="outside"):
        NoiseContrastive(Exponential(1.0))(Exponential(1.0), -torch.ones(10))


@parametrize(OBJECTIVES)
def test_wrong_arguments(case: ObjectiveCase) -> None:
    trained = distribution(case.domains[0])
    with pytest.raises(EnergyShapeError, match="event"):
        case.make()(trained, torch.zeros(7, 11))
    with pytest.raises(EnergyShapeError, match="at least one"):
        case.make()(trained, data(case.domains[0], 0))
    with pytest.raises(TypeError, match=r"EnergyDistribution\(energy\)"):
        case.make()(trained.energy, data(case.domains[0], 20))


@parametrize([case for case in real_cases if "given" not in case.name and not case.needs_energy])
def test_a_plain_distribution(case: ObjectiveCase) -> None:
    location = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    plain = MultivariateNormal(location, torch.eye(3, dtype=torch.float64))
    loss, _ = case.make()(plain, data(REAL, 40))
    loss.backward()
    assert location.grad is not None
    assert location.grad.isfinite().all()


@parametrize([case for case in real_cases if case.needs_energy])
def test_chains_sample_energies_alone(case: ObjectiveCase) -> None:
    plain = MultivariateNormal(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    with pytest.raises(TypeError, match="expected an EnergyDistribution"):
        case.make()(plain, data(REAL, 40))


def test_a_base_and_a_scalar_event() -> None:
    tilted = EnergyDistribution(energy(lambda x: 0.1 * x**4, ()), Normal(0.0, 1.0))
    for objective in (ScoreMatching(), SlicedOnce(), EnergyDiscrepancy(), NoiseContrastive(), KernelStein()):
        assert objective(tilted, torch.randn(50))[0].isfinite()
    lone = EnergyDistribution(energy(lambda x: -0.7 * x, (), support=spin))
    loss, _ = PseudoLikelihood()(lone, torch.ones(5))
    torch.testing.assert_close(loss, torch.nn.functional.softplus(torch.tensor(-1.4)))


def SlicedOnce() -> Objective:
    return pyro_ebm.SlicedScoreMatching()


def test_covariates_in_the_batch_need_no_sample_dims() -> None:
    covariates = torch.randn(40, 3, dtype=torch.float64)
    weight = nn.Parameter(torch.ones((), dtype=torch.float64))
    conditional = EnergyDistribution(pyro_ebm.QuadraticEnergy(torch.eye(3, dtype=torch.float64), weight * covariates))
    for case in real_cases:
        if "kernel_stein" not in case.name:
            weight.grad = None
            case.make()(conditional, covariates + 1)[0].backward(retain_graph=True)
            assert weight.grad is not None


def test_options() -> None:
    for wrong in (
        lambda: NoiseContrastive(num_noise=0),
        lambda: pyro_ebm.ConditionalNoiseContrastive(scale=0.0),
        lambda: ScoreMatching(num_probes=0),
        lambda: DenoisingScoreMatching([]),
        lambda: DenoisingScoreMatching([0.1, -1.0]),
        lambda: DenoisingScoreMatching(Normal(0.0, 1.0)),
        lambda: DenoisingScoreMatching(Gamma(1.0, 1.0)),
        lambda: RecoveryLikelihood([0.1, 1.0]),
        lambda: RecoveryLikelihood([1.0]),
        lambda: RecoveryLikelihood([1.0, 0.1], num_steps=0),
        lambda: EnergyDiscrepancy(t=-1.0),
        lambda: EnergyDiscrepancy(num_perturbations=3),
        lambda: EnergyDiscrepancy(w=-1.0),
        lambda: pyro_ebm.DiscreteEnergyDiscrepancy(epsilon=1.0),
        lambda: KernelStein("cauchy"),  # type: ignore[arg-type]
        lambda: KernelStein(bandwidth=0.0),
        lambda: SquareSquare(margin=0.0),
        lambda: AdaptiveNoiseContrastive(Normal(0.0, 1.0)),
    ):
        with pytest.raises(ValueError, match="got"):
            wrong()


def test_noise_must_fit_and_cover_the_data() -> None:
    with pytest.raises(EnergyShapeError, match="to_event"):
        NoiseContrastive(Normal(torch.zeros(3), 1.0))(distribution(REAL), data(REAL, 20))
    narrow = Independent(torch.distributions.Uniform(torch.zeros(3), torch.ones(3), validate_args=False), 1)
    with pytest.raises(NonFiniteError, match="noise at data"):
        NoiseContrastive(narrow)(distribution(REAL), data(REAL, 20))
    with pytest.raises(ValueError, match="singular"):
        NoiseContrastive()(distribution(REAL), torch.zeros(60, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="do not vary"):
        EnergyDiscrepancy()(distribution(REAL), torch.zeros(60, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="median distance"):
        KernelStein()(distribution(REAL), torch.zeros(60, 3, dtype=torch.float64))
    with pytest.raises(EnergyShapeError, match="pairs"):
        KernelStein()(distribution(REAL), data(REAL, 1))


def test_held_noise_learns_nothing() -> None:
    location = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    objective = NoiseContrastive(Independent(Normal(location, 1.0), 1))
    objective(distribution(REAL), data(REAL, 20))[0].backward()
    assert location.grad is None


def test_what_has_no_exact_answer() -> None:
    with pytest.raises(UnnormalizedError, match="log_partition"):
        NegativeLogLikelihood()(EnergyDistribution(energy(lambda x: x.square().sum(-1), (3,))), data(REAL, 20))
    with pytest.raises(GraphError, match="FactorGraph"):
        Perceptron()(
            EnergyDistribution(energy(lambda x: x.sum((-1, -2)), (2, 3), support=constraints.boolean)),
            torch.ones(5, 2, 3),
        )
    with pytest.raises(ValueError, match="callable"):
        DenoisingScoreMatching([0.1, 0.2])(distribution(REAL), data(REAL, 20))
    with pytest.raises(ValueError, match="TimeConditional"):
        DenoisingScoreMatching(log_uniform(0.1, 0.2))(distribution(REAL), data(REAL, 20))
    with pytest.raises(ValueError, match="TimeConditional"):
        RecoveryLikelihood([2.0, 1.0, 0.5])(distribution(REAL), data(REAL, 20))
    with pytest.raises(TypeError, match="noise level"):
        DenoisingScoreMatching([0.1, 0.2])(3, data(REAL, 20))
